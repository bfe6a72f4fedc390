"""Random parameters: statistics, kinds of leaves, seeds, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.nn.random_params import hashed_uniform, random_params


def _shape(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


SHAPES = {
    "a": {"kernel": _shape(3, 3, 50, 60), "bias": _shape(60), "scale": _shape(7)},
    "b": {"embedding": _shape(200, 64, dtype=jnp.bfloat16)},
    "c": {"kernel": _shape(3, 3, 50, 60)},
}


def test_kinds_of_leaves():
    params = random_params(SHAPES, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), SHAPES
    )
    np.testing.assert_array_equal(params["a"]["bias"], 0)
    np.testing.assert_array_equal(params["a"]["scale"], 1)
    kernel = params["a"]["kernel"]
    np.testing.assert_allclose(jnp.var(kernel), 1 / 450, rtol=0.02)
    embedding = params["b"]["embedding"].astype(jnp.float32)
    np.testing.assert_allclose(jnp.var(embedding), 1 / 64, rtol=0.05)


def test_leaves_and_keys_differ():
    params = random_params(SHAPES, jax.random.key(0))
    again = random_params(SHAPES, jax.random.key(0))
    other = random_params(SHAPES, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    one = params["a"]["kernel"].ravel()
    for two in (params["c"]["kernel"].ravel(), other["a"]["kernel"].ravel()):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.02


def test_uniform_and_uncorrelated():
    x = np.asarray(hashed_uniform((64, 1000), jnp.uint32(5)))
    assert x.min() >= -1
    assert x.max() < 1
    np.testing.assert_allclose(np.histogram(x, 10)[0], 6400, rtol=0.05)
    for lag in (1, 2, 3, 16, 1000):
        flat = x.ravel()
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 0.02


def test_too_many_elements():
    with pytest.raises(ValueError, match=r"at most 2\^32"):
        jax.eval_shape(lambda: hashed_uniform((1 << 17, 1 << 16), jnp.uint32(0)))
