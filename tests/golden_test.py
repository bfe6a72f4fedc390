"""The deterministic fill gives its own published check values."""

import numpy as np

from tests import golden


def test_hash():
    expected = [
        -0.18330183625221252,
        -0.654158731456846,
        -0.39573891973122954,
        -0.9443679787218571,
        -0.6725077824667096,
    ]
    np.testing.assert_array_equal(golden._hash(5, 1), expected)


def test_weight():
    weight = golden.fill_weight("blocks.0.self_attn.q.weight", (4, 4))
    np.testing.assert_allclose(weight.sum(), 3.248509, atol=1e-6)
    first = [-0.071443, 0.169241, -0.15861, 0.824348, 0.442909]
    np.testing.assert_allclose(weight.ravel()[:5], first, atol=1e-6)
