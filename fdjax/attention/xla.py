"""Softmax attention in plain XLA: in one shot, or key chunk by key chunk.

Long keys are read in chunks with a running maximum and sum ("online softmax",
arXiv:2112.05682 and arXiv:2205.14135, algorithm 1), so that the score matrix exists for
one chunk at a time, in the backward pass too.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fdjax.axes import Array

EMPTY_LSE = -1e30
"""Log-sum-exp of no keys at all: finite, so that no difference of two is NaN."""

_MAX_SCORES = 2**22  # entries of the score matrix that are made at once: 16 MiB
_MIN_KEY_CHUNK = 256  # shorter chunks waste the matrix units


class _Partial(NamedTuple):
    """Attention to some of the keys, not yet normalised.

    Attributes:
        out: Values weighted by exp(score - maximum).  float32[B, N, L, D].
        maximum: float32[B, N, L, 1].
        total: Sum of exp(score - maximum).  float32[B, N, L, 1].
    """

    out: Array
    maximum: Array
    total: Array


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    length: Array | None,
    scale: float,
    key_chunk: int | None = None,
) -> tuple[Array, Array]:
    """Attention and its log-sum-exp; see `fdjax.attention.attend_with_lse`.

    Args:
        query: [B, L, N, D].
        key: [B, S, N, D].
        value: [B, S, N, D].
        length: Valid keys, a prefix of each row; None for all.  int32[B].
        scale: Multiplies the scores.
        key_chunk: Keys to read at once; chosen by the size of the scores if None. It
            need not divide S. Chunks behind the longest length are skipped.
    """
    num_keys = key.shape[1]
    if key_chunk is None:
        key_chunk = _choose_key_chunk(query.shape, num_keys)
    query = query.swapaxes(1, 2)  # [B, N, L, D]: the CPU's products are twice as fast
    read = functools.partial(_read, query, length=length, scale=scale)
    if key_chunk >= num_keys:
        partial = read(key, value, start=0)
    else:
        partial = _read_chunks(read, key, value, length, key_chunk)
    out = (partial.out / partial.total).astype(value.dtype)
    # [B, N, L, 1] -> [B, N, L]
    lse = (partial.maximum + jnp.log(partial.total))[..., 0]
    if length is not None:
        # A row without keys has weighed its masked keys alike; drop that.
        empty = (length == 0)[:, None, None]
        out = jnp.where(empty[..., None], jnp.zeros_like(out), out)
        lse = jnp.where(empty, EMPTY_LSE, lse)
    # [B, N, L, D] -> [B, L, N, D]
    return out.swapaxes(1, 2), lse


def _choose_key_chunk(query_shape: tuple[int, ...], num_keys: int) -> int:
    batch, num_queries, num_heads, _ = query_shape
    chunk = _MAX_SCORES // max(batch * num_queries * num_heads, 1)
    return min(max(chunk, _MIN_KEY_CHUNK), num_keys)


def _read(
    query: Array,
    key: Array,
    value: Array,
    *,
    start: Array | int,
    length: Array | None,
    scale: float,
) -> _Partial:
    """Attention to a stretch of keys, the first of which has the index `start`."""
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)  # [B, N, S, D]
    # float32[B, N, L, S]
    scores = scale * jnp.einsum(
        "BNLD,BNSD->BNLS", query, key, preferred_element_type=jnp.float32
    )
    if length is not None:
        valid = start + jnp.arange(key.shape[2]) < length[:, None]  # [B, S]
        # [B, 1, 1, S]: added rather than -inf, so that a row without keys is no NaN.
        scores += jnp.where(valid, 0.0, EMPTY_LSE)[:, None, None]
    # No gradient: it cancels in the output and in the log-sum-exp.
    maximum = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - maximum)
    # The weights in the values' dtype for the matrix units, the sums in float32.
    # [B, N, L, D]
    out = jnp.einsum(
        "BNLS,BNSD->BNLD",
        weights.astype(value.dtype),
        value,
        preferred_element_type=jnp.float32,
    )
    return _Partial(out, maximum, weights.sum(axis=-1, keepdims=True))


def _combine(first: _Partial, second: _Partial) -> _Partial:
    """Attention to both stretches of keys."""
    # Both parts are brought to one maximum before they are added.
    maximum = jnp.maximum(first.maximum, second.maximum)
    first_weight = jnp.exp(first.maximum - maximum)
    second_weight = jnp.exp(second.maximum - maximum)
    return _Partial(
        out=first.out * first_weight + second.out * second_weight,
        maximum=maximum,
        total=first.total * first_weight + second.total * second_weight,
    )


def _read_chunks(
    read: Callable[..., _Partial],
    key: Array,
    value: Array,
    length: Array | None,
    key_chunk: int,
) -> _Partial:
    """Reads all keys, `key_chunk` at a time and the rest at the end."""
    num_chunks, rest = divmod(key.shape[1], key_chunk)

    # The backward pass makes a chunk's scores again in place of keeping them all.
    @functools.partial(jax.checkpoint, static_argnums=2, prevent_cse=False)
    def step(partial: _Partial, start: Array, size: int) -> _Partial:
        def read_more(partial: _Partial) -> _Partial:
            # [B, size, N, D] each
            parts = (
                jax.lax.dynamic_slice_in_dim(array, start, size, axis=1)
                for array in (key, value)
            )
            return _combine(partial, read(*parts, start=start))

        if length is None:
            return read_more(partial)
        return jax.lax.cond(
            start < length.max(), read_more, lambda partial: partial, partial
        )

    def body(partial: _Partial, start: Array) -> tuple[_Partial, None]:
        return step(partial, start, key_chunk), None

    # The first chunk makes the carry: no running maximum begins at -inf.
    partial = read(key[:, :key_chunk], value[:, :key_chunk], start=0)
    starts = key_chunk * jnp.arange(1, num_chunks, dtype=jnp.int32)
    partial, _ = jax.lax.scan(body, partial, starts)
    if rest:
        partial = step(partial, jnp.int32(num_chunks * key_chunk), rest)
    return partial
