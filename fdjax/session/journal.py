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
from jax.sharding import Mesh, Sharding

from fdjax.axes import Array, PyTree
from fdjax.contract.transformer import Transformer
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.sharding import CACHE, resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What `restore` needs to go back one chunk; never donated, so it can be shared.

    Attributes:
        scratch: From `Transformer.scratch`, in buffers of its own.
        encoder_cache: The control encoder's state before the chunk.
        decoder_cache: The decoder's state before the chunk.
        autoregressive_index: Index of the chunk.  int32[B].
        is_first: Whether the chunk has a solver of its own; see the cache.
        shardings: Where the arrays lay if they are on the host now, else None.
    """

    scratch: PyTree
    encoder_cache: PyTree
    decoder_cache: PyTree
    autoregressive_index: Array
    is_first: bool = False
    shardings: PyTree | None = None

    @property
    def arrays(self) -> tuple[PyTree, ...]:
        """All that it holds."""
        return (
            self.scratch,
            self.encoder_cache,
            self.decoder_cache,
            self.autoregressive_index,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.arrays))


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
) -> StreamInferencePipelineCache:
    """The cache before a chunk, bit for bit but for conditions; uses `cache` up.

    Args:
        pipeline: The one that the cache is of.
        cache: Ready, one chunk later; its transformer's part is donated.
        entry: From `take`; it can be used again.
    """
    entry = to_device(entry)
    transformer = pipeline.diffusion_model.transformer
    return dataclasses.replace(
        cache,
        transformer_cache=_restore(transformer, cache.transformer_cache, entry.scratch),
        encoder_cache=entry.encoder_cache,
        decoder_cache=entry.decoder_cache,
        autoregressive_index=entry.autoregressive_index,
        is_first=entry.is_first,
        final_state=None,
    )


def to_host(entry: Entry) -> Entry:
    """The entry in the host's memory."""
    if entry.shardings is not None:
        return entry
    shardings = jax.tree.map(lambda leaf: leaf.sharding, entry.arrays)
    return _with_arrays(entry, jax.device_get(entry.arrays), shardings)


def to_device(entry: Entry) -> Entry:
    """The entry where its arrays lay first."""
    if entry.shardings is None:
        return entry
    return _with_arrays(entry, jax.device_put(entry.arrays, entry.shardings), None)


def placed(entry: Entry, placement: Mesh | Sharding) -> Entry:
    """An entry that was read, on the host; its arrays belong where a cache's would."""
    names = "kv", "encoder_cache", "decoder_cache", "autoregressive_index"
    parts = dict(zip(names, entry.arrays, strict=True))
    shardings = resolve(placement, parts, CACHE)
    assert shardings is not None
    return dataclasses.replace(
        entry, shardings=tuple(shardings[name] for name in names)
    )


def copy_cache(cache: StreamInferencePipelineCache) -> StreamInferencePipelineCache:
    """A cache that shares with another one only what no call donates."""
    copied = _copy(cache.transformer_cache)
    return dataclasses.replace(cache, transformer_cache=copied)


def _with_arrays(entry: Entry, arrays: tuple[Any, ...], shardings: PyTree) -> Entry:
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
def _restore(transformer: Transformer, cache: PyTree, scratch: PyTree) -> PyTree:
    return _owned(transformer.restore(cache, scratch))
