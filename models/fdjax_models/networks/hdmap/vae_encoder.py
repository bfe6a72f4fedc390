"""HD-map video as the latents of a causal VAE, chunk by chunk."""

import dataclasses
import functools

import jax

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import EncoderConfig, StreamingEncoder
from fdjax_models.networks.hdmap.video import HdMapCache, check_chunk
from fdjax_models.networks.wan_vae.vae import (
    LIGHTVAE_ENCODER,
    WanVaeCache,
    WanVaeEncoder,
    WanVaeEncoderConfig,
)


class HdMapVaeEncoder(StreamingEncoder):
    """Encodes each chunk of the map with what the VAE remembers of those before.

    Views are encoded apart, each with a state of its own. The parameters are those of
    the VAE's encoder.
    """

    config: "HdMapVaeEncoderConfig"
    architecture = WanVaeEncoder.architecture

    @functools.cached_property
    def vae(self) -> WanVaeEncoder:
        """The VAE's encoder."""
        return self.config.encoder.setup()

    @property
    def params_owner(self) -> WanVaeEncoder:
        """The VAE's encoder."""
        return self.vae

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters of the VAE's encoder."""
        return self.vae.init_params(key)

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> HdMapCache:
        """The state before the first chunk, for latents of `height` x `width`."""
        del params, conditions
        return HdMapCache(size=(height, width))

    def encode(
        self, params: Params, cache: HdMapCache, input: PyTree
    ) -> tuple[HdMapCache, Array]:
        """The state after this chunk, and its latents.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            input: The map, in [-1, 1]: float[B, T', H', W', 3], or with views
                float[B, V, T', H', W', 3]; T' is 1 + 4 (T - 1) in the first chunk,
                then 4 T.

        Returns:
            The new state, and normalised latents, float32[B, T, H, W, C] or
            float32[B, V, T, H, W, C].

        Raises:
            ValueError: See `check_chunk`.
        """
        video = check_chunk(input, cache)
        encode = functools.partial(self.vae.encode, params)
        if video.ndim == 6:
            # Views are a second batch axis of the video and of every state.
            encode = jax.vmap(encode, in_axes=1, out_axes=1)
        state, latent = encode(WanVaeCache(state=cache.state), video)
        return HdMapCache(state=state.state, size=cache.size), latent


@dataclasses.dataclass(frozen=True, kw_only=True)
class HdMapVaeEncoderConfig(EncoderConfig):
    """Config of `HdMapVaeEncoder`."""

    _target: type = HdMapVaeEncoder

    encoder: WanVaeEncoderConfig = LIGHTVAE_ENCODER
    """The VAE: of 16 channels, 8 pixels and 4 frames a latent."""
