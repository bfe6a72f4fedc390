"""Softmax attention by cuDNN, for float16 and bfloat16 on NVIDIA GPUs.

A length does not cost a mask: cuDNN skips the blocks of keys behind it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fdjax.attention import device, xla
from fdjax.axes import Array


def unsupported_reason(query: Array, key: Array, value: Array) -> str | None:
    """Why cuDNN cannot attend to these arrays on the default device, or None.

    The limits are those that jax checks when it lowers the call
    (jax/_src/cudnn/fused_attention_stablehlo.py, `check_is_flash_attention`).
    """
    if reason := device.no_kernel_reason(query, key, value):
        return reason
    capability = device.compute_capability() or ()
    if capability < (8, 0):
        return f"it needs compute capability 8.0, the device has {capability}"
    return device.head_reason(query, value, 256 if capability >= (9, 0) else 128)


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    length: Array | None,
    scale: float,
    nonempty: bool = False,
) -> Array:
    """Attention; see `fdjax.attention.attend`.  `length` is int32[B] or None."""
    if query.shape[1] % 2 or key.shape[1] % 2:
        # jax's own backward pass refuses odd lengths (the check that means a bias).
        return attend_with_lse(query, key, value, length=length, scale=scale)[0]
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=scale,
        # A row without keys has no softmax: it reads one, and is set to 0 below.
        key_value_seq_lengths=None if length is None else jnp.maximum(length, 1),
        implementation="cudnn",
    )
    if length is None or nonempty:
        return out
    # bool[B, 1, 1, 1] over [B, L, N, D]
    return jnp.where((length == 0)[:, None, None, None], jnp.zeros_like(out), out)


def attend_with_lse(
    query: Array, key: Array, value: Array, *, length: Array | None, scale: float
) -> tuple[Array, Array]:
    """Attention and log-sum-exp; see `fdjax.attention.attend_with_lse`.

    `length` is int32[B] or None. The backward pass is that of `fdjax.attention.xla`.
    """
    out, lse = _attend_with_lse(scale, query, key, value, length)
    if length is not None:
        # bool[B, 1, 1] over the log-sum-exp [B, N, L]; one axis more for the output.
        empty = (length == 0)[:, None, None]
        out = jnp.where(empty[..., None], jnp.zeros_like(out), out)
        lse = jnp.where(empty, xla.EMPTY_LSE, lse)
    return out, lse


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_with_lse(
    scale: float, query: Array, key: Array, value: Array, length: Array | None
) -> tuple[Array, Array]:
    # jax.nn.dot_product_attention(return_residual=True) rounds the log-sum-exp to the
    # dtype of the output, which moves merged weights by percents; this does not.
    from jax._src.cudnn import fused_attention_stablehlo as fused

    batch, num_queries = query.shape[:2]
    if length is None:
        mask_type, query_length, key_length = fused.MaskType.NO_MASK, None, None
    else:
        mask_type = fused.MaskType.PADDING
        # This mask counts both sides: all L queries are real.
        query_length = jnp.full((batch,), num_queries, jnp.int32)
        key_length = jnp.maximum(length, 1)
    return fused.dot_product_attention(
        query,
        key,
        value,
        q_seqlen=query_length,
        kv_seqlen=key_length,
        scale=scale,
        mask_type=mask_type,
        return_residual=True,
    )


def _forward(
    scale: float, query: Array, key: Array, value: Array, length: Array | None
) -> tuple[Any, Any]:
    inputs = (query, key, value, length)
    return _attend_with_lse(scale, *inputs), inputs


def _backward(scale: float, inputs: Any, cotangents: Any) -> tuple[Any, ...]:
    # jax's own rule drops the gradient of the log-sum-exp, which merging needs.
    *arrays, length = inputs
    if length is not None:
        length = jnp.maximum(length, 1)
    attend = functools.partial(xla.attend, length=length, scale=scale)
    gradients = jax.vjp(attend, *arrays)[1](cotangents)
    return (*gradients, None)


_attend_with_lse.defvjp(_forward, _backward)
