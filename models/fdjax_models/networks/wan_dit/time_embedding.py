"""Sinusoidal timestep features, exact to float32 for traced timesteps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array

_HIGH_BITS = np.uint32(0xFFFFF000)  # sign, exponent and 11 mantissa bits of a float32


class TokenTimesteps(NamedTuple):
    """Timesteps of a chunk whose tokens have one of two.

    Attributes:
        values: Both, in [0, 1000].  float32[B, 2].
        second: Which tokens have the second one.  bool[B, L].
    """

    values: Array
    second: Array


def sinusoid(timestep: Array, dim: int) -> Array:
    """Cosines, then sines, of the timestep at geometric frequencies.

    Frequencies 10000^(-j / (dim / 2)); wan/modules/model.py of Wan-Video/Wan2.1, which
    takes float64. A float32 product of 1000 and a frequency is off by 4e-5 radians, so
    the angle is reduced to a fraction of a turn in pieces whose products are exact
    (Cody and Waite, Software Manual for the Elementary Functions, 1980). The error is
    below 1e-6 for timesteps up to 1000, whatever the compiler fuses.

    Args:
        timestep: In [0, 1000], any shape.  float32[...].
        dim: Number of features, even.

    Returns:
        float32[..., dim].
    """
    # float32[dim / 2] each; their sum is the frequency in turns per unit of time
    high, middle, low = _turns_per_unit(dim // 2)
    # [..., 1]
    t = timestep.astype(jnp.float32)[..., None]
    t_high = _keep_high_bits(t)
    t_low = t - t_high
    whole = t_high * high  # exact: 12 bits by 12 bits
    rest = (t_high * middle + t_low * high) + (t_low * middle + t * low)
    # [..., dim / 2]. Whole turns leave while they are exact; the fraction that stays
    # is at most half a turn and a little, where float32 is fine enough.
    turns = (whole - jnp.round(whole)) + rest
    angle = turns * np.float32(2 * np.pi)
    # [..., dim], cosines first
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def _keep_high_bits(x: Array) -> Array:
    """Clears the lower 12 mantissa bits of float32 values."""
    # By bits, as a compiler may simplify arithmetic that comes to the same.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(bits & _HIGH_BITS, jnp.float32)


@functools.cache
def _turns_per_unit(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The frequencies in turns, as a sum of three float32, the first two of 12 bits."""
    # float64[count]
    exact = 10000.0 ** (-np.arange(count) / count) / (2 * np.pi)
    high = (exact.astype(np.float32).view(np.uint32) & _HIGH_BITS).view(np.float32)
    rest = exact - high
    middle = (rest.astype(np.float32).view(np.uint32) & _HIGH_BITS).view(np.float32)
    return high, middle, (rest - middle).astype(np.float32)
