from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.attention.turns import angles_after, turns

TWO_PI = 2 * Decimal("3.14159265358979323846264338327950288419716939937510")
RADIANS = np.array([1.0, 0.6579332, 0.0123, 1.519911e-4, 3.25], np.float32)
COUNTS = [0, 1, 2, 1000, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]


def exact(count, times=1):
    """count * times * radians less its whole turns, by decimal arithmetic."""
    with localcontext(prec=60):
        angles = [count * times * Decimal(float(x)) / TWO_PI for x in RADIANS]
        return [float((x - x.to_integral_value()) * TWO_PI) for x in angles]


@pytest.mark.parametrize("times", [1, 3, 21])
@pytest.mark.parametrize("count", COUNTS)
def test_angles_are_exact_at_any_age(count, times):
    step = turns(RADIANS, times)
    actual = jax.jit(lambda count: angles_after(count, step))(jnp.uint32(count))
    difference = np.asarray(actual, np.float64) - exact(count, times)
    difference -= 2 * np.pi * np.round(difference / (2 * np.pi))
    assert np.abs(difference).max() < 1e-6
    assert np.abs(actual).max() <= np.float32(np.pi)


def test_a_batch_and_an_int32_that_has_wrapped():
    step = turns(RADIANS)
    together = angles_after(jnp.array(COUNTS, jnp.uint32), step)
    assert together.shape == (len(COUNTS), len(RADIANS))
    for row, count in zip(together, COUNTS, strict=True):
        np.testing.assert_array_equal(row, angles_after(np.uint32(count), step))
    wrapped = angles_after(jnp.int32(-1), step)
    np.testing.assert_array_equal(wrapped, angles_after(np.uint32(2**32 - 1), step))
