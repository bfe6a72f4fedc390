"""Norms and modulation of the Wan DiT, with float32 statistics and arithmetic."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdjax.axes import Array
from fdjax.sharding import constrain, in_mesh
from fdjax_models.networks.wan_dit.config import WanDiTConfig


def dense(config: WanDiTConfig, features: int, dtype: str | None = None) -> nn.Dense:
    """A projection of this network: its dtype unless given, its parameter dtype."""
    return nn.Dense(
        features, dtype=dtype or config.dtype, param_dtype=config.param_dtype
    )


def split_heads(config: WanDiTConfig, x: Array) -> Array:
    """[B, L, M] to [B, L, N, D]."""
    return x.reshape(*x.shape[:2], config.num_heads, config.head_dim)


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, all of it in float32."""

    eps: float
    param_dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., features], dtype kept."""
        ones = nn.initializers.ones_init()
        scale = self.param("scale", ones, x.shape[-1:], self.param_dtype)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        # Rounded after the weight, as torch's RMSNorm is; Wan's own code rounds before.
        return (y * scale.astype(jnp.float32)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Affine layer normalisation over the last axis, all of it in float32."""

    eps: float
    param_dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., features], dtype kept."""
        shape = x.shape[-1:]
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        scale = self.param("scale", ones, shape, self.param_dtype)
        bias = self.param("bias", zeros, shape, self.param_dtype)
        y = standardize(x, self.eps) * scale.astype(jnp.float32)
        return (y + bias.astype(jnp.float32)).astype(x.dtype)


def standardize(x: Array, eps: float) -> Array:
    """Zero mean and unit (biased) variance over the last axis.  float32."""
    y = x.astype(jnp.float32)
    # In two passes: E[x^2] - E[x]^2 loses digits to cancellation.
    y = y - jnp.mean(y, -1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + eps)


class TimeVectors(NamedTuple):
    """What is made of the timesteps of a chunk, and which tokens it holds for.

    Attributes:
        vectors: float32[B, G, ...]; without `second` each holds for L / G consecutive
            tokens: G is 1, the number of frames, or L.
        second: Which tokens have the second of two vectors, the others the first.
            bool[B, L], or None.
    """

    vectors: Array
    second: Array | None = None


def for_tokens(vectors: Array, second: Array | None) -> Array:
    """[B, G, M] as `modulate` takes it: [B, 2, M] becomes [B, L, M] where `second` is.

    A choice between two rows is part of the pass that uses it; [B, L, 6, M], read from
    memory in every block, would be 1.4 GB for the 18480 tokens of 704 x 1280.
    """
    if second is None:
        return vectors
    # [B, L, 1], [B, 1, M], [B, 1, M] -> [B, L, M]
    return jnp.where(second[..., None], vectors[:, 1:], vectors[:, :1])


def modulate(x: Array, scale: Array, shift: Array) -> Array:
    """x * (1 + scale) + shift, with one vector per group of consecutive tokens.

    Args:
        x: [B, L, M].
        scale: float32[B, G, M]; G divides L. G is 1, the number of frames, or L.
        shift: As `scale`.

    Returns:
        float32[B, L, M].
    """
    scale, shift = (_each(vectors, x.shape[1]) for vectors in (scale, shift))
    # [B, G, L / G, M]
    y = _group(x, scale.shape[1])
    # Vectors as [B, G, 1, M]; the result [B, G, L / G, M] -> [B, L, M].
    return (y * (1 + scale[:, :, None]) + shift[:, :, None]).reshape(x.shape)


def add_gated(x: Array, update: Array, gate: Array) -> Array:
    """x + gate * update, gate as `scale` of `modulate`; summed in float32, dtype of x.

    Args:
        x: The residual stream.  [B, L, M].
        update: [B, L, M].
        gate: float32[B, G, M].
    """
    gate = _each(gate, x.shape[1])
    # [B, G, L / G, M] * [B, G, 1, M] -> [B, L, M]
    y = (_group(update, gate.shape[1]) * gate[:, :, None]).reshape(x.shape)
    return (x.astype(jnp.float32) + y).astype(x.dtype)


def _each(vectors: Array, length: int) -> Array:
    """[B, G, M] as it is; on a mesh that cuts tokens, [B, L, M] where G is above 1.

    A device's tokens begin and end within a group: to part them into groups, it would
    need those of other devices.
    """
    groups = vectors.shape[1]
    if groups in (1, length) or not in_mesh():
        return vectors
    # Part of the pass that uses it: not written to memory.
    group = jnp.arange(length, dtype=jnp.int32) // (length // groups)
    return constrain(vectors[:, group], "BLM")


def _group(x: Array, groups: int) -> Array:
    """[B, L, M] to float32[B, G, L / G, M]."""
    batch, length, width = x.shape
    # Tokens are ordered (frame, row, column): those of a frame are consecutive.
    x = x.reshape(batch, groups, length // groups, width)
    return x.astype(jnp.float32)
