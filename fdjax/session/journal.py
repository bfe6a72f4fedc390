"""Going back without copies: what a chunk overwrites is kept before it is made.

A chunk that is generated and committed in place overwrites one chunk's slots of the
key/value cache; the codecs' states are small and never donated. An entry of the journal
holds these, not the window: one chunk's keys and values however long the window is.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding

from fdjax.axes import Array, PyTree
from fdjax.contract.transformer import Transformer, select
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.sharding import CACHE, resolve

Shardings = tuple[Sharding | None, ...]
"""Where arrays lie; None for one that is not bound to a device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What `restore` needs to go back one chunk; never donated, so it can be shared.

    Attributes:
        scratch: From `Transformer.scratch`, in buffers of its own.
        encoder_cache: The control encoder's state before the chunk.
        decoder_cache: The decoder's state before the chunk.
        autoregressive_index: Index of the chunk.  int32[B].
        is_first: Whether the chunk has a solver of its own; see the cache.
        shardings: Where its arrays lay if they are on the host now, else None.
    """

    scratch: PyTree
    encoder_cache: PyTree
    decoder_cache: PyTree
    autoregressive_index: Array
    is_first: bool = False
    shardings: Shardings | None = None

    @property
    def arrays(self) -> tuple[PyTree, ...]:
        """All that it holds."""
        return (
            self.scratch,
            self.encoder_cache,
            self.decoder_cache,
            self.autoregressive_index,
        )

    def resolve(self) -> "Entry":
        """Itself, as a `Row` gives the entry that it stands for."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.arrays))


class Shared:
    """The entry of a whole batch, for all of its sessions.

    Attributes:
        entry: Moves to the host's memory when newer ones take its place.
    """

    def __init__(self, entry: Entry) -> None:
        self.entry = entry


@dataclasses.dataclass(frozen=True)
class Row:
    """One session's part of a batch's entry, looked up when it is needed."""

    shared: Shared
    index: int

    def resolve(self) -> Entry:
        """The entry of the session alone."""
        entry = self.shared.entry
        if entry.shardings is None:
            return _with_arrays(entry, _row(entry.arrays, np.int32(self.index)), None)
        rows = slice(self.index, self.index + 1)
        arrays = jax.tree.map(lambda leaf: leaf[rows], entry.arrays)
        return _with_arrays(entry, arrays, entry.shardings)


def take(
    pipeline: StreamInferencePipeline, cache: StreamInferencePipelineCache
) -> Entry:
    """What the next chunk will overwrite.

    Args:
        pipeline: The one that the cache is of.
        cache: Ready, before `generate`.
    """
    transformer = pipeline.diffusion_model.transformer
    return Entry(
        scratch=_take(transformer, cache.transformer_cache),
        encoder_cache=cache.encoder_cache,
        decoder_cache=cache.decoder_cache,
        autoregressive_index=cache.autoregressive_index,
        is_first=cache.is_first,
    )


def restore(
    pipeline: StreamInferencePipeline,
    cache: StreamInferencePipelineCache,
    entry: Entry,
    sessions: np.ndarray | None = None,
) -> StreamInferencePipelineCache:
    """The cache before a chunk, bit for bit but for conditions; uses `cache` up.

    Args:
        pipeline: The one that the cache is of.
        cache: Ready, one chunk later; its transformer's part is donated.
        entry: From `take`; it can be used again.
        sessions: Which sessions of a batch go back; the others stay as they are, bit
            for bit. The entry is then of the batch, or of one session. None: all.
            bool[B].
    """
    entry = to_device(entry)
    transformer = pipeline.diffusion_model.transformer
    if sessions is None:
        restored = _restore(transformer, cache.transformer_cache, entry.scratch)
        rest = entry.arrays[1:]
    else:
        newer = cache.encoder_cache, cache.decoder_cache, cache.autoregressive_index
        restored, rest = _restore_some(
            transformer, cache.transformer_cache, newer, entry.arrays, sessions
        )
    encoder_cache, decoder_cache, index = rest
    return dataclasses.replace(
        cache,
        transformer_cache=restored,
        encoder_cache=encoder_cache,
        decoder_cache=decoder_cache,
        autoregressive_index=index,
        is_first=entry.is_first,
        final_state=None,
    )


def to_host(entry: Entry) -> Entry:
    """The entry in the host's memory."""
    if entry.shardings is not None:
        return entry
    # One that is not bound to its device must not come back bound: every program
    # that it then meets would be compiled again.
    shardings = tuple(
        leaf.sharding if leaf.committed else None
        for leaf in jax.tree.leaves(entry.arrays)
    )
    return _with_arrays(entry, jax.device_get(entry.arrays), shardings)


def to_device(entry: Entry) -> Entry:
    """The entry where its arrays lay first."""
    if entry.shardings is None:
        return entry
    leaves, structure = jax.tree.flatten(entry.arrays)
    leaves = jax.device_put(leaves, list(entry.shardings))
    return _with_arrays(entry, jax.tree.unflatten(structure, leaves), None)


def placed(entry: Entry, placement: Mesh | Sharding) -> Entry:
    """An entry that was read, on the host; its arrays belong where a cache's would."""
    names = "kv", "encoder_cache", "decoder_cache", "autoregressive_index"
    parts = dict(zip(names, entry.arrays, strict=True))
    shardings = resolve(placement, parts, CACHE)
    assert shardings is not None
    where = tuple(shardings[name] for name in names)
    # A tree may be given in place of one sharding: one for each array or subtree.
    leaves = jax.tree.leaves(jax.tree.broadcast(where, entry.arrays))
    return dataclasses.replace(entry, shardings=tuple(leaves))


def checked_limits(on_device: int, on_host: int) -> tuple[int, int]:
    """How many entries are kept where.

    Raises:
        ValueError: One is negative.
    """
    limits = {"undo_on_device": on_device, "undo_on_host": on_host}
    for name, limit in limits.items():
        if limit < 0:
            raise ValueError(f"{name} must be >= 0, got {limit}; 0 keeps nothing.")
    return on_device, on_host


def copy_cache(cache: StreamInferencePipelineCache) -> StreamInferencePipelineCache:
    """A cache that shares with another one only what no call donates."""
    copied = _copy(cache.transformer_cache)
    return dataclasses.replace(cache, transformer_cache=copied)


def _with_arrays(
    entry: Entry, arrays: tuple[Any, ...], shardings: Shardings | None
) -> Entry:
    scratch, encoder_cache, decoder_cache, index = arrays
    return dataclasses.replace(
        entry,
        scratch=scratch,
        encoder_cache=encoder_cache,
        decoder_cache=decoder_cache,
        autoregressive_index=index,
        shardings=shardings,
    )


def _owned(tree: PyTree) -> PyTree:
    """Buffers of its own: a jit would hand an input that it returns on as it is."""
    return jax.tree.map(jnp.copy, tree)


_copy = jax.jit(_owned)


@functools.partial(jax.jit, static_argnums=0)
def _take(transformer: Transformer, cache: PyTree) -> PyTree:
    return _owned(transformer.scratch(cache))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _restore_some(
    transformer: Transformer,
    cache: PyTree,
    newer: PyTree,
    older: tuple[PyTree, ...],
    sessions: Array,
) -> tuple[PyTree, PyTree]:
    """The transformer's cache with some sessions gone back, and the rest of theirs."""

    def spread(leaf: Array) -> Array:
        # [1, ...] or [B, ...] -> [B, ...]
        return jnp.broadcast_to(leaf, (len(sessions), *leaf.shape[1:]))

    scratch, *rest = jax.tree.map(spread, older)
    cache = transformer.restore(cache, scratch, sessions)
    return _owned(cache), _owned(select(sessions, tuple(rest), newer))


@jax.jit
def _row(arrays: PyTree, index: Array) -> PyTree:
    # [B, ...] -> [1, ...]
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, 1), arrays
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _restore(transformer: Transformer, cache: PyTree, scratch: PyTree) -> PyTree:
    return _owned(transformer.restore(cache, scratch))
