"""The key/value cache in the order of time, for people who compare or look."""

from typing import NamedTuple

import numpy as np

from fdjax.attention.kv_cache import KVLayout
from fdjax.streaming import storage
from fdjax.streaming.cache import StreamCache
from fdjax.streaming.layout import StreamLayout


class OrderedKV(NamedTuple):
    """What one layer holds of every session: sink first, then oldest to newest.

    S is sink and window in tokens. A session that holds fewer has them in front, and
    zeros behind.

    Attributes:
        keys: As they are cached: turned to absolute time, or not turned at all in
            cache-relative mode.  [B, S, N, D], with guidance [B, G, S, N, D].
        values: As `keys`.
        positions: Number of the token since the session's start: frame * rows *
            columns + row * columns + column; -1 where there is none.  int64[B, S].
        valid: Whether there is a token.  bool[B, S].
    """

    keys: np.ndarray
    values: np.ndarray
    positions: np.ndarray
    valid: np.ndarray


def ordered_kv(layout: StreamLayout, cache: StreamCache, layer: int = 0) -> OrderedKV:
    """The tokens that the last committed chunk saw, itself included, in their order.

    The buffers are rings that are never moved; this copies one to the host and sorts
    it. It is what the reference's shifted cache shows (NVIDIA/flashdreams,
    core/attention/kvcache.py, `cached_k` and `cached_v`).

    Args:
        layout: Of the network.
        cache: The transformer's cache; within a chunk that works in place the oldest
            slots already hold the new tokens.
        layer: Which layer; negative ones count from the end.

    Raises:
        ValueError: There is no such layer, or a chunk sees only itself and nothing is
            kept.
    """
    if not layout.has_memory:
        raise ValueError(
            "There is no key/value cache to look at: every chunk sees itself alone. "
            "Make window_size_t larger than len_t, or give it a sink."
        )
    if not -layout.num_layers <= layer < layout.num_layers:
        raise ValueError(
            f"layer must be below {layout.num_layers}, the number of layers, got "
            f"{layer}."
        )
    tokens = layout.tokens(cache.height, cache.width)[layer]
    chunks = np.asarray(cache.kv.num_chunks).tolist()
    # [B, S]; -1 where a young session has no token
    positions = np.full((len(chunks), tokens.capacity), -1, np.int64)
    slots = np.zeros_like(positions)
    for row, count in enumerate(chunks):
        held = _held(tokens, count * tokens.chunk)
        positions[row, : len(held)] = held
        # The slot that the cache gave the token; in int64, where no age is too great.
        ring = tokens.sink + (held - tokens.sink) % tokens.window
        slots[row, : len(held)] = np.where(held < tokens.sink, held, ring)
    valid = positions >= 0

    def sort(buffer: np.ndarray) -> np.ndarray:
        # [B, (G,) S, N, D]
        axes = (1,) if buffer.ndim == 5 else ()
        # [B, S] -> [B, (1,) S, 1, 1]
        index = np.expand_dims(slots, (*axes, -2, -1))
        seen = np.expand_dims(valid, (*axes, -2, -1))
        taken = np.take_along_axis(buffer, index, axis=-3)
        return np.where(seen, taken, np.zeros((), buffer.dtype))

    return OrderedKV(
        keys=sort(np.asarray(cache.kv.keys[layer])),
        values=sort(storage.values_by_slot(np.asarray(cache.kv.values[layer]))),
        positions=positions,
        valid=valid,
    )


def _held(layout: KVLayout, total: int) -> np.ndarray:
    """Positions of the tokens in view after `total` of them, ascending.  int64[n]."""
    sink = np.arange(min(layout.sink, total), dtype=np.int64)
    # The ring's part begins behind the sink, however young the session is.
    oldest = max(layout.sink, total - layout.window)
    return np.concatenate([sink, np.arange(oldest, total, dtype=np.int64)])
