"""The tolerance of round-off: above what any order of summing gives, not far above."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from fdjax import testing
from fdjax.testing.tolerance import SAFETY

LENGTHS = (2, 16, 300, 4096)


def one_by_one(terms):
    """The order with the largest errors: every partial sum is rounded."""
    return np.cumsum(terms, axis=-1, dtype=np.float32)[..., -1]


def in_lanes(count):
    """As vector units do: `count` running sums, added at the end."""

    def add(terms):
        padding = -terms.shape[-1] % count
        padded = np.pad(terms, [(0, 0)] * (terms.ndim - 1) + [(0, padding)])
        lanes = padded.reshape(*terms.shape[:-1], -1, count)
        return one_by_one(one_by_one(np.moveaxis(lanes, -1, -2)))

    return add


ORDERS = {
    "one by one": one_by_one,
    "backwards": lambda terms: one_by_one(terms[..., ::-1]),
    "small first": lambda terms: one_by_one(
        np.take_along_axis(terms, np.argsort(np.abs(terms), axis=-1), axis=-1)
    ),
    "pairs": lambda terms: np.sum(terms, axis=-1, dtype=np.float32),
    **{f"{count} lanes": in_lanes(count) for count in (4, 8, 16)},
}


def worst(add, make_terms, length):
    """Largest error over seeds, in units of eps * sqrt(length) * scale."""
    ratios = []
    for seed in range(8):
        terms = make_terms(np.random.default_rng(seed), (100, length))
        exact = terms.astype(np.float64).sum(-1)
        unit = testing.tolerance(np.float32, length, np.abs(exact).max())
        error = np.abs(add(terms) - exact).max()
        ratios.append(error / (unit / SAFETY))
    return max(ratios)


def products(rng, shape):
    """Terms of dot products."""
    a, b = rng.normal(size=(2, *shape)).astype(np.float32)
    return a * b


def exponentials(rng, shape):
    """Terms of softmax sums: all of one sign, so that no error cancels."""
    return np.exp(rng.normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("make_terms", [products, exponentials])
def test_every_order_of_summing_stays_below(order, make_terms):
    ratios = [worst(ORDERS[order], make_terms, length) for length in LENGTHS]
    assert max(ratios) < SAFETY / 4, ratios


def test_it_is_not_far_above_what_summing_one_by_one_gives():
    """For every length: the law of growth is right, not the constant alone."""
    pairs = itertools.product((products, exponentials), LENGTHS)
    ratios = [worst(one_by_one, make_terms, length) for make_terms, length in pairs]
    assert min(ratios) > SAFETY / 25, ratios


@pytest.mark.parametrize("length", LENGTHS)
def test_an_error_of_ten_units_is_found(length):
    terms = products(np.random.default_rng(0), (100, length))
    exact = terms.astype(np.float64).sum(-1)
    allowed = testing.tolerance(np.float32, length)
    testing.assert_close(one_by_one(terms), exact, allowed)
    planted = exact.copy()
    planted[np.abs(exact).argmax()] *= 1 + 10 * 2.0**-23 * length**0.5
    with pytest.raises(AssertionError):
        testing.assert_close(planted.astype(np.float32), exact, allowed)


def test_it_grows_with_dtype_length_and_scale():
    base = testing.tolerance(np.float32, 1)
    assert base == 4 * 2.0**-23
    assert testing.tolerance(np.float32, 100) == pytest.approx(10 * base)
    assert testing.tolerance(np.float32, 1, scale=3.0) == pytest.approx(3 * base)
    assert testing.tolerance(ml_dtypes.bfloat16, 1) == pytest.approx(2**16 * base)
    assert testing.tolerance("float64", 1) == pytest.approx(2.0**-29 * base)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.float32, 0), "length must be >= 1, got 0"),
        ((np.float32, 1, -1.0), "scale must be finite and >= 0, got -1.0"),
        ((np.float32, 1, np.nan), "scale must be finite and >= 0, got nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        testing.tolerance(*arguments)
