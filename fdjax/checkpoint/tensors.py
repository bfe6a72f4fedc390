"""Tensors that are read when asked for, and the checks on their values."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import ml_dtypes
import numpy as np

_CHUNK = 1 << 20  # elements per pass: the temporaries of a check stay in the cache

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}

_EXPONENT_BITS: dict[np.dtype, tuple[Any, int]] = {
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    np.dtype(np.float32): (np.uint32, 0x7F800000),
    np.dtype(np.float64): (np.uint64, 0x7FF0000000000000),
}

QUANTISED = (
    "must be floating: this is a quantised checkpoint, or another file; take the "
    "published float weights"
)
"""What is said of integers, booleans and complex numbers in the place of floats."""


def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """One tensor of a checkpoint: its shape and dtype now, its values on request.

    Attributes:
        shape: Sizes, outermost first.
        dtype: Element type as stored; bfloat16 and the float8 types are `ml_dtypes`.
        load: Returns the values. What it returns may be a read-only view of the file.
        release: Called when the values will not be needed for a while: lets the pages
            of a memory-mapped file go. Views stay valid.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray] = dataclasses.field(repr=False)
    release: Callable[[], None] = dataclasses.field(default=_nothing, repr=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Returns the values: `dtype[shape]`, possibly a read-only view of the file."""
        array = self.load()
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(
                f"the file holds {array.dtype}{list(array.shape)} where its header "
                f"promises {self.dtype}{list(self.shape)}"
            )
        return array


def as_lazy(value: Any) -> LazyTensor:
    """Wraps an array; a `LazyTensor` is returned as it is.

    An array on a device comes to the host when it is read.
    """
    if isinstance(value, LazyTensor):
        return value
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    return LazyTensor(array.shape, np.dtype(array.dtype), lambda: np.asarray(array))


def common_dtype(dtypes: Iterable[Any]) -> np.dtype:
    """A type that holds the values of all `dtypes`, by the rules of JAX."""
    found = {np.dtype(dtype) for dtype in dtypes}
    if len(found) == 1:
        return found.pop()
    try:
        return np.dtype(
            functools.reduce(jax.numpy.promote_types, sorted(found, key=str))
        )
    except jax.dtypes.TypePromotionError:  # 8-bit floats join with nothing by these
        return np.dtype(np.float32)


def is_float(dtype: Any) -> bool:
    """Whether `dtype` is a real floating type, the `ml_dtypes` ones included."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return True
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return dtype.kind == "V"


def is_finite(array: np.ndarray) -> bool:
    """Whether no element is NaN or infinite.

    Looks at the exponent bits, so that it needs no conversion and little memory.
    """
    if not is_float(array.dtype):
        return True
    if array.dtype not in _EXPONENT_BITS:
        return bool(np.isfinite(array.astype(np.float32)).all())
    unsigned, exponent = _EXPONENT_BITS[array.dtype]
    # Element order does not matter: take the view that is contiguous in memory.
    bits = array.T if array.flags.f_contiguous else np.ascontiguousarray(array)
    bits = bits.view(unsigned).reshape(-1)
    mask = unsigned(exponent)
    return not any(
        bool(((bits[start : start + _CHUNK] & mask) == mask).any())
        for start in range(0, bits.size, _CHUNK)
    )


def cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Casts to `dtype`, where it is another; None changes nothing."""
    if dtype is None or array.dtype == np.dtype(dtype):
        return array
    with np.errstate(over="ignore"):  # an overflow is reported by name: `is_finite`
        return array.astype(dtype)


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array in C order; a copy only if it is not already, possibly read-only.

    Transposes through JAX's CPU client, which is about five times as fast as numpy
    (5120x8192 bfloat16 on one core of a shared machine: 0.24 against 0.05 GB/s).
    """
    if array.flags.c_contiguous:
        return array
    unsigned = _UNSIGNED.get(array.dtype.itemsize)
    if unsigned is None:  # 64-bit values would be narrowed by JAX
        return np.ascontiguousarray(array)
    bits = jax.device_put(array.view(unsigned), jax.devices("cpu")[0])
    return np.asarray(bits).view(array.dtype)
