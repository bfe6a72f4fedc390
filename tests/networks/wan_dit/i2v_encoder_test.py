"""The control encoder of image-to-video: chunks, mask, reuse, bad input."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checkpoint
from fdjax.contract.conditioner import Conditions
from fdjax_models.networks.wan_dit.i2v_encoder import (
    ENCODED_CHUNKS,
    ImageControlEncoderConfig,
)
from fdjax_models.networks.wan_vae import vae

VAE = vae.WanVaeEncoderConfig(
    widths=(4, 6),
    temporal=(True,),
    num_blocks=1,
    latent_mean=(0.5, -1.0, 0.25),
    latent_std=(2.0, 0.5, 1.5),
    dtype="float32",
)
LEN_T = 2
IMAGE = jax.random.uniform(jax.random.key(1), (2, 4, 6, 3), minval=-1, maxval=1)


@functools.cache
def _rollout(num_chunks=ENCODED_CHUNKS + 2):
    """Controls and caches of a rollout, with the trace count checked."""
    encoder = ImageControlEncoderConfig(encoder=VAE, len_t=LEN_T).setup()
    params = encoder.init_params(jax.random.key(0))
    encode = jax.jit(chex.assert_max_traces(encoder.encode, n=2))
    cache = encoder.initialize_cache(params, Conditions(image=IMAGE), 2, 3)
    caches, controls = [cache], []
    for _ in range(num_chunks):
        cache, control = encode(params, cache, None)
        caches.append(cache)
        controls.append(control)
    return params, caches, controls


def test_latents_are_those_of_the_first_frame_and_grey():
    params, _, controls = _rollout()
    component = VAE.setup()
    frames = 1 + 2 * (LEN_T * ENCODED_CHUNKS - 1)
    video = jnp.zeros((2, frames, 4, 6, 3)).at[:, 0].set(IMAGE)
    _, expected = jax.jit(component.encode)(params, vae.WanVaeCache(), video)
    actual = [control.latent for control in controls[:ENCODED_CHUNKS]]
    np.testing.assert_allclose(jnp.concatenate(actual, 1), expected, atol=1e-5)
    # The frame is still seen in the second chunk: zeros alone would not do.
    assert jnp.abs(actual[1] - actual[4]).max() > 1e-4


def test_later_chunks_reuse_the_last_encoded_one():
    _, caches, controls = _rollout()
    for control in controls[ENCODED_CHUNKS:]:
        np.testing.assert_array_equal(
            control.latent, controls[ENCODED_CHUNKS - 1].latent
        )
    # The VAE does not run any more: its state stays.
    chex.assert_trees_all_equal(caches[-1].vae, caches[ENCODED_CHUNKS].vae)
    leaves = zip(
        jax.tree.leaves(caches[ENCODED_CHUNKS - 1].vae),
        jax.tree.leaves(caches[ENCODED_CHUNKS].vae),
        strict=True,
    )
    assert any(jnp.any(before != after) for before, after in leaves)


def test_mask_marks_the_first_latent_frame():
    _, _, controls = _rollout()
    for number, control in enumerate(controls):
        assert control.mask.shape == control.latent.shape == (2, LEN_T, 2, 3, 3)
        np.testing.assert_array_equal(control.mask[:, 0], float(number == 0))
        np.testing.assert_array_equal(control.mask[:, 1:], 0)


def test_cache_is_steady_after_the_first_chunk():
    _, caches, _ = _rollout()
    chex.assert_trees_all_equal_shapes_and_dtypes(*caches[1:])
    assert jax.tree.structure(caches[0]) != jax.tree.structure(caches[1])
    assert [int(cache.num_chunks[0]) for cache in caches] == list(range(8))


def test_parameters_are_those_of_the_vae(tmp_path):
    encoder = ImageControlEncoderConfig(encoder=VAE, len_t=LEN_T).setup()
    assert encoder.param_shapes() == VAE.setup().param_shapes()
    path = str(tmp_path / "vae")
    stored = dataclasses.replace(VAE, checkpoint_path=path)
    params = stored.setup().init_params(jax.random.key(0))
    checkpoint.save(path, params, component=stored.setup())
    encoder = ImageControlEncoderConfig(encoder=stored, len_t=LEN_T).setup()
    assert encoder.checkpoint_path == path
    chex.assert_trees_all_equal(checkpoint.load_params(encoder), params)


def test_bad_input():
    encoder = ImageControlEncoderConfig(encoder=VAE, len_t=LEN_T).setup()
    with pytest.raises(ValueError, match="needs a first frame: give image="):
        encoder.initialize_cache({}, Conditions(), 2, 3)
    with pytest.raises(
        ValueError, match=r"must be \[B, 4, 6, 3\] .*got \(2, 6, 4, 3\)"
    ):
        encoder.initialize_cache({}, Conditions(image=IMAGE.swapaxes(1, 2)), 2, 3)
    with pytest.raises(ValueError, match="len_t must be >= 1, got 0"):
        ImageControlEncoderConfig(len_t=0)
