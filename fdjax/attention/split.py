"""Attention over a mesh: each device attends with some of the queries or of the heads.

Kernels are calls that the compiler cannot cut, and writes into a ring are programs that
it cuts badly. So each device runs them on its own part, and what goes between devices
is written out here.

Self-attention: a device has some tokens with all their heads, and exchanges them for
all tokens with some of the heads, and back (DeepSpeed-Ulysses, arXiv:2309.14509,
section 3.2). The cache is cut by heads and never moved.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fdjax import sharding
from fdjax.axes import Array, PyTree

_TOKENS = "sequence"  # the mesh axis that exchanges tokens for heads

Attend = Callable[[Array, Array, Array, PyTree, PyTree], tuple[PyTree, Array]]
"""`(query, key, value, state, shared) -> (state, out)`, on the heads it is given."""


def check_heads(num_heads: int, kv_heads: int, sizes: Mapping[str, int]) -> None:
    """Refuses a mesh that does not divide the heads.

    Args:
        num_heads: Query heads.
        kv_heads: Heads of keys and values.
        sizes: Axes of the mesh.

    Raises:
        ValueError: With both numbers.
    """
    cut = [name for name in sharding.HEADS if sizes.get(name, 1) > 1]
    parts = math.prod(sizes[name] for name in cut)
    for heads in dict.fromkeys((num_heads, kv_heads)):
        if heads % parts:
            given = ",".join(f"{name}={sizes[name]}" for name in cut)
            fits = [n for n in range(2, heads + 1) if heads % n == 0]
            raise ValueError(
                f"the mesh cuts attention heads into {parts} parts ({given}), which "
                f"must divide their number, {heads}; take one of {fits}."
            )


def by_queries(
    attend: Callable[..., Array],
    query: Array,
    key: Array,
    value: Array,
    length: Array | None,
) -> Array:
    """Attention in which each device has a part of the queries, and no key is moved.

    Args:
        attend: `(query, key, value, length=...) -> out`.
        query: [B, L, N, D].
        key: [B, S, N, D], the same for all parts of L.
        value: As `key`.
        length: int32[], int32[B] or None.
    """
    num_queries = query.shape[1]
    query = _padded(query)
    rows, tokens, heads, _ = sharding.spec_of("BLND", query.shape)
    if heads != sharding.spec_of("BSND", key.shape)[2]:
        heads = None  # shared heads that the mesh does not divide
    queries, keys = (PartitionSpec(rows, x, heads) for x in (tokens, None))
    lengths = None if length is None else PartitionSpec(*[rows] * jnp.ndim(length))

    def part(query: Array, key: Array, value: Array, length: Array | None) -> Array:
        return attend(query, key, value, length=length)

    specs = queries, keys, keys, lengths
    out = sharding.by_device(part, specs, queries)(query, key, value, length)
    # What was padded is dropped: [B, L + ..., N, D] -> [B, L, N, D].
    return out[:, :num_queries]


def by_heads(
    attend: Attend,
    query: Array,
    key: Array,
    value: Array,
    state: PyTree,
    shared: PyTree,
    *,
    head_axes: PyTree,
) -> tuple[PyTree, Array]:
    """Self-attention in which each device has a part of the heads, and all tokens.

    Args:
        attend: What one device does.
        query: [B, L, N, D], with L cut.
        key: As `query`, perhaps with fewer heads.
        value: As `key`.
        state: Arrays [B, ...] that stay where they are, cut by heads.
        shared: Arrays [B or 1, ...], whole on every device.
        head_axes: Which axis of each array of `state` is N.

    Returns:
        The new state, and the output, [B, L, N, D], with L cut.

    Raises:
        ValueError: The mesh does not divide the heads.
    """
    sizes = sharding.mesh_sizes()
    check_heads(query.shape[2], key.shape[2], sizes)
    num_tokens = query.shape[1]
    [rows] = sharding.spec_of("B", query.shape[:1])
    cut = tuple(name for name in sharding.HEADS if name in sizes)
    tokens = PartitionSpec(
        rows,
        _TOKENS if _TOKENS in sizes else None,
        tuple(name for name in cut if name != _TOKENS) or None,
    )
    state_specs = jax.tree.map(
        lambda axis: PartitionSpec(rows, *[None] * (axis - 1), cut or None), head_axes
    )

    def row_spec(leaf: Array) -> PartitionSpec:
        return PartitionSpec(rows if leaf.shape[0] == query.shape[0] > 1 else None)

    def part(
        query: Array, key: Array, value: Array, state: PyTree, shared: PyTree
    ) -> tuple[PyTree, Array]:
        query, key, value = _to_heads(query, key, value, sizes)
        # Behind the sequence are the tokens that padded it.
        query, key, value = (x[:, :num_tokens] for x in (query, key, value))
        state, out = attend(query, key, value, state, shared)
        return state, _to_tokens(_padded(out, sizes), sizes)

    state, out = sharding.by_device(
        part,
        (tokens, tokens, tokens, state_specs, jax.tree.map(row_spec, shared)),
        (state_specs, tokens),
    )(*map(_padded, (query, key, value)), state, shared)
    return state, out[:, :num_tokens]


def _padded(x: Array, sizes: dict[str, int] | None = None) -> Array:
    """[B, L, N, D] with as many tokens as the mesh divides, zeros behind them."""
    sizes = sharding.mesh_sizes() if sizes is None else sizes
    missing = -x.shape[1] % sizes.get(_TOKENS, 1)
    return jnp.pad(x, [(0, 0), (0, missing), (0, 0), (0, 0)]) if missing else x


def _to_heads(
    query: Array, key: Array, value: Array, sizes: dict[str, int]
) -> tuple[Array, ...]:
    """A device's tokens with many heads to all tokens with few, [B, L, N, D] each."""
    if _TOKENS not in sizes:
        return query, key, value
    if query.shape != key.shape:
        return tuple(_exchanged(x, 2, 1) for x in (query, key, value))
    # One exchange for the three: [B, L, N, 3 D].
    together = _exchanged(jnp.concatenate([query, key, value], axis=-1), 2, 1)
    return tuple(jnp.split(together, 3, axis=-1))


def _to_tokens(out: Array, sizes: dict[str, int]) -> Array:
    """The way back."""
    return _exchanged(out, 1, 2) if _TOKENS in sizes else out


def _exchanged(x: Array, split: int, join: int) -> Array:
    return jax.lax.all_to_all(x, _TOKENS, split, join, tiled=True)
