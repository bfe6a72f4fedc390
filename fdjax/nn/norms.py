"""Normalisations that several models share."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdjax.axes import Array


class ChannelNorm(nn.Module):
    """x / max(|x|, 1e-12) * sqrt(C) * scale over the last axis, in float32.

    The `RMS_norm` of Wan-Video/Wan2.1, wan/modules/vae.py.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., C], dtype kept."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        y = x.astype(jnp.float32)
        # float32[..., 1]
        length = jnp.sqrt(jnp.sum(jnp.square(y), axis=-1, keepdims=True))
        # 1e-12 is the floor of torch's `normalize`, which the reference calls.
        y = y / jnp.maximum(length, 1e-12) * (channels**0.5)
        return (y * scale.astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nn.Module):
    """Scales rows to unit root mean square, then by a learned weight.

    Statistics are float32; the normalised row is rounded to `dtype` before it meets the
    weight, as in T5 and Qwen2 (`UMT5LayerNorm` and `Qwen2RMSNorm` of transformers).

    Attributes:
        dtype: Type of the result.
        param_dtype: Type of the weight.
        epsilon: Added to the mean square.
    """

    dtype: jnp.dtype
    param_dtype: jnp.dtype
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last axis of `x`: dtype[..., M] -> dtype[..., M]."""
        scale = self.param(
            "scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype
        )
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normalised = (wide * jax.lax.rsqrt(mean_square + self.epsilon)).astype(
            self.dtype
        )
        return normalised * scale.astype(self.dtype)
