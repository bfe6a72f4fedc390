"""TAEHV as a streaming decoder: tiny, causal, one frame of memory per block."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params
from fdjax.contract.decoder import DecoderConfig, StreamingDecoder
from fdjax.nn.random_params import random_params
from fdjax_models.networks.taehv.network import (
    DecoderNetwork,
    Memories,
    TaehvConfig,
    decoder_memories,
)
from fdjax_models.networks.wan_vae.statistics import WAN21_MEAN, WAN21_STD, denormalize


@flax.struct.dataclass(kw_only=True)
class TaehvCache:
    """What a stream carries from chunk to chunk.

    Attributes:
        memories: Last input of every memory block, [B, 1, H_i, W_i, C_i] each.
        first: Whether no chunk has been seen yet. Static.
    """

    memories: Memories
    first: bool = flax.struct.field(pytree_node=False)


class TaehvDecoder(StreamingDecoder):
    """Decodes latents chunk by chunk, with the result of decoding them at once."""

    config: "TaehvDecoderConfig"
    architecture = "taehv_decoder"

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent row or column."""
        return self.config.spatial_ratio

    @property
    def temporal_compression_ratio(self) -> int:
        """Video frames per latent frame, after the first chunk."""
        return self.config.temporal_ratio

    @functools.cached_property
    def network(self) -> DecoderNetwork:
        """The linen module; training applies it directly, for unclamped RGB."""
        return DecoderNetwork(self.config)

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters as a nested dict, in the config's dtype."""
        latent = jnp.zeros((1, 1, 1, 1, self.config.latent_channels))
        memories = decoder_memories(self.config, 1, 1, 1)
        shapes = jax.eval_shape(self.network.init, key, latent, memories)["params"]
        return random_params(shapes, key, dtype=self.config.dtype)

    def initialize_cache(
        self, params: Params, batch_size: int, height: int, width: int
    ) -> TaehvCache:
        """The state before the first chunk, for latents of `height` x `width`."""
        del params
        memories = decoder_memories(self.config, batch_size, height, width)
        return TaehvCache(memories=memories, first=True)

    def decode_unclamped(
        self, params: Params, cache: TaehvCache, latent: Array
    ) -> tuple[TaehvCache, Array]:
        """As `decode`, with values beyond [-1, 1] left as they are, for training."""
        if self.config.needs_scaling:
            latent = denormalize(latent, WAN21_MEAN, WAN21_STD)
        outputs: Any = self.network.apply({"params": params}, latent, cache.memories)
        rgb, memories = outputs
        # The first latent of Wan stands for one frame, and of the frames that it grows
        # into here that is the last; taehv.py drops the others too.
        dropped = self.config.temporal_ratio - 1 if cache.first else 0
        # [0, 1] -> [-1, 1].  [B, T', H', W', 3]
        video = 2 * rgb[:, dropped:].astype(jnp.float32) - 1
        return TaehvCache(memories=memories, first=False), video

    def decode(
        self, params: Params, cache: TaehvCache, latent: Array
    ) -> tuple[TaehvCache, Array]:
        """The state after this chunk, and its video.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            latent: Clean chunk, normalised.  float[B, T, H, W, C].

        Returns:
            The new state, and video in [-1, 1], float32[B, T', H', W', 3]. The first
            chunk of a stream gives `temporal_compression_ratio - 1` frames less.
        """
        cache, video = self.decode_unclamped(params, cache, latent)
        return cache, jnp.clip(video, -1, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaehvDecoderConfig(TaehvConfig, DecoderConfig):
    """TAEHV's decoder; the defaults are the published Wan 2.1 sizes (taew2_1)."""

    _target: type = TaehvDecoder


TAEW2_1 = TaehvDecoderConfig()
"""The decoder that madebyollin/taehv publishes for Wan 2.1 as taew2_1."""

LIGHTTAE = TaehvDecoderConfig(needs_scaling=True)
"""The decoder that lightx2v/Autoencoders publishes for Wan 2.1 as lighttaew2_1."""

TAEW2_2 = TaehvDecoderConfig(latent_channels=48, patch=2)
"""The decoder that madebyollin/taehv publishes for Wan 2.2 TI2V-5B as taew2_2."""
