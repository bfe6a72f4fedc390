"""The Wan VAE as a streaming encoder and a streaming decoder."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params
from fdjax.config import InstantiateConfig
from fdjax.contract.component import ParametricComponent
from fdjax.contract.decoder import DecoderConfig, StreamingDecoder
from fdjax.nn.random_params import random_params
from fdjax_models.networks.wan_vae.layers import CONTEXT_RULES, State
from fdjax_models.networks.wan_vae.networks import Decoder, Encoder, WanVaeConfig
from fdjax_models.networks.wan_vae.statistics import (
    WAN22_MEAN,
    WAN22_STD,
    denormalize,
    normalize,
)


def _in_passes(
    step: Callable[[State, Array], tuple[State, Array]],
    state: State,
    x: Array,
    head: int,
    size: int,
) -> tuple[State, Array]:
    """Runs `step` over `head` frames of x, then over `size` frames at a time.

    Args:
        step: Maps a state and a chunk to the next state and the chunk's output.
        state: State before x.
        x: [B, T, ...]; T - head is a multiple of `size`.
        head: Frames of the first pass.
        size: Frames of the other passes.

    Returns:
        The state after x, and the outputs, joined along axis 1.
    """
    # By itself: where a stream begins, its state is None and its frames are fewer.
    state, first = step(state, x[:, :head])
    passes = (x.shape[1] - head) // size
    if not passes:
        return state, first
    # [B, T - head, ...] -> [B, passes, size, ...] -> [passes, B, size, ...]
    rest = x[:, head:].reshape(len(x), passes, size, *x.shape[2:])
    state, outputs = jax.lax.scan(step, state, jnp.moveaxis(rest, 1, 0))
    # [passes, B, T', ...] -> [B, passes, T', ...] -> [B, passes * T', ...]
    outputs = jnp.moveaxis(outputs, 0, 1)
    outputs = outputs.reshape(len(x), -1, *outputs.shape[3:])
    return state, jnp.concatenate([first, outputs], axis=1)


@flax.struct.dataclass(kw_only=True)
class WanVaeCache:
    """What a stream carries from chunk to chunk.

    Attributes:
        state: The frames that causal convolutions carry, a nested dict of arrays
            [B, frames, H_i, W_i, C_i]; None before the first chunk.
    """

    state: State = None


class WanVaeDecoder(StreamingDecoder):
    """Decodes latents chunk by chunk, with the result of decoding them at once.

    For chunks of one latent see `WanVaeDecoderConfig.context`.
    """

    config: "WanVaeDecoderConfig"
    architecture = "wan_vae_decoder"

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent row or column."""
        return self.config.spatial_ratio

    @property
    def temporal_compression_ratio(self) -> int:
        """Video frames per latent frame, after the first chunk."""
        return self.config.temporal_ratio

    @functools.cached_property
    def network(self) -> Decoder:
        """The linen module."""
        return Decoder(self.config)

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters as a nested dict, in the config's dtype."""
        # The first frame of a stream alone does not reach all layers.
        latent = jnp.zeros((1, 2, 1, 1, self.config.latent_channels))
        shapes = jax.eval_shape(self.network.init, key, latent, None)["params"]
        return random_params(shapes, key, dtype=self.config.dtype)

    def initialize_cache(
        self, params: Params, batch_size: int, height: int, width: int
    ) -> WanVaeCache:
        """The state before the first chunk."""
        del params, batch_size, height, width
        return WanVaeCache()

    def decode(
        self, params: Params, cache: WanVaeCache, latent: Array
    ) -> tuple[WanVaeCache, Array]:
        """The state after this chunk, and its video.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            latent: Clean chunk, normalised.  float[B, T, H, W, C].

        Returns:
            The new state, and video in [-1, 1], float32[B, T', H', W', 3]. The first
            latent of a stream gives one frame, each later one
            `temporal_compression_ratio` frames.

        Raises:
            ValueError: The latent is another VAE's.
        """
        config = self.config
        if latent.shape[-1] != config.latent_channels:
            raise ValueError(
                f"This VAE's latents have {config.latent_channels} channels (Wan 2.1: "
                f"16, Wan 2.2 TI2V-5B: 48), got {latent.shape[-1]}; take the decoder "
                "of the VAE that the latents are of."
            )
        # What a pass within a chunk carries is not what a chunk carries.
        context = config.context if latent.shape[1] == 1 else "exact"
        network = Decoder(config, context)

        def step(state: State, latent: Array) -> tuple[State, Array]:
            outputs: Any = network.apply({"params": params}, latent, state)
            video, state = outputs
            return state, jnp.clip(video.astype(jnp.float32), -1, 1)

        latent = denormalize(latent, config.latent_mean, config.latent_std)
        size = config.latents_per_pass
        # 1 to `size` latents: what is left when all other passes are full.
        head = latent.shape[1] - (latent.shape[1] - 1) // size * size
        state, video = _in_passes(step, cache.state, latent, head, size)
        return WanVaeCache(state=state), video


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanVaeDecoderConfig(WanVaeConfig, DecoderConfig):
    """The Wan VAE's decoder; the defaults are Wan 2.1's."""

    _target: type = WanVaeDecoder

    context: str = "reference"
    """What the first doubling of the frame rate carries after a chunk of one latent.
    "exact" gives what decoding the whole clip gives, as the official code does.
    "reference" forgets all but the last latent, as NVIDIA/flashdreams does: with chunks
    of one latent, the video then differs from the fourth latent on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context not in CONTEXT_RULES:
            raise ValueError(
                f"context must be one of {CONTEXT_RULES}, got {self.context!r}."
            )


class WanVaeEncoder(ParametricComponent):
    """Encodes video chunk by chunk, with the result of encoding it at once."""

    config: "WanVaeEncoderConfig"
    architecture = "wan_vae_encoder"

    @functools.cached_property
    def network(self) -> Encoder:
        """The linen module."""
        return Encoder(self.config)

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters as a nested dict, in the config's dtype."""
        side = self.config.spatial_ratio
        # Two latents' frames: the first one passes by the temporal convolutions.
        video = jnp.zeros((1, 1 + self.config.temporal_ratio, side, side, 3))
        shapes = jax.eval_shape(self.network.init, key, video, None)["params"]
        return random_params(shapes, key, dtype=self.config.dtype)

    def initialize_cache(self, params: Params) -> WanVaeCache:
        """The state before the first chunk."""
        del params
        return WanVaeCache()

    def encode(
        self, params: Params, cache: WanVaeCache, video: Array
    ) -> tuple[WanVaeCache, Array]:
        """The state after this chunk, and its latents.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            video: In [-1, 1], float[B, T', H', W', 3]. T' is 1 + temporal_ratio k for
                the first chunk of a stream, temporal_ratio k for later ones; H' and W'
                are multiples of spatial_ratio.

        Returns:
            The new state, and normalised latents, float32[B, T, H, W, C]: one for the
            first frame of the stream, one for every temporal_ratio frames after it.

        Raises:
            ValueError: The size of the chunk does not fit.
        """
        first = cache.state is None
        self._check(video.shape, first)
        config, network = self.config, self.network

        def step(state: State, video: Array) -> tuple[State, Array]:
            outputs: Any = network.apply({"params": params}, video, state)
            latent, state = outputs
            return state, normalize(latent, config.latent_mean, config.latent_std)

        time, size = config.temporal_ratio, config.latents_per_pass
        num_latents = first + (video.shape[1] - first) // time
        # 1 to `size` latents; a stream's first is one frame, every other one `time`.
        head = num_latents - (num_latents - 1) // size * size
        state, latent = _in_passes(
            step,
            cache.state,
            video,
            head=head * time - (time - 1 if first else 0),
            size=size * time,
        )
        return WanVaeCache(state=state), latent

    def _check(self, shape: tuple[int, ...], first: bool) -> None:
        """Refuses chunks that do not give whole latents."""
        time, space = self.config.temporal_ratio, self.config.spatial_ratio
        if shape[1] < 1 or (shape[1] - first) % time:
            raise ValueError(
                f"The first chunk needs 1 + {time} k frames, a later one {time} k; got "
                f"{shape[1]} in a {'first' if first else 'later'} chunk."
            )
        if shape[2] % space or shape[3] % space:
            raise ValueError(
                f"Height and width must be multiples of {space}, got {shape[2:4]}; "
                "resize the video."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanVaeEncoderConfig(WanVaeConfig, InstantiateConfig[WanVaeEncoder]):
    """The Wan VAE's encoder; the defaults are Wan 2.1's."""

    _target: type = WanVaeEncoder


WAN21_VAE_DECODER = WanVaeDecoderConfig()
"""Decoder of the Wan 2.1 VAE (Wan2.1_VAE.pth)."""

WAN21_VAE_ENCODER = WanVaeEncoderConfig()
"""Encoder of the Wan 2.1 VAE (Wan2.1_VAE.pth)."""

# A quarter of Wan 2.1's widths: 8.0 M parameters for 126.9 M, both halves.
LIGHTVAE_DECODER = WanVaeDecoderConfig(widths=(24, 48, 96, 96))
"""Decoder of the pruned Wan 2.1 VAE of lightx2v/Autoencoders (lightvaew2_1.pth)."""

LIGHTVAE_ENCODER = WanVaeEncoderConfig(widths=(24, 48, 96, 96))
"""Encoder of the pruned Wan 2.1 VAE of lightx2v/Autoencoders (lightvaew2_1.pth)."""

# With patch=2, 16 x 16 pixels a latent pixel.
WAN22_VAE_DECODER = WanVaeDecoderConfig(
    widths=(256, 512, 1024, 1024),
    residual_stages=True,
    patch=2,
    latent_mean=WAN22_MEAN,
    latent_std=WAN22_STD,
)
"""Decoder of the Wan 2.2 TI2V-5B VAE (Wan2.2_VAE.pth)."""

WAN22_VAE_ENCODER = WanVaeEncoderConfig(
    widths=(160, 320, 640, 640),
    residual_stages=True,
    patch=2,
    latent_mean=WAN22_MEAN,
    latent_std=WAN22_STD,
)
"""Encoder of the Wan 2.2 TI2V-5B VAE (Wan2.2_VAE.pth)."""
