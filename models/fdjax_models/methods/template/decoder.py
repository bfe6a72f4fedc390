"""The decoder: a linear map of every latent pixel to RGB."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params
from fdjax.config import DTypeName
from fdjax.contract.decoder import DecoderConfig, StreamingDecoder
from fdjax.nn.random_params import random_params


class TemplateDecoder(StreamingDecoder):
    """Gives one frame of the latent's size per latent frame; keeps no state.

    It has no bounds, as that of NVIDIA/flashdreams (recipes/template). A decoder of
    pictures ends in tanh or a clip, and leaves `video_range` as it is.
    """

    config: "TemplateDecoderConfig"
    video_range = None
    spatial_compression_ratio = 1
    temporal_compression_ratio = 1

    @functools.cached_property
    def projection(self) -> nn.Dense:
        """The weights' owner: a 1x1x1 convolution."""
        return nn.Dense(3, dtype=self.config.dtype)

    def init_params(self, key: jax.Array) -> Params:
        """Random weights."""
        # Only the last axis decides the shapes of weights.
        pixel = jnp.zeros((1, self.config.in_channels))
        shapes = jax.eval_shape(self.projection.init, key, pixel)
        return random_params(shapes["params"], key)

    def initialize_cache(
        self, params: Params, batch_size: int, height: int, width: int
    ) -> tuple[()]:
        """No state: each chunk is decoded on its own."""
        del params, batch_size, height, width
        return ()

    def decode(
        self, params: Params, cache: tuple[()], latent: Array
    ) -> tuple[tuple[()], Array]:
        """(), and the chunk's video, [B, T, H, W, 3]."""
        video: Any = self.projection.apply({"params": params}, latent)
        return cache, video


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplateDecoderConfig(DecoderConfig):
    """Config of `TemplateDecoder`."""

    _target: type = TemplateDecoder

    checkpoint_path: str | None = None
    """Where the weights are: a path, a URL, or a Hugging Face file."""

    in_channels: int = 4
    """Channels of the latent."""

    dtype: DTypeName = "bfloat16"
    """Computation dtype."""
