"""Live sessions as one immutable tree: its state, and batches of sessions.

Every array leaf has the sessions, B, as its first axis, so that a batch is taken apart
and put together leaf by leaf. Each session has a clock and a key of its own: sessions
of different age, prompt and seed share a batch. Only a session's first chunk is special
(a causal codec's is shorter), and that shows in the tree structure: a new session runs
its first chunk alone and joins.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array, PyTree
from fdjax.engine.checks import readable
from fdjax.engine.diffusion import FinalState

_SHOWN = 8  # sessions whose chunk is shown


@flax.struct.dataclass(kw_only=True)
class StreamInferencePipelineCache:
    """One or more live sessions: everything a rollout carries from chunk to chunk.

    Attributes:
        transformer_cache: Keys and values of the committed chunks, and conditions.
        encoder_cache: The control encoder's state; () without an encoder.
        decoder_cache: The decoder's state; () without a decoder.
        final_state: None when ready; the generated chunk when pending.
        autoregressive_index: Index of the next chunk to generate, or of the pending
            one.  int32[B].
        key: Each session's key; its chunk n uses `fold_in(key, n)`.  key[B].
        is_first: Whether the chunk is the sessions' first and has a solver of its own,
            `first_scheduler`; always False where there is none. Static.
    """

    transformer_cache: PyTree
    encoder_cache: PyTree
    decoder_cache: PyTree
    final_state: FinalState | None
    autoregressive_index: Array
    key: Array
    is_first: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def num_sessions(self) -> int:
        """B."""
        return int(self.autoregressive_index.shape[0])

    def __repr__(self) -> str:
        """Sessions, state, and each part's arrays and bytes: no values, few lines."""
        index = self.autoregressive_index
        lines = [
            f"{type(self).__name__}(sessions={getattr(index, 'shape', '?')}, "
            f"{'ready' if self.final_state is None else 'pending'}, "
            f"chunk={_value(index)}, {_summary(self)}"
        ]
        names = ("transformer_cache", "encoder_cache", "decoder_cache", "final_state")
        for name in names:
            part = getattr(self, name)
            kind = part if part is None or part == () else type(part).__name__
            lines.append(f"    {name}={kind}, {_summary(part)}")
        return "\n".join([*lines, f"    key={getattr(self.key, 'dtype', self.key)})"])


def _summary(tree: PyTree) -> str:
    """How many arrays there are in a tree, and how large they are."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return f"{len(leaves)} arrays, {size / 2**20:.1f} MiB"


def _value(index: Any) -> str:
    """The values of a small array where they are there, else what it is."""
    if not isinstance(index, jax.Array) or isinstance(index, jax.core.Tracer):
        return str(getattr(index, "dtype", "?"))
    if index.is_deleted() or not readable(index):
        return str(index.dtype)
    return str(np.asarray(index)[:_SHOWN].tolist())


def check_key(key: Any) -> None:
    """Refuses what is no typed key: numbers alias, as only their low bits count.

    Raises:
        ValueError: With the call that makes one.
    """
    typed = isinstance(key, jax.Array) and jnp.issubdtype(
        key.dtype, jax.dtypes.prng_key
    )
    if not typed:
        raise ValueError(
            f"key must be a typed key, as jax.random.key(0) makes one, got {key!r}."
        )


def session_keys(key: jax.Array, num_sessions: int) -> jax.Array:
    """One key per session.

    Args:
        key: key[], used as it is for one session and split for more; or key[B].
        num_sessions: B.

    Returns:
        key[B].

    Raises:
        ValueError: It is no typed key, or there is another number of them.
    """
    check_key(key)
    if key.shape == ():
        # key[] -> key[B]
        return key[None] if num_sessions == 1 else jax.random.split(key, num_sessions)
    if key.shape != (num_sessions,):
        raise ValueError(
            f"key must be one key, or one for each of {num_sessions} sessions, got "
            f"shape {key.shape}."
        )
    return key


def stack_caches(
    caches: Sequence[StreamInferencePipelineCache],
) -> StreamInferencePipelineCache:
    """One batch of all the sessions of some caches, in their order.

    Args:
        caches: All ready or all pending; all before their first chunk or all past it;
            of one pipeline and one size.

    Raises:
        ValueError: There are none, or two do not go together.
    """
    if not caches:
        raise ValueError("stack_caches needs at least one cache, got none.")
    for number, cache in enumerate(caches[1:], start=1):
        _check_alike(caches[0], cache, f"caches[0] and caches[{number}]")
    # [B1, ...] and [B2, ...] -> [B1 + B2, ...]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *caches)


def take_session(
    cache: StreamInferencePipelineCache, index: int
) -> StreamInferencePipelineCache:
    """Session `index` of a batch, as a batch of one, in buffers of its own.

    One program serves every index.

    Raises:
        ValueError: There is no such session.
    """
    return _take(cache, np.int32(_check_index(cache, index)))


def put_session(
    cache: StreamInferencePipelineCache,
    index: int,
    session: StreamInferencePipelineCache,
    *,
    donate: bool = False,
) -> StreamInferencePipelineCache:
    """The batch with session `index` replaced.

    Args:
        cache: A batch.
        index: Which of its sessions.
        session: A batch of one, in the same state as `cache`.
        donate: Work in place and use `cache` up.

    Raises:
        ValueError: There is no such session, or the two do not go together.
    """
    index = _check_index(cache, index)
    if session.num_sessions != 1:
        raise ValueError(
            f"put_session puts one session, got a batch of {session.num_sessions}; "
            "take_session() one of them first."
        )
    _check_alike(cache, session, "the batch and the session")
    # Only this is donated, as in every step: states of codecs are small, and shared.
    large = cache.transformer_cache
    rest = dataclasses.replace(cache, transformer_cache=())
    put = _put_in_place if donate else _put
    return put(large, rest, session, np.int32(index))


@jax.jit
def _take(
    cache: StreamInferencePipelineCache, index: Array
) -> StreamInferencePipelineCache:
    # [B, ...] -> [1, ...]
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, 1), cache
    )


def _put_any(
    large: PyTree,
    rest: StreamInferencePipelineCache,
    session: StreamInferencePipelineCache,
    index: Array,
) -> StreamInferencePipelineCache:
    def put(batch: Array, leaf: Array) -> Array:
        # [B, ...] with row `index` from [1, ...]
        return jax.lax.dynamic_update_slice_in_dim(batch, leaf, index, 0)

    cache = dataclasses.replace(rest, transformer_cache=large)
    return jax.tree.map(put, cache, session)


_put = jax.jit(_put_any)
_put_in_place = jax.jit(_put_any, donate_argnums=0)


def require(cache: StreamInferencePipelineCache, *, ready: bool, caller: str) -> None:
    """Refuses a cache in the wrong state, or one that was donated.

    Args:
        cache: The caller's cache.
        ready: The state that is needed: ready, or else pending.
        caller: Name of the refusing function, for the message.

    Raises:
        ValueError: With the cure.
    """
    if ready != (cache.final_state is None):
        state, cure = (
            ("pending", "finalize() the chunk that was generated first")
            if ready
            else ("ready", "generate() a chunk first")
        )
        raise ValueError(
            f"{caller} needs a {'ready' if ready else 'pending'} cache, got a {state} "
            f"one; {cure}."
        )
    for leaf in jax.tree.leaves((cache.transformer_cache, cache.final_state)):
        if not isinstance(leaf, jax.core.Tracer) and (
            isinstance(leaf, jax.Array) and leaf.is_deleted()
        ):
            raise ValueError(
                f"{caller} was given a cache that was used up by donate=True; keep "
                "the cache that the donating call returned, or call it with "
                "donate=False if the old one is still needed."
            )


def _check_index(cache: StreamInferencePipelineCache, index: int) -> int:
    count = cache.num_sessions
    if not -count <= index < count:
        raise ValueError(
            f"The batch holds {count} sessions, 0 to {count - 1}; got {index}."
        )
    # A negative one counts from the end.
    return index % count


def _check_alike(
    first: StreamInferencePipelineCache,
    second: StreamInferencePipelineCache,
    names: str,
) -> None:
    """Refuses two caches that cannot be in one batch, with the reason."""
    if (first.final_state is None) != (second.final_state is None):
        raise ValueError(
            f"{names} must both be ready or both pending; finalize() the pending one."
        )
    if len({jax.tree.structure(cache) for cache in (first, second)}) > 1:
        raise ValueError(
            f"{names} are of different structure: sessions of one batch must all be "
            "past their first chunk, or all before it, and have the same kind of "
            "conditions and the same size. Run a new session's first chunk alone."
        )
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True
    ):
        # All but the axis of sessions.
        if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
            raise ValueError(
                f"{names} differ in {jax.tree_util.keystr(path)}: {a.dtype}"
                f"{list(a.shape)} and {b.dtype}{list(b.shape)}; sessions of one batch "
                "have one size and one number of prompt tokens."
            )
