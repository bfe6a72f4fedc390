"""The control encoder: keys, the start image, and one structure for every chunk."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax_models.methods.maze_world import sizes
from fdjax_models.methods.maze_world.encoder import NUM_FEATURES, MazeEncoderConfig

CONFIG = MazeEncoderConfig(
    image_encoder=dataclasses.replace(sizes.ENCODER, widths=(4, 4, 4))
)


@pytest.fixture(scope="module")
def encoder():
    return CONFIG.setup()


@pytest.fixture(scope="module")
def params(encoder):
    return encoder.init_params(jax.random.key(0))


def start(encoder, params, image):
    conditions = Conditions(text=jnp.zeros((2, 4, 8)), image=image)
    return encoder.initialize_cache(params, conditions, 2, 3)


def test_the_image_is_stamped_onto_the_first_chunk_only(encoder, params):
    image = jax.random.uniform(jax.random.key(1), (2, 16, 24, 3), minval=-1.0)
    cache = start(encoder, params, image)
    still = encoder.image_encoder
    _, expected = still.encode(
        params, still.initialize_cache(params, 2, 2, 3), image[:, None]
    )
    keys = jnp.ones((2, 4, 2))
    cache, first = encoder.encode(params, cache, keys)
    np.testing.assert_allclose(first.image.latent, expected, atol=1e-5)
    np.testing.assert_array_equal(first.image.mask, 1)
    cache, second = encoder.encode(params, cache, keys)
    np.testing.assert_array_equal(second.image.mask, 0)


def test_without_an_image_nothing_is_stamped(encoder, params):
    _, control = encoder.encode(params, start(encoder, params, None), None)
    np.testing.assert_array_equal(control.image.mask, 0)


def test_keys_are_features_except_in_the_first_chunk(encoder, params):
    cache = start(encoder, params, None)
    keys = jax.random.normal(jax.random.key(2), (2, 4, 2))
    cache, first = encoder.encode(params, cache, keys)
    assert first.vector_features.shape == (2, NUM_FEATURES)
    np.testing.assert_array_equal(first.vector_features[:, :-1], 0)
    np.testing.assert_array_equal(first.vector_features[:, -1], 1)
    _, second = encoder.encode(params, cache, keys)
    np.testing.assert_array_equal(second.vector_features[:, :-1], keys.reshape(2, -1))
    np.testing.assert_array_equal(second.vector_features[:, -1], 0)


def test_every_chunk_has_the_same_structure(encoder, params):
    """So that the network is compiled once."""
    cache = start(encoder, params, None)
    shapes = []
    for keys in (None, jnp.ones((4, 2)), jnp.ones((2, 4, 2))):
        cache, control = encoder.encode(params, cache, keys)
        shapes.append(jax.tree.map(lambda x: (x.shape, x.dtype), (cache, control)))
    assert shapes[0] == shapes[1] == shapes[2]


def test_controls_of_another_shape_are_refused(encoder, params):
    cache = start(encoder, params, None)
    with pytest.raises(ValueError, match=r"must have shape \(2, 4, 2\)"):
        encoder.encode(params, cache, jnp.ones((3, 2)))
