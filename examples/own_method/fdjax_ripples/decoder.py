"""The decoder: every latent is a block of grey pixels and two frames."""

import dataclasses

import jax.numpy as jnp

from fdjax import DecoderConfig, StreamingDecoder


class BlockDecoder(StreamingDecoder):
    """Repeats every latent in space and time, and squashes it to [-1, 1]."""

    @property
    def spatial_compression_ratio(self):
        return self.config.block

    @property
    def temporal_compression_ratio(self):
        return 2

    def num_output_frames(self, num_latents, first):
        return 2 * num_latents

    def init_params(self, key):
        return {"gain": jnp.ones(3)}

    def initialize_cache(self, params, batch_size, height, width):
        return ()

    def decode(self, params, cache, latent):
        for axis, times in ((1, 2), (2, self.config.block), (3, self.config.block)):
            latent = jnp.repeat(latent, times, axis=axis)
        return cache, jnp.tanh(latent * params["gain"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockDecoderConfig(DecoderConfig):
    """Config of `BlockDecoder`."""

    _target: type = BlockDecoder

    checkpoint_path: str = "package://fdjax_ripples/decoder.safetensors"
    """Weights, which ship in the package."""

    block: int = 4
    """Pixels per latent row and column."""
