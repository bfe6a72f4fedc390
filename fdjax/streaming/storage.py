"""How a layer's keys and values are stored: as they come, or in 8 bits.

In 8 bits values have their slots as the last axis, in an order of their own
(`fdjax.attention.float8`). Whoever wants slots and not buffers asks here.
"""

from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike

from fdjax.attention import float8
from fdjax.attention.kv_cache import KVLayout
from fdjax.axes import Array
from fdjax.contract.transformer import select


def eight_bit(buffer: Any) -> bool:
    """Whether this is a buffer of `fdjax.attention.float8`."""
    return bool(buffer.dtype == float8.DTYPE)


def write(
    layout: KVLayout,
    keys: Array,
    values: Array,
    chunk: tuple[Array, Array],
    num_tokens: ArrayLike,
    rows: Array | None = None,
) -> tuple[Array, Array]:
    """The buffers with a chunk's keys and values in its slots.

    Args:
        layout: Says which slots.
        keys: Of one layer.  [B, S, N, D].
        values: As `keys`; in 8 bits [B, N, D, S].
        chunk: Its keys and values.  [B, chunk, N, D] each.
        num_tokens: Tokens committed before the chunk.  int32[] or int32[B].
        rows: Which rows are written; the others stay as they are.  bool[B].
    """
    if rows is not None:
        # The others get what lies there already: no pass over the whole window.
        chunk = select(rows, chunk, read(layout, keys, values, num_tokens))
    new_keys, new_values = chunk
    if not eight_bit(keys):
        return (
            layout.write(keys, new_keys, num_tokens),
            layout.write(values, new_values, num_tokens),
        )
    return (
        float8.write_keys(layout, keys, new_keys, num_tokens),
        float8.write_values(layout, values, new_values, num_tokens),
    )


def read(
    layout: KVLayout, keys: Array, values: Array, num_tokens: ArrayLike
) -> tuple[Array, Array]:
    """What lies in a chunk's slots: `write` of it changes nothing.

    Returns:
        Keys and values, [B, chunk, N, D] each; zeros for tokens that are dropped.
    """
    some = layout.read(keys, num_tokens)
    if not eight_bit(values):
        return some, layout.read(values, num_tokens)
    return some, float8.read_values(layout, values, num_tokens)


def values_by_slot(values: Any) -> Any:
    """Stored values as [..., S, N, D]; an array of jax or of numpy."""
    if not eight_bit(values):
        return values
    # [..., N, D, S] -> [..., N, S, D] -> [..., S, N, D]
    return float8.by_slot(values).swapaxes(-1, -2).swapaxes(-2, -3)


def as_stored(values: Any) -> Any:
    """[..., S, N, D] as they are stored; undoes `values_by_slot`."""
    if not eight_bit(values):
        return values
    # [..., S, N, D] -> [..., N, S, D] -> [..., N, D, S]
    return float8.by_column(values.swapaxes(-2, -3).swapaxes(-1, -2))


def resized(buffer: Array, layout: KVLayout) -> Array:
    """[..., S, N, D] with the padding that a layout asks for.

    Raises:
        ValueError: There are fewer slots than the layout's capacity.
    """
    kept = buffer[..., : layout.capacity, :, :]
    if kept.shape[-3] != layout.capacity:
        raise ValueError(
            f"there are {kept.shape[-3]} key/value slots, {layout.capacity} are needed"
        )
    if buffer.shape[-3] == layout.num_slots:
        return buffer
    # [..., capacity, N, D] -> [..., S, N, D]
    more = [(0, 0)] * buffer.ndim
    more[-3] = (0, layout.num_slots - layout.capacity)
    return jnp.pad(kept, more)
