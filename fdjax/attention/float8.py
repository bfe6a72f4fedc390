"""Attention over keys and values cached in 8 bits: half the memory, and faster.

Keys and values are float8_e4m3fn (arXiv:2209.05433): three bits of mantissa, from 2**-6
to 448 with full precision. Queries and keys of a network that normalises both are of
the order 1, and so are values: they are stored as they are, without a scale. Scores and
sums are float32; the weights of the softmax are rounded to 8 bits, too.

On a Hopper GPU a kernel of our own (`float8_kernel`) reads the cache as it lies. Else
it is widened and read by `fdjax.attention.xla`, for tests and small sizes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdjax.attention import device, float8_kernel, xla
from fdjax.attention.kv_cache import KVLayout
from fdjax.axes import Array

DTYPE = "float8_e4m3fn"
"""Dtype of the cached keys and values."""

SLOTS = float8_kernel.SLOTS
"""The number of slots of a cache must be a multiple of this."""

_GROUP = float8_kernel.GROUP

_LARGEST = 448.0  # beyond it this dtype has NaN, no infinity


def to_float8(x: Array) -> Array:
    """Rounds to 8 bits; what is beyond 448 becomes 448."""
    return jnp.clip(x, -_LARGEST, _LARGEST).astype(DTYPE)


def value_shape(
    batch: tuple[int, ...], num_slots: int, heads: int, head_dim: int
) -> tuple[int, ...]:
    """Shape of cached values: [..., N, D, S], keys are [..., S, N, D].

    A product of 8-bit matrices on a Hopper GPU wants the axis that is summed over, here
    the slots, to be the last one of both factors.
    """
    return (*batch, heads, head_dim, num_slots)


def write_keys(
    layout: KVLayout, buffer: Array, keys: Array, num_tokens: ArrayLike
) -> Array:
    """`KVLayout.write` of keys [B, chunk, N, D] into [B, S, N, D]."""
    return layout.write(buffer, to_float8(keys), num_tokens)


def write_values(
    layout: KVLayout, buffer: Array, values: Array, num_tokens: ArrayLike
) -> Array:
    """Puts a chunk's values into its slots, in the order in which the kernel reads.

    Args:
        layout: Says which slots.
        buffer: Cached values of one layer.  [B, N, D, S].
        values: Those of the current chunk.  [B, chunk, N, D].
        num_tokens: Tokens committed before the chunk.  int32[] or int32[B].

    Returns:
        The new buffer.
    """
    num_tokens = jnp.asarray(num_tokens, jnp.int32)
    num_tokens = jnp.broadcast_to(num_tokens.reshape(-1), len(buffer))
    if layout.contiguous:
        for index in range(len(buffer)):
            first = layout.slots(num_tokens[index])[0]
            buffer = _write_window(buffer, values[index], index, first)
        return buffer
    # Elsewhere column by column. [B, 1] and [B, chunk] index [B, chunk, N, D].
    sessions = jnp.arange(len(buffer), dtype=jnp.int32)[:, None]
    return buffer.at[sessions, :, :, _columns(layout, num_tokens)].set(
        to_float8(values), mode="drop", unique_indices=layout.window >= layout.chunk
    )


def read_values(layout: KVLayout, buffer: Array, num_tokens: ArrayLike) -> Array:
    """`KVLayout.read` of values, [B, N, D, S] to [B, chunk, N, D]."""
    num_tokens = jnp.asarray(num_tokens, jnp.int32)
    num_tokens = jnp.broadcast_to(num_tokens.reshape(-1), len(buffer))
    sessions = jnp.arange(len(buffer), dtype=jnp.int32)[:, None]
    columns = _columns(layout, num_tokens)
    return buffer.at[sessions, :, :, columns].get(mode="fill", fill_value=0)


def _columns(layout: KVLayout, num_tokens: Array) -> Array:
    """Where the chunk's values are.  int32[B, chunk]."""
    slots = layout.slots(num_tokens)
    # A token that is dropped keeps its slot behind the buffer.
    return jnp.where(slots < layout.num_slots, float8_kernel.column(slots), slots)


def _write_window(buffer: Array, values: Array, session: int, first: Array) -> Array:
    """Puts [chunk, N, D] into consecutive slots of [B, N, D, S], from `first` on.

    By one slice that begins and ends between groups: a scatter along the last axis
    would write byte by byte.
    """
    chunk, num_slots = len(values), buffer.shape[-1]
    size = min(-(-(chunk + _GROUP - 1) // _GROUP) * _GROUP, num_slots)
    # The last window begins where it still fits.
    start = jnp.minimum(first // _GROUP * _GROUP, num_slots - size)
    zero = jnp.int32(0)
    where = (jnp.int32(session), zero, zero, start)
    # [1, N, D, size], in the order of columns
    old = jax.lax.dynamic_slice(buffer, where, (1, *buffer.shape[1:3], size))
    # Which of the chunk's tokens belongs into each column.  int32[size]
    token = float8_kernel.slot(np.arange(size, dtype=np.int32)) - (first - start)
    # Whole tokens change places, [chunk, N, D] -> [size, N, D], before the axes do,
    # [size, N, D] -> [N, D, size]: bytes would be gathered one by one.
    rows = to_float8(values)[jnp.clip(token, 0, chunk - 1)]
    # Two passes: in one, XLA gathers them one by one all the same.
    new = jax.lax.optimization_barrier(rows).reshape(size, -1).T.reshape(old.shape)
    new = jnp.where((token >= 0) & (token < chunk), new, old)
    return jax.lax.dynamic_update_slice(buffer, new, where)


def by_column(x: Any) -> Any:
    """[..., S] in the order of slots to the order of columns."""
    shape = x.shape
    # Slot 8 a + 2 b + c of a group is column 4 b + 2 a + c: two axes change places.
    x = x.reshape(*shape[:-1], shape[-1] // _GROUP, 2, 4, 2)
    return x.swapaxes(-3, -2).reshape(shape)


def by_slot(x: Any) -> Any:
    """[..., S] in the order of columns to the order of slots."""
    shape = x.shape
    x = x.reshape(*shape[:-1], shape[-1] // _GROUP, 4, 2, 2)
    return x.swapaxes(-3, -2).reshape(shape)


def attend(
    query: Array,
    keys: Array,
    values: Array,
    *,
    length: Array,
    scale: float | None = None,
) -> Array:
    """`fdjax.attention.attend` over a cache in 8 bits.

    Args:
        query: [B, L, N, D].
        keys: As `write_keys` leaves them.  float8_e4m3fn[B, S, N, D].
        values: As `write_values` leaves them.  float8_e4m3fn[B, N, D, S].
        length: Valid slots, at least 1.  int32[] or int32[B].
        scale: Multiplies the scores; None for D ** -0.5.

    Returns:
        [B, L, N, D], dtype of `query`.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    length = jnp.broadcast_to(jnp.asarray(length, jnp.int32), query.shape[:1])
    if unsupported_reason(query) is None:
        return float8_kernel.attend(to_float8(query), keys, values, length, scale)
    # [B, N, D, S] -> [B, S, N, D]
    wide = by_slot(values).transpose(0, 3, 1, 2).astype(jnp.float32)
    keys = keys.astype(jnp.float32)
    query, dtype = to_float8(query).astype(jnp.float32), query.dtype
    return xla.attend(query, keys, wide, length=length, scale=scale)[0].astype(dtype)


def unsupported_reason(query: Array) -> str | None:
    """Why the kernel cannot run here, or None."""
    capability = device.compute_capability()
    if capability != (9, 0):
        return f"it needs compute capability 9.0 (Hopper), the device has {capability}"
    if query.shape[-1] != float8_kernel.HEAD_DIM:
        return f"it needs heads of {float8_kernel.HEAD_DIM}, got {query.shape[-1]}"
    return None
