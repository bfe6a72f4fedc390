"""The control encoder: a linear map of every input pixel."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params
from fdjax.config import DTypeName
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import EncoderConfig, StreamingEncoder
from fdjax.nn.random_params import random_params


class TemplateEncoder(StreamingEncoder):
    """Maps each chunk's input to the channels of the latent; keeps no state."""

    config: "TemplateEncoderConfig"

    @functools.cached_property
    def projection(self) -> nn.Dense:
        """The weights' owner: a 1x1x1 convolution."""
        return nn.Dense(self.config.out_channels, dtype=self.config.dtype)

    def init_params(self, key: jax.Array) -> Params:
        """Random weights."""
        # Only the last axis decides the shapes of weights.
        pixel = jnp.zeros((1, self.config.in_channels))
        shapes = jax.eval_shape(self.projection.init, key, pixel)
        return random_params(shapes["params"], key)

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> tuple[()]:
        """No state: each chunk is encoded on its own."""
        del params, conditions, height, width
        return ()

    def encode(
        self, params: Params, cache: tuple[()], input: Array
    ) -> tuple[tuple[()], Array]:
        """The control of one chunk.

        Args:
            params: Weights.
            cache: ().
            input: float[B, T, H, W, in_channels], T and H x W those of the latent.

        Returns:
            (), and the control, [B, T, H, W, out_channels].
        """
        control: Any = self.projection.apply({"params": params}, input)
        return cache, control


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplateEncoderConfig(EncoderConfig):
    """Config of `TemplateEncoder`."""

    _target: type = TemplateEncoder

    checkpoint_path: str | None = None
    """Where the weights are: a path, a URL, or a Hugging Face file."""

    in_channels: int = 8
    """Channels of the input."""

    out_channels: int = 4
    """Channels of the control: those of the latent."""

    dtype: DTypeName = "bfloat16"
    """Computation dtype."""
