"""Comparisons of the parity tests; they remember how far apart the two sides were.

A test passes up to its tolerance. How far below it stays is not asserted, but a change
that claims to move no number is judged by it: `pytest tests/parity --worst-errors`
before and after.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fdjax import testing

_recorders: list[Callable[[float], None]] = []


def assert_close(actual: Any, desired: Any, tolerance: float = testing.TOLERANCE):
    """`fdjax.testing.assert_close` against a side that is not all zero."""
    record(actual, desired)
    assert np.any(np.asarray(desired)), "nothing to compare with: all zero"
    testing.assert_close(actual, desired, tolerance)


def assert_allclose(actual: Any, desired: Any, **options: Any):
    """`numpy.testing.assert_allclose`."""
    record(actual, desired)
    np.testing.assert_allclose(actual, desired, **options)


def record(actual: Any, desired: Any):
    """Tells the running test's recorder max |actual - desired| / max |desired|.

    The error itself, where the desired output is all zero.
    """
    actual, desired = np.asarray(actual, np.float64), np.asarray(desired, np.float64)
    error = np.abs(actual - desired).max()
    scale = np.abs(desired).max() or 1.0
    for recorder in _recorders:
        recorder(float(error / scale))


def listen(recorder: Callable[[float], None]) -> Callable[[], None]:
    """Sends errors to `recorder` until the returned function is called."""
    _recorders.append(recorder)
    return lambda: _recorders.remove(recorder)
