"""Noise of a whole chunk, and what a session's cache holds, through the public API."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdjax
from fdjax import testing
from tests import tiny
from tests.methods.template.template_test import CASES as TEMPLATE

PIPELINE = tiny.CONFIG.setup()  # two draws a chunk, and one for the commit
PARAMS = PIPELINE.init_params(jax.random.key(7))
INPUT = jnp.full((2,), 0.5)


def start(seed=0):
    return tiny.initialize(PIPELINE, PARAMS, jax.random.key(seed))


def step(cache, noise=None):
    pending, video = PIPELINE.generate(PARAMS, cache, INPUT, noise=noise)
    return PIPELINE.finalize(PARAMS, pending, noise=noise), video


def assert_same(actual, desired):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


def test_the_noise_of_a_chunk_is_what_it_draws_itself():
    cache, _ = step(start())
    noise = fdjax.chunk_noise(PIPELINE, cache)
    assert noise.shape == (3, 2, 1, 3, 4, 4)  # draws, B, T, H, W, C
    assert noise.dtype == jnp.float32
    assert_same(step(cache, noise), step(cache))
    pending, _ = PIPELINE.generate(PARAMS, cache, INPUT)
    np.testing.assert_array_equal(fdjax.chunk_noise(PIPELINE, pending), noise)


def test_noise_of_another_program_decides_and_the_key_does_not():
    noise = jax.random.normal(jax.random.key(11), (3, 2, 1, 3, 4, 4))
    first, second = (step(start(seed), noise) for seed in (0, 1))
    assert_same(first, second)
    for row in range(3):  # each of the draws is read
        other = step(start(), noise.at[row].set(0.0))
        changed = [
            not np.array_equal(a, b)
            for a, b in zip(
                (other[1], other[0].transformer_cache.mean),
                (first[1], first[0].transformer_cache.mean),
                strict=True,
            )
        ]
        assert changed == [row < 2, True]


@pytest.mark.parametrize("draws", [(), (2,), (3,)])
def test_latents_and_tokens_are_the_same_noise(draws):
    cache = start()
    noise = jax.random.normal(jax.random.key(11), (*draws, 2, 1, 3, 4, 4))
    tokens = noise.reshape(*draws, 2, 12, 4)
    by_latent = PIPELINE.generate(PARAMS, cache, INPUT, noise=noise)
    assert_same(by_latent, PIPELINE.generate(PARAMS, cache, INPUT, noise=tokens))


def test_noise_of_another_size_is_refused():
    pending, _ = PIPELINE.generate(PARAMS, start(), INPUT)
    for shape in ((2, 1, 4, 3, 4), (3, 2, 1, 4, 3, 4), (1, 3, 2, 1, 3, 4, 4)):
        noise = jnp.zeros(shape)
        with pytest.raises(ValueError, match=r"\(2, 1, 3, 4, 4\) as a latent"):
            PIPELINE.generate(PARAMS, start(), INPUT, noise=noise)
        with pytest.raises(ValueError, match=r"\(2, 1, 3, 4, 4\) as a latent"):
            PIPELINE.finalize(PARAMS, pending, noise=noise)
    with pytest.raises(ValueError, match="every draw of the chunk"):
        PIPELINE.generate(PARAMS, start(), INPUT, noise=jnp.zeros((4, 2, 1, 3, 4, 4)))


def test_the_ordered_cache_of_a_patched_network():
    case = TEMPLATE["sink"]
    pipeline, params = case.pipeline, case.params()
    cache, _ = case.run(case.cache(), range(2))
    view = fdjax.ordered_kv(pipeline, cache)
    capacity = view.positions.shape[1]
    frame = 3 * 2  # tokens of a 6 x 4 latent in patches of 2 x 2
    assert view.valid.all(axis=1).tolist() == [capacity <= 2 * frame] * 2
    held = int(view.valid[0].sum())
    assert view.positions[0, :held].tolist() == list(range(held))
    assert np.abs(view.keys[:, :held]).min(axis=(2, 3)).max() > 0
    noise = fdjax.chunk_noise(pipeline, cache)
    assert noise.shape == (2, 2, 2, 6, 4, 4)
    _, video = pipeline.generate(params, cache, case.input(2), noise=noise)
    _, drawn = pipeline.generate(params, cache, case.input(2))
    np.testing.assert_array_equal(video, drawn)
    pending, _ = pipeline.generate(params, cache, case.input(2))
    with pytest.raises(ValueError, match="ordered_kv needs a ready cache"):
        fdjax.ordered_kv(pipeline, pending)


def test_a_cache_of_another_kind_has_no_order():
    with pytest.raises(ValueError, match="StreamingDiT, got a MeanTransformer"):
        fdjax.ordered_kv(PIPELINE, start())


def test_context_noise_needs_the_last_draw_only():
    pending, _ = PIPELINE.generate(PARAMS, start(), INPUT)
    noise = jax.random.normal(jax.random.key(1), (3, 2, 1, 3, 4, 4))
    whole = PIPELINE.finalize(PARAMS, pending, noise=noise)
    alone = PIPELINE.finalize(PARAMS, pending, noise=noise[-1])
    testing.assert_close(whole.transformer_cache.mean, alone.transformer_cache.mean)
    quiet = dataclasses.replace(
        tiny.CONFIG,
        diffusion_model=dataclasses.replace(
            tiny.CONFIG.diffusion_model, context_noise=0.0
        ),
    ).setup()
    assert fdjax.chunk_noise(quiet, start()).shape == noise.shape


def test_the_clock_of_noise_goes_on_where_int32_ends():
    cache = start().replace(autoregressive_index=jnp.full((2,), 2**31 - 2, jnp.int32))
    seen = []
    for age in range(2**31 - 2, 2**31 + 2):
        noise = fdjax.chunk_noise(PIPELINE, cache)
        key = jax.random.fold_in(cache.key[0], np.uint32(age))
        solver, _ = jax.random.split(key)
        expected = jax.random.normal(solver, (2, 12, 4))
        np.testing.assert_array_equal(noise[:2, 0].reshape(2, 12, 4), expected)
        seen.append(np.asarray(noise))
        cache, _ = step(cache)
    assert all(not np.array_equal(seen[0], other) for other in seen[1:])
