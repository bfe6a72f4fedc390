"""TAEHV's encoder: video to latents, chunk by chunk."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params
from fdjax.config import InstantiateConfig
from fdjax.contract.component import ParametricComponent
from fdjax.nn.random_params import random_params
from fdjax_models.networks.taehv.decoder import TaehvCache
from fdjax_models.networks.taehv.network import (
    EncoderNetwork,
    TaehvConfig,
    encoder_memories,
)
from fdjax_models.networks.wan_vae.statistics import WAN21_MEAN, WAN21_STD, normalize


class TaehvEncoder(ParametricComponent):
    """Encodes video chunk by chunk, with the result of encoding it at once.

    With `config.causal`, the first chunk of a stream has `1 + temporal_ratio k` frames
    and the later ones `temporal_ratio k`, as the decoder gives them back; the first
    frame is repeated in front, so that latent i depends on no frame after
    `temporal_ratio i`. Without it, as in the published code, every chunk has
    `temporal_ratio k` frames and a last, shorter one is padded by repeating its last
    frame.
    """

    config: "TaehvEncoderConfig"
    architecture = "taehv_encoder"

    @functools.cached_property
    def network(self) -> EncoderNetwork:
        """The linen module."""
        return EncoderNetwork(self.config)

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters as a nested dict, in the config's dtype."""
        config = self.config
        side = config.spatial_ratio
        video = jnp.zeros((1, config.temporal_ratio, side, side, 3))
        memories = encoder_memories(config, 1, 1, 1)
        shapes = jax.eval_shape(self.network.init, key, video, memories)["params"]
        return random_params(shapes, key, dtype=self.config.dtype)

    def initialize_cache(
        self, params: Params, batch_size: int, height: int, width: int
    ) -> TaehvCache:
        """The state before the first chunk, for latents of `height` x `width`."""
        del params
        memories = encoder_memories(self.config, batch_size, height, width)
        return TaehvCache(memories=memories, first=True)

    def encode(
        self, params: Params, cache: TaehvCache, video: Array
    ) -> tuple[TaehvCache, Array]:
        """The state after this chunk, and its latents.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            video: Chunk of video in [-1, 1].  float[B, T', H', W', 3].

        Returns:
            The new state, and normalised latents, float32[B, T, H, W, C].

        Raises:
            ValueError: The chunk's number of frames does not fit.
        """
        ratio = self.config.temporal_ratio
        # In front, so that the first frame is the last of its latent's frames; behind,
        # to whole latents.
        before = ratio - 1 if self.config.causal and cache.first else 0
        after = -(video.shape[1] + before) % ratio
        if self.config.causal and after:
            raise ValueError(
                f"A causal encoder takes 1 + {ratio} k frames first, then {ratio} k; "
                f"got {video.shape[1]} with first={cache.first}."
            )
        pad = [(0, 0), (before, after), (0, 0), (0, 0), (0, 0)]
        # Frames repeat at the edges.  [B, before + T' + after, H', W', 3], in [0, 1]
        rgb = (jnp.pad(video, pad, mode="edge") + 1) / 2
        outputs: Any = self.network.apply({"params": params}, rgb, cache.memories)
        latent, memories = outputs
        if self.config.needs_scaling:
            latent = normalize(latent, WAN21_MEAN, WAN21_STD)
        cache = TaehvCache(memories=memories, first=False)
        return cache, latent.astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaehvEncoderConfig(TaehvConfig, InstantiateConfig[TaehvEncoder]):
    """TAEHV's encoder; the defaults are the published Wan 2.1 sizes (taew2_1)."""

    _target: type = TaehvEncoder

    widths: tuple[int, ...] = (64, 64, 64, 64)
    """Channels before the first stage and after each stage."""

    temporal_scales: tuple[int, ...] = (2, 2, 1)
    """Temporal factor of each stage, 1 or 2."""

    causal: bool = False
    """Whether the stream is padded in front, so that its first frame makes a latent of
    its own, instead of at the end, as in the published code."""
