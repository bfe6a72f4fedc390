"""The control: a level becomes a pattern of ripples."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from fdjax import EncoderConfig, StreamingEncoder


class Ripples(nn.Module):
    """Draws a level with waves across the picture."""

    num_ripples: int

    @nn.compact
    def __call__(self, level, height, width):
        """float32[B] to float32[B, 1, H, W, 1]: the level, and ripples around it."""
        phase = np.linspace(0, 2 * np.pi * self.num_ripples, width, endpoint=False)
        depth = self.param("depth", nn.initializers.constant(0.1), ())
        row = level[:, None] + depth * jnp.sin(phase)
        shape = (len(level), 1, height, width, 1)
        return jnp.broadcast_to(row[:, None, None, :, None], shape)


class RippleEncoder(StreamingEncoder):
    """Has no state; its cache carries the size of the latent."""

    @functools.cached_property
    def module(self):
        return Ripples(self.config.num_ripples)

    def init_params(self, key):
        return self.module.init(key, jnp.zeros(1), 1, 1)["params"]

    def initialize_cache(self, params, conditions, height, width):
        # Zeros of the latent's size carry the size as a shape.
        return jnp.zeros((conditions.batch_size, height, width))

    def encode(self, params, cache, input):
        return cache, self.module.apply({"params": params}, input, *cache.shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RippleEncoderConfig(EncoderConfig):
    """Config of `RippleEncoder`."""

    _target: type = RippleEncoder

    checkpoint_path: str = "package://fdjax_ripples/encoder.safetensors"
    """Weights, which ship in the package."""

    num_ripples: int = 2
    """Ripples across the picture, at least 1."""

    def __post_init__(self):
        if self.num_ripples < 1:
            raise ValueError(f"num_ripples must be >= 1, got {self.num_ripples}.")
