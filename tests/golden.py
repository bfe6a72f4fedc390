"""Deterministic weights and inputs for comparisons with recorded outputs.

Fills tensors by a hash of their name, so that a network of another framework can be
given the same weights without a checkpoint. Values are in the published (PyTorch)
layout, C order.
"""

import math
import zlib

import numpy as np

from fdjax import testing


def _hash(count: int, seed: int) -> np.ndarray:
    """float64[count] in [-1, 1): an integer hash of 0 … count - 1."""
    mask = np.uint64(0xFFFFFFFF)
    x = np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)
    x &= mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint64(shift)
        x = (x * np.uint64(factor)) & mask
    x ^= x >> np.uint64(16)
    return x / 2.0**32 * 2 - 1


def _uniform(key: str, shape: tuple[int, ...]) -> np.ndarray:
    return _hash(math.prod(shape), zlib.crc32(key.encode())).reshape(shape)


def fill_input(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """An input or a random draw of unit variance.  float32[shape]."""
    return (_uniform(key, shape) * math.sqrt(3)).astype(np.float32)


def fill_weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of that name and published shape.  float32[shape]."""
    u = _uniform(key, shape)
    if key.endswith("gamma") or ("norm" in key and key.endswith("weight")):
        value = 1 + 0.1 * u
    elif "modulation" in key:
        value = 0.2 * u
    elif len(shape) >= 2:
        value = u * math.sqrt(3 / math.prod(shape[1:]))
    else:
        value = 0.1 * u
    return value.astype(np.float32)


def summary(array: np.ndarray) -> list[float]:
    """Sum, sum of absolute values, first five and last three elements."""
    flat = np.asarray(array, np.float64).ravel()
    return [flat.sum(), np.abs(flat).sum(), *flat[:5], *flat[-3:]]


def assert_summary(array: np.ndarray, recorded: list[float], length: int):
    """Asserts that `summary(array)` is the recorded one, given with six decimals.

    `length` is that of the longest reduction behind an element. Elements share the
    layers they come from and so the sign of their errors: sums may have all of them.
    """
    actual = summary(array)
    scale = float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
    round_off = testing.tolerance(np.float32, length, scale)
    half_a_digit = 5e-7
    for part, count in ((slice(2, None), 1), (slice(2), array.size)):
        np.testing.assert_allclose(
            actual[part], recorded[part], rtol=0, atol=half_a_digit + count * round_off
        )
