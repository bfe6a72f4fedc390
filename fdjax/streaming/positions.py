"""Where the tokens of a chunk and the cached keys are: rotary tables of a chunk."""

import functools

import jax.numpy as jnp

from fdjax.attention.kv_cache import KVLayout
from fdjax.attention.rope import RopeTable, pad_table, rope_table
from fdjax.axes import Array
from fdjax.streaming import rows
from fdjax.streaming.cache import StreamCache
from fdjax.streaming.layout import StreamLayout


def timelines(layout: StreamLayout) -> list[KVLayout]:
    """The frame layouts whose positions differ, in order of first use."""
    return list(dict.fromkeys(timeline(layout, each) for each in layout.frames))


def timeline(layout: StreamLayout, frames: KVLayout) -> KVLayout:
    """Which of them a layer has."""
    # Absolute time is the same in every layer.
    return frames if layout.cache_relative else layout.frames[0]


def chunk_table(
    layout: StreamLayout, cache: StreamCache, frames: KVLayout
) -> RopeTable:
    """Rotation of the chunk's tokens, in rows.

    Absolute time, without bound; or in cache-relative mode the rank among the visible
    frames.
    """
    count = cache.kv.num_chunks
    if layout.cache_relative:
        ranks = frames.chunk_positions(frames.ring_tokens(count))
        return _table(layout, cache, ranks)
    positions = jnp.arange(frames.chunk, dtype=jnp.int32)
    return _table(layout, cache, positions, offset=count, stride=frames.chunk)


def rotated_keys(layout: StreamLayout, cache: StreamCache) -> tuple[Array, ...]:
    """Cached keys at their present positions, in rows; () at absolute time."""
    if not (layout.has_memory and layout.cache_relative):
        return ()
    num_chunks = cache.kv.num_chunks

    # Layers of one layout share a table.
    @functools.cache
    def table(frames: KVLayout, num_slots: int) -> RopeTable:
        count = frames.ring_tokens(num_chunks)
        # What is padding is zero, whatever its angle.
        return pad_table(_table(layout, cache, frames.slot_positions(count)), num_slots)

    return tuple(
        layout.rope.rotate(keys, table(frames, keys.shape[1]))
        for keys, frames in zip(
            rows.fold(layout, cache.kv.keys), layout.frames, strict=True
        )
    )


def _table(
    layout: StreamLayout,
    cache: StreamCache,
    positions: Array,
    offset: Array | None = None,
    stride: int = 1,
) -> RopeTable:
    """[1, L, D / 2] for one session, else [B G V, L, D / 2]."""
    grid = layout.grid(cache.height, cache.width)
    angles = layout.rope.angles(positions, *grid, offset=offset, stride=stride)
    if cache.batch > 1:
        # [B, L, D / 2] -> [B G V, L, D / 2]
        angles = rows.spread(layout, angles)
    return rope_table(angles, layout.dtype)
