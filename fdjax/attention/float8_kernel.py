"""The kernel of `fdjax.attention.float8`, for Hopper GPUs: Pallas, Mosaic.

Two groups of warps compute, each for 64 queries, and a third one loads. While one of
the two multiplies, the other one takes its softmax (the schedule of FlashAttention-3,
arXiv:2407.08608, section 3.1); both then change places.

The weights of the softmax come out of the first product in the registers of other
threads than those from which the second product reads 8-bit factors. Nothing is moved:
within 16 keys a thread has the weights of keys 2 b, 2 b + 1, 8 + 2 b and 9 + 2 b, and
hands them over as numbers 4 b to 4 b + 3, so that values must lie in this order. It is
the order of the columns of cached values.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from fdjax.axes import Array

GROUP = 16
"""Slots whose values change places among each other."""

SLOTS = 128
"""The number of slots of a cache must be a multiple of this."""

HEAD_DIM = 128
"""Head width that the kernel is written for."""

_QUERIES = 64  # rows of one product of a group of warps
_KEYS = 256  # keys of one step
_STEPS = 2  # of keys and values that are loaded ahead: 128 KiB
_GROUPS = 2  # of warps that compute
# Weights are at most 2**8: beyond 2**-9 of that a number of 8 bits has no digits.
_SHIFT = 8.0


def column(slot: Any) -> Any:
    """The column of cached values that holds a slot's."""
    half, pair, bit = slot // 8 % 2, slot // 2 % 4, slot % 2
    return slot // GROUP * GROUP + 4 * pair + 2 * half + bit


def slot(column: Any) -> Any:
    """The slot whose values a column holds; the inverse of `column`."""
    pair, half, bit = column // 4 % 4, column // 2 % 2, column % 2
    return column // GROUP * GROUP + 8 * half + 2 * pair + bit


@functools.partial(jax.jit, static_argnames="scale")
def attend(
    query: Array, keys: Array, values: Array, length: Array, scale: float
) -> Array:
    """Softmax attention to a prefix of the slots.

    A jitted function of its own, so that the layers of a network share one lowering,
    which takes 1.7 s.

    Args:
        query: float8_e4m3fn[B, L, N, D].
        keys: float8_e4m3fn[B, S, N, D]; S is a multiple of `SLOTS`.
        values: Columns in the order of `column`.  float8_e4m3fn[B, N, D, S].
        length: Valid slots, 1 to S.  int32[B].
        scale: Multiplies the scores.

    Returns:
        bfloat16[B, L, N, D].
    """
    # Not at the top: it asks for a GPU's libraries.
    from jax.experimental.pallas import mosaic_gpu as gpu

    num_queries = query.shape[1]
    # Rows are loaded and stored eight at a time.
    if missing := -num_queries % 8:
        query = jnp.pad(query, [(0, 0), (0, missing), (0, 0), (0, 0)])
    batch, _, num_heads, _ = query.shape
    tiles = -(-num_queries // (_GROUPS * _QUERIES))
    out = gpu.kernel(
        functools.partial(_allocate, scale=scale),
        out_type=jax.ShapeDtypeStruct(query.shape, jnp.bfloat16),
        grid=(num_heads, tiles, batch),
        grid_names=("head", "tile", "batch"),
        num_threads=_GROUPS + 1,
        thread_name="group",
        compiler_params=gpu.CompilerParams(approx_math=True),
    )(query, keys, values, length)
    return out[:, :num_queries]


def _allocate(*refs: Any, scale: float) -> None:
    """Shared memory and barriers of one block, and the work of its three groups."""
    from jax.experimental.pallas import mosaic_gpu as gpu

    def tile(*shape: int, dtype: Any = jnp.float8_e4m3fn) -> Any:
        # Rows of 128 bytes, swizzled, eight to a tile: what the products read.
        width = 128 // jnp.dtype(dtype).itemsize
        tiling = gpu.TilingTransform((8, width)), gpu.SwizzleTransform(128)
        return gpu.SMEM(shape, dtype, transforms=tiling)

    def loaded(count: int) -> Any:
        return gpu.Barrier(num_barriers=count)

    used = gpu.Barrier(num_arrivals=_GROUPS, num_barriers=_STEPS)
    pl.run_scoped(
        functools.partial(_block, refs, scale),
        tile(_GROUPS, _QUERIES, HEAD_DIM),
        tile(_STEPS, _KEYS, HEAD_DIM),
        tile(_STEPS, HEAD_DIM, _KEYS),
        tile(_GROUPS, _QUERIES, HEAD_DIM, dtype=jnp.bfloat16),
        (loaded(_GROUPS), loaded(_STEPS), loaded(_STEPS)),
        (used, used),
        gpu.Barrier(num_arrivals=_GROUPS),
        collective_axes="group",
    )


def _block(
    refs: Any,
    scale: float,
    query_tile: Any,
    key_tiles: Any,
    value_tiles: Any,
    out_tile: Any,
    loaded: Any,
    used: Any,
    schedule: Any,
) -> None:
    """The work of one group of warps for 128 queries of one head."""
    from jax.experimental.pallas import mosaic_gpu as gpu

    query_ref, key_ref, value_ref, length_ref, out_ref = refs
    batch, head, tile = (lax.axis_index(name) for name in ("batch", "head", "tile"))
    group = lax.axis_index("group")
    length = length_ref[batch]
    num_steps = lax.div(length + (_KEYS - 1), jnp.int32(_KEYS))

    @pl.when(group < _GROUPS)
    def _compute() -> None:
        gpu.set_max_registers(240, action="increase")
        rows = pl.ds((tile * _GROUPS + group) * _QUERIES, _QUERIES)
        queries = query_tile.at[group]
        # Queries behind the last one are loaded as zeros, and not stored.
        gpu.copy_gmem_to_smem(
            query_ref.at[batch, rows, head], queries, loaded[0].at[group]
        )
        gpu.barrier_wait(loaded[0].at[group])
        out = _softmax_products(
            queries,
            (key_tiles, value_tiles),
            loaded[1:],
            used,
            schedule,
            group,
            length,
            scale * math.log2(math.e),
        )
        out_tile.at[group][...] = out.astype(jnp.bfloat16)
        gpu.commit_smem()
        gpu.copy_smem_to_gmem(out_tile.at[group], out_ref.at[batch, rows, head])
        gpu.wait_smem_to_gmem(0)

    @pl.when(group == _GROUPS)
    def _load() -> None:
        gpu.set_max_registers(24, action="decrease")

        @pl.loop(0, num_steps)
        def _(step: Any) -> None:
            some, place = pl.ds(step * _KEYS, _KEYS), lax.rem(step, jnp.int32(_STEPS))
            sources = key_ref.at[batch, some, head], value_ref.at[batch, head, :, some]
            for source, tiles, full, free in zip(
                sources, (key_tiles, value_tiles), loaded[1:], used, strict=True
            ):

                @pl.when(step >= _STEPS)
                def _(free: Any = free) -> None:
                    gpu.barrier_wait(free.at[place])

                gpu.copy_gmem_to_smem(source, tiles.at[place], full.at[place])


def _softmax_products(
    queries: Any,
    tiles: Any,
    loaded: Any,
    used: Any,
    schedule: Any,
    group: Any,
    length: Any,
    scale: float,
) -> Any:
    """The attention of 64 queries; `scale` is for powers of two.  float32[64, D]."""
    from jax.experimental.pallas import mosaic_gpu as gpu

    (key_tiles, value_tiles), (keys_loaded, values_loaded) = tiles, loaded
    keys_used, values_used = used
    by_row = gpu.Layout.WGMMA.reduce(1)
    num_steps = lax.div(length + (_KEYS - 1), jnp.int32(_KEYS))

    def change_places() -> None:
        gpu.barrier_arrive(schedule)
        gpu.barrier_wait(schedule)

    def step(index: Any, carry: Any, masked: bool) -> Any:
        out, maximum, total = carry
        place = lax.rem(index, jnp.int32(_STEPS))

        def scores_of(product: Any) -> Any:
            # [64, D] @ [D, keys]
            keys = key_tiles.at[place].T
            gpu.wgmma(product, queries, keys)
            change_places()
            return product[...]

        shape = (_QUERIES, _KEYS)
        scores = pl.run_scoped(scores_of, gpu.ACC(shape, jnp.float32))
        gpu.barrier_arrive(keys_used.at[place])
        if masked:
            key = gpu.broadcasted_iota(jnp.int32, shape, 1, layout=gpu.Layout.WGMMA)
            # Finite: a difference of two infinities is NaN.
            scores = jnp.where(key + index * _KEYS < length, scores, -1e30)
        # The running softmax (arXiv:2205.14135, algorithm 1), in powers of two.
        new = jnp.maximum(maximum, scores.max(axis=1) * scale)
        shrink = jnp.exp2(maximum - new)
        shift = lax.broadcast_in_dim(new - _SHIFT, shape, [0])
        weights = jnp.exp2(scores * scale - shift)
        out *= lax.broadcast_in_dim(shrink, out.shape, [0])
        total = total * shrink + weights.sum(axis=1)
        weights = _as_factor(weights)
        out, total, new, weights = lax.optimization_barrier((out, total, new, weights))
        gpu.barrier_arrive(schedule)
        gpu.barrier_wait(values_loaded.at[place])
        gpu.barrier_wait(schedule)

        def add(product: Any) -> None:
            # [64, keys] @ [keys, D]
            values = value_tiles.at[place].T
            gpu.wgmma(product, weights, values)

            @pl.when(index + 1 < num_steps)
            def _() -> None:
                following = lax.rem(index + 1, jnp.int32(_STEPS))
                gpu.barrier_wait(keys_loaded.at[following])

        out = pl.run_state(add)(gpu.ACC.init(out))
        gpu.barrier_arrive(values_used.at[place])
        return out, new, total

    def filled(shape: tuple[int, ...], value: float, layout: Any) -> Any:
        return gpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

    carry = (
        filled((_QUERIES, HEAD_DIM), 0.0, gpu.Layout.WGMMA),
        filled((_QUERIES,), -math.inf, by_row),
        filled((_QUERIES,), 0.0, by_row),
    )
    gpu.barrier_wait(keys_loaded.at[0])
    # The second group begins when the first one has its scores.
    pl.when(group == 1)(change_places)
    whole = lax.div(length, jnp.int32(_KEYS))
    carry = lax.fori_loop(0, whole, functools.partial(step, masked=False), carry)
    # A last step that is valid in part, if there is one.
    out, _, total = lax.fori_loop(
        whole, num_steps, functools.partial(step, masked=True), carry
    )
    pl.when(group == 0)(change_places)
    return out / lax.broadcast_in_dim(total, out.shape, [0])


def _as_factor(weights: Any) -> Any:
    """Rounds to 8 bits, and calls the registers those of a left factor.

    See the head of this file for the order of keys that it makes.
    """
    from jax.experimental.mosaic import gpu as mosaic
    from jax.experimental.pallas import mosaic_gpu as gpu
    from jaxlib.mlir import ir

    shape = weights.shape
    layout = mosaic.WGMMA_LAYOUT_8BIT

    @gpu.inline_mgpu(
        arg_types=(gpu.Layout.WGMMA,),
        return_type=gpu.ShapeDtypeStruct(
            shape, jnp.float8_e4m3fn, layout=gpu.Layout.WGMMA_8BIT
        ),
    )
    def convert(context: Any, array: Any) -> Any:
        del context
        # Registers of two numbers, [1, keys / 8, ...], to those of four.
        pairs = array.astype(ir.Float8E4M3FNType.get()).registers
        fours = np.empty(layout.registers_shape(shape), dtype=object)
        for index in np.ndindex(fours.shape):
            row, position, *rest = index
            both = [pairs[(row, 2 * position + half, *rest)] for half in range(2)]
            fours[index] = mosaic.utils.vector_concat(both)
        return mosaic.FragmentedArray(_registers=fours, _layout=layout, _is_signed=None)

    return convert(weights)
