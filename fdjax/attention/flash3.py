"""Softmax attention by FlashAttention-3 (arXiv:2407.08608), for Hopper GPUs.

The kernel is that of the package `dew-flash-attn`, an XLA call; the extras
`fast-cuda12` and `fast-cuda13` bring it. docs/performance.md has its speed.
"""

import functools
import importlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from fdjax.attention import device, xla
from fdjax.axes import Array

_MAX_HEAD_DIM = 256  # the widest that the package's kernels are compiled for


def unsupported_reason(query: Array, key: Array, value: Array) -> str | None:
    """Why FlashAttention-3 cannot attend to these arrays here, or None."""
    if reason := device.no_kernel_reason(query, key, value):
        return reason
    capability = device.compute_capability()
    if capability != (9, 0):
        return f"it needs compute capability 9.0 (Hopper), the device has {capability}"
    if reason := device.head_reason(query, value, _MAX_HEAD_DIM):
        return reason
    package = _package()
    return package if isinstance(package, str) else None


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    length: Array | None,
    scale: float,
    nonempty: bool = False,
) -> Array:
    """Attention; see `fdjax.attention.attend`.  `length` is int32[B] or None.

    Keys and values may have fewer heads than the query. The backward pass is that of
    `fdjax.attention.xla`.
    """
    batch, num_keys = key.shape[:2]
    full = length is None
    if length is None:
        length = jnp.full((batch,), num_keys, jnp.int32)
    # A row without keys has no softmax: it reads one key, and is set to 0 below.
    out = _attend(scale, query, key, value, jnp.maximum(length, 1))
    if full or nonempty:
        return out
    # bool[B, 1, 1, 1] over [B, L, N, D]
    return jnp.where((length == 0)[:, None, None, None], jnp.zeros_like(out), out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    scale: float, query: Array, key: Array, value: Array, length: Array
) -> Array:
    return _mapped(scale)(query, key, value, length)


def _forward(
    scale: float, query: Array, key: Array, value: Array, length: Array
) -> tuple[Array, Any]:
    inputs = (query, key, value, length)
    return _attend(scale, *inputs), inputs


def _backward(scale: float, inputs: Any, cotangent: Array) -> tuple[Any, ...]:
    *arrays, length = inputs

    def reference(query: Array, key: Array, value: Array) -> Array:
        # [B, S, N / copies, D] -> [B, S, N, D]: the twin knows no shared heads. The
        # gradient of the repetition is the sum that a shared head needs.
        copies = query.shape[2] // key.shape[2]
        key, value = (jnp.repeat(x, copies, axis=2) for x in (key, value))
        return xla.attend(query, key, value, length=length, scale=scale)[0]

    return (*jax.vjp(reference, *arrays)[1](cotangent), None)


_attend.defvjp(_forward, _backward)


@functools.cache
def _mapped(scale: float) -> Any:
    """The kernel's call; `jax.vmap` makes its axis part of the batch."""
    call = jax.custom_batching.custom_vmap(functools.partial(_call, scale))

    @call.def_vmap
    def rule(size: int, batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
        # [A, B, ...] -> [A B, ...]
        merged = []
        for array, has_axis in zip(arrays, batched, strict=True):
            if not has_axis:
                array = jnp.broadcast_to(array, (size, *array.shape))
            merged.append(array.reshape(-1, *array.shape[2:]))
        out = call(*merged)
        # [A B, L, N, D] -> [A, B, L, N, D]
        return out.reshape(size, -1, *out.shape[1:]), True

    return call


def _call(scale: float, query: Array, key: Array, value: Array, length: Array) -> Array:
    """The packed form of the kernel, whose key lengths may be traced.

    It takes sequences that lie one behind the other. A session's valid keys do not:
    the unused slots of its buffer follow, and are a sequence without queries.
    """
    batch, num_queries = query.shape[:2]
    num_keys = key.shape[1]
    # Where each session's slots begin among the flat keys.  int32[B]
    first = num_keys * jnp.arange(batch, dtype=jnp.int32)
    # Ends of a session's valid keys, of its unused slots, of the next one's keys ...
    # [B, 2] -> [2 B]
    key_ends = jnp.stack([first + length, first + num_keys], axis=1).reshape(-1)
    # L, L, 2 L, 2 L, ...: every second sequence has no queries.  int32[2 B]
    query_ends = num_queries * (jnp.arange(2 * batch, dtype=jnp.int32) // 2 + 1)
    zero = jnp.zeros((1,), jnp.int32)
    package = _package()
    assert not isinstance(package, str), package
    # [B, L, N, D] -> [B L, N, D]
    flat = [x.reshape(-1, *x.shape[2:]) for x in (query, key, value)]
    out = package.flash_mha_varlen(
        *flat,
        # Cumulative lengths, which begin at 0.  int32[2 B + 1]
        jnp.concatenate([zero, query_ends]),
        num_queries,
        softmax_scale=scale,
        key_cu_seqlens=jnp.concatenate([zero, key_ends]),
        key_max_seqlen=num_keys,
    )
    # [B L, N, D] -> [B, L, N, D]
    return out.reshape(query.shape)


@functools.cache
def _package() -> ModuleType | str:
    """The package with the kernel, or why there is none."""
    try:
        return importlib.import_module("dew_flash_attn")
    except ImportError:
        return "it needs the package dew-flash-attn (extra fast-cuda13 or fast-cuda12)"
    except (OSError, AttributeError) as error:  # a library that does not load
        return f"the package dew-flash-attn does not load: {error}"
