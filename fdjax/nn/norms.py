"""Normalisations that several models share."""

import flax.linen as nn
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
