"""Which weights these are: a hash of their values, made where they lie.

Sums of integers, so that the hash is the same on every device and however the arrays
are cut. It tells weights apart; it is no protection against forgery.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array, Params

_SEEDS = 0x9E3779B9, 0x7F4A7C15  # two sums of 32 bits tell values apart, one may not
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_PASS = 1 << 18  # elements: the temporaries stay in a processor's cache


def fingerprints(params: Params, only: Iterable[str] | None = None) -> dict[str, str]:
    """A hash of names, shapes, types and values of every component's weights.

    Args:
        params: Weights by component.
        only: Names of the components wanted, those that are there; all by default.

    Returns:
        32 hexadecimal digits by component.
    """
    wanted = set(params if only is None else only)
    return {name: _fingerprint(params[name]) for name in sorted(wanted & set(params))}


def _fingerprint(params: Params) -> str:
    named = jax.tree_util.tree_leaves_with_path(params)
    leaves = tuple(leaf for _, leaf in named)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named
    ]
    if all(_is_on_host(leaf) for leaf in leaves):  # nothing to compile
        sums = [host_sums(np.asarray(leaf)) for leaf in leaves]
    else:
        sums = [values.tolist() for values in jax.device_get(device_sums(leaves))]
    entries = [
        [name, str(leaf.dtype), list(leaf.shape), pair]
        for name, leaf, pair in zip(names, leaves, sums, strict=True)
    ]
    return hashlib.sha256(json.dumps(sorted(entries)).encode()).hexdigest()[:32]


def _is_on_host(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(
        d.platform == "cpu" for d in leaf.devices()
    )


def host_sums(x: np.ndarray) -> list[int]:
    """Sums of mixed values and places of all elements, modulo 2^32; two of them."""
    flat = _host_bits(x)
    totals = np.zeros(2, np.uint32)
    for start in range(0, flat.size, _PASS):
        bits = flat[start : start + _PASS].astype(np.uint32)
        place = np.arange(start, start + bits.size, dtype=np.uint64).astype(np.uint32)
        for number, seed in enumerate(_SEEDS):
            mixed = _mix(bits ^ _mix(place + np.uint32(seed)))
            totals[number : number + 1] += np.sum(mixed, dtype=np.uint32)
    return totals.tolist()


def _host_bits(x: np.ndarray) -> np.ndarray:
    if _is_odd(x.dtype):
        x = x.astype(np.float32)
    width = min(x.dtype.itemsize, 4)
    return np.ascontiguousarray(x).reshape(-1).view(_UNSIGNED[width])


@jax.jit
def device_sums(leaves: tuple[Array, ...]) -> list[Array]:
    """`host_sums` of each array, where it lies.  uint32[2]."""
    return [_device_sums(leaf) for leaf in leaves]


def _device_sums(x: Array) -> Array:
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if _is_odd(x.dtype):
        x = x.astype(jnp.float32)
    unsigned = _UNSIGNED[min(jnp.dtype(x.dtype).itemsize, 4)]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    # Axis by axis: flattened, an array that is cut would be put together.
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % (1 << 32)
        steps = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place + steps * jnp.uint32(stride)
    mixed = [_mix(bits ^ _mix(place + jnp.uint32(seed))) for seed in _SEEDS]
    return jnp.stack([jnp.sum(each, dtype=jnp.uint32) for each in mixed])


def _is_odd(dtype: Any) -> bool:
    """Whether its bits fill no whole bytes; float32 holds the values of these types."""
    return dtype == np.bool_ or jax.dtypes.itemsize_bits(dtype) < 8


def _mix(h: Any) -> Any:
    """The last steps of MurmurHash3 (A. Appleby, smhasher, `fmix32`).  uint32[...]."""
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
