"""From the hidden states of all layers to one row of features per token."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fdjax.axes import Array

Concatenation = Literal["full_concat", "mean_pooling", "pool_every_n_layers_and_concat"]
"""All layers side by side, their mean, or means of groups of layers side by side."""


def _rounded(x: Array, dtype: DTypeLike) -> Array:
    """float32 values that `dtype` holds; a cast there and back may be compiled away."""
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant)


def normalize_rows(x: Array) -> Array:
    """`(x - mean) / (deviation + 1e-8)` of each row, the deviation unbiased.

    Each step is rounded to the type of `x`, as torch rounds it: `_mean_normalize` of
    NVIDIA/flashdreams, infra/encoder/text/cosmos_reason1.py.

    Args:
        x: Of a floating type.  [..., M].

    Returns:
        Its shape and type.
    """
    wide = x.astype(jnp.float32)
    # [..., 1] each
    mean = _rounded(jnp.mean(wide, axis=-1, keepdims=True), x.dtype)
    deviation = _rounded(jnp.std(wide, axis=-1, keepdims=True, ddof=1), x.dtype)
    centred = _rounded(wide - mean, x.dtype)
    return (centred / _rounded(deviation + 1e-8, x.dtype)).astype(x.dtype)


def join_layers(states: Sequence[Array], how: Concatenation, group: int) -> Array:
    """One row of features per token, from those of every layer.

    Args:
        states: dtype[B, L, M] per layer.
        how: See `Concatenation`.
        group: Layers in a group, for "pool_every_n_layers_and_concat"; the last group
            has what is left.

    Returns:
        dtype[B, L, C], with the C of `joined_width`.
    """
    size = group_size(len(states), how, group)
    groups = [states[i : i + size] for i in range(0, len(states), size)]
    return jnp.concatenate([_mean(each) for each in groups], axis=-1)


def joined_width(width: int, num_layers: int, how: Concatenation, group: int) -> int:
    """C of `join_layers`, for layers of `width` M."""
    return -(-num_layers // group_size(num_layers, how, group)) * width


def group_size(num_layers: int, how: Concatenation, group: int) -> int:
    """Layers whose mean is taken."""
    sizes = {"full_concat": 1, "mean_pooling": num_layers}
    return sizes.get(how, group)


def _mean(states: Sequence[Array]) -> Array:
    """The mean of arrays of one shape, taken in float32 and rounded once."""
    if len(states) == 1:
        return states[0]
    # [layers, B, L, M] -> [B, L, M]
    return jnp.mean(jnp.stack(states), axis=0, dtype=jnp.float32).astype(
        states[0].dtype
    )
