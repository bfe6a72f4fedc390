"""Softmax attention over a prefix of the keys, and the merging of key segments.

One function, several back ends, one file per back end:

    xla     anywhere; long keys are read in chunks
    cudnn   float16 and bfloat16 on NVIDIA GPUs
    flash3  the same on Hopper GPUs, faster, if the package with the kernel is installed
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fdjax import sharding
from fdjax.attention import cudnn, flash3, split, xla
from fdjax.axes import Array

BACKENDS = ("flash3", "cudnn", "xla")
"""Back ends of `attend`, the fastest first. FlashAttention-3 gives no log-sum-exp."""


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    length: ArrayLike | None = None,
    scale: float | None = None,
    backend: str | None = None,
    nonempty: bool = False,
) -> Array:
    """`softmax(scale * query key^T) value`, head by head.

    Every query sees the first `length` keys. The softmax is float32, whatever the
    inputs. Differentiable in query, key and value. With a mesh in force each device
    attends with a part of the queries.

    Args:
        query: [B, L, N, D].
        key: [B, S, N, D], or with fewer heads, a divisor of N: neighbouring queries
            share a key.  What lies behind `length` must be finite.
        value: As `key`.
        length: Valid keys, clipped to 0 ... S; None for all. With 0 the output is 0.
            int32[] or int32[B], traced or not.
        scale: Multiplies the scores; None for D ** -0.5.
        backend: One of `BACKENDS`, or None for the first of them that supports the
            arrays on the default device.
        nonempty: The caller knows that `length` is at least 1. Spares a GPU a pass over
            the output: 1.5 of 404 ms of a chunk of Self-Forcing on an H100.

    Returns:
        [B, L, N, D], dtype of `value`.

    Raises:
        ValueError: Shapes that do not match, an unknown back end, or one that does not
            support the arrays.
    """
    _check(query, key, value)
    if sharding.in_mesh():
        part = functools.partial(
            attend, scale=scale, backend=backend, nonempty=nonempty
        )
        length = None if length is None else jnp.asarray(length, jnp.int32)
        return split.by_queries(part, query, key, value, length)
    backend = _choose(query, key, value, backend, BACKENDS)
    length, scale = _defaults(query, key, length, scale)
    # Before `_spread`: this kernel reads shared heads as they are.
    if backend == "flash3":
        return flash3.attend(
            query, key, value, length=length, scale=scale, nonempty=nonempty
        )
    key, value = _spread(query, key, value)
    if backend == "cudnn":
        return cudnn.attend(
            query, key, value, length=length, scale=scale, nonempty=nonempty
        )
    return xla.attend(query, key, value, length=length, scale=scale)[0]


def attend_with_lse(
    query: Array,
    key: Array,
    value: Array,
    *,
    length: ArrayLike | None = None,
    scale: float | None = None,
    backend: str | None = None,
) -> tuple[Array, Array]:
    """`attend`, and the logarithm of each softmax's denominator, for `merge`.

    Returns:
        The output, [B, L, N, D], and log(sum(exp(scale * query key^T))) over the valid
        keys, float32[B, N, L]; without valid keys a finite -1e30.
    """
    _check(query, key, value)
    backend = _choose(query, key, value, backend, ("cudnn", "xla"))
    length, scale = _defaults(query, key, length, scale)
    key, value = _spread(query, key, value)
    implementation = cudnn.attend_with_lse if backend == "cudnn" else xla.attend
    return implementation(query, key, value, length=length, scale=scale)


def merge(outs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """Attention over all keys from attention over each segment of them.

    Each segment weighs `exp(lse)` (the attention states of arXiv:2501.01005). A segment
    without valid keys contributes nothing, to the gradients neither.

    Args:
        outs: Output of `attend_with_lse` for each segment.  [B, L, N, D] each.
        lses: Its log-sum-exp.  float32[B, N, L] each.

    Returns:
        The merged output, dtype of the first one, and its log-sum-exp, so that more
        segments can follow.
    """
    lse = jnp.stack(lses)  # [segment, B, N, L]
    # [B, N, L]. No gradient: a shift of all weights cancels in both results.
    maximum = jax.lax.stop_gradient(lse.max(axis=0))
    weights = jnp.exp(lse - maximum)
    # Without keys in any segment all weigh alike, and what they weigh is 0.
    total = weights.sum(axis=0)
    weights = (weights / total).swapaxes(-1, -2)[..., None]  # [segment, B, L, N, 1]
    # float32[B, L, N, D]: rounded once at the end, not segment by segment.
    out = sum(
        weight * part.astype(jnp.float32)
        for weight, part in zip(weights, outs, strict=True)
    )
    return out.astype(outs[0].dtype), maximum + jnp.log(total)


def _spread(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """Repeats keys and values that several query heads share.  [B, S, N, D] each."""
    copies = query.shape[2] // key.shape[2]
    if copies == 1:
        return key, value
    # [B, S, N / copies, D] -> [B, S, N, D]; query head n reads key n // copies.
    return jnp.repeat(key, copies, axis=2), jnp.repeat(value, copies, axis=2)


def _check(query: Array, key: Array, value: Array) -> None:
    """Shapes that belong together, or a `ValueError`."""
    # [B, L, N, D]
    batch, _, num_heads, head_dim = query.shape
    expected = (batch, key.shape[1], key.shape[2], head_dim)
    shared = key.shape[2] > 0 and num_heads % key.shape[2] == 0
    if not shared or key.shape != expected or value.shape[:-1] != expected[:-1]:
        raise ValueError(
            "key and value must be [B, S, N, D] with the batch, heads and width of the "
            f"query {query.shape}, got {key.shape} and {value.shape}."
        )


def _choose(
    query: Array,
    key: Array,
    value: Array,
    backend: str | None,
    candidates: Sequence[str],
) -> str:
    """The back end asked for, or the first that can; raises `ValueError`."""
    reasons = {"flash3": flash3.unsupported_reason, "cudnn": cudnn.unsupported_reason}
    names = candidates if backend is None else (backend,)
    for name in names:
        if name not in candidates:
            raise ValueError(
                f"backend must be one of {', '.join(candidates)}, or None, got "
                f"{name!r}."
            )
        # xla has no entry: nothing is unsupported there.
        reason = reasons[name](query, key, value) if name in reasons else None
        if reason is None:
            return name
        if backend is not None:
            raise ValueError(
                f"{name} cannot attend here: {reason}. Use backend='xla', or None to "
                "choose."
            )
    raise AssertionError("xla takes everything")


def _defaults(
    query: Array, key: Array, length: ArrayLike | None, scale: float | None
) -> tuple[Array | None, float]:
    """int32[B] lengths within the keys, and the scale."""
    if length is not None:
        # Clipped rather than refused, as it may be traced.
        length = jnp.clip(jnp.asarray(length, jnp.int32), 0, key.shape[1])
        # int32[] or int32[B] -> int32[B]
        length = jnp.broadcast_to(length, (query.shape[0],))
    return length, query.shape[-1] ** -0.5 if scale is None else scale
