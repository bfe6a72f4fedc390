"""Batches of sessions: put together, taken apart, and refused where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.engine.cache import (
    put_session,
    session_keys,
    stack_caches,
    take_session,
)
from fdjax.engine.diffusion import split_noise
from tests import tiny

PIPELINE = tiny.CONFIG.setup()
PARAMS = PIPELINE.init_params(jax.random.key(7))


def ready(seed=0, batch=1, num_chunks=0):
    cache = PIPELINE.initialize_cache(
        PARAMS,
        conditions=tiny.conditions(seed, batch),
        pixel_height=6,
        pixel_width=8,
        key=jax.random.key(seed),
    )
    for _ in range(num_chunks):
        cache, _ = PIPELINE.generate(PARAMS, cache)
        cache = PIPELINE.finalize(PARAMS, cache)
    return cache


def assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_sessions_come_back_as_they_went_in():
    sessions = [ready(seed, num_chunks=1 + seed) for seed in range(3)]
    batch = stack_caches(sessions)
    assert batch.num_sessions == 3
    assert batch.autoregressive_index.tolist() == [1, 2, 3]
    for index, session in enumerate(sessions):
        assert_same(take_session(batch, index), session)
    assert_same(take_session(batch, -1), sessions[2])
    changed = put_session(batch, 1, sessions[0])
    assert_same(take_session(changed, 1), sessions[0])
    assert_same(take_session(changed, 2), sessions[2])
    assert_same(stack_caches([stack_caches(sessions[:2]), sessions[2]]), batch)


def test_pending_sessions_stack_too():
    pending = [
        PIPELINE.generate(PARAMS, ready(seed, num_chunks=1))[0] for seed in (0, 1)
    ]
    batch = PIPELINE.finalize(PARAMS, stack_caches(pending))
    alone = PIPELINE.finalize(PARAMS, pending[1])
    testing.assert_close(
        take_session(batch, 1).transformer_cache.mean, alone.transformer_cache.mean
    )


def test_noise_is_the_sessions_own_to_the_bit():
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (5, 7)
    draw = jax.jit(split_noise, static_argnums=(1, 2))
    together = draw(None, (3, *shape), 4, keys)
    for index in range(3):
        alone = draw(None, (1, *shape), 4, keys[index : index + 1])
        np.testing.assert_array_equal(together[0][index], alone[0][0])
        np.testing.assert_array_equal(together[1][:, index], alone[1][:, 0])


def test_keys():
    key = jax.random.key(3)
    assert_same(session_keys(key, 1), key[None])
    assert_same(session_keys(key, 4), jax.random.split(key, 4))
    given = jax.random.split(key, 2)
    assert_same(session_keys(given, 2), given)
    with pytest.raises(
        ValueError, match=r"one for each of 3 sessions, got shape \(2,\)"
    ):
        session_keys(given, 3)
    for wrong in (0, jax.random.key_data(key), None):
        with pytest.raises(ValueError, match=r"typed key, as jax\.random\.key\(0\)"):
            session_keys(wrong, 1)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="at least one cache"):
        stack_caches([])
    old, new = ready(num_chunks=1), ready()
    with pytest.raises(ValueError, match=r"past their first chunk.*chunk alone"):
        stack_caches([old, new])
    pending, _ = PIPELINE.generate(PARAMS, old)
    with pytest.raises(ValueError, match="both be ready or both pending"):
        stack_caches([old, pending])
    wide = PIPELINE.initialize_cache(
        PARAMS,
        conditions=tiny.conditions(1, 1),
        pixel_height=6,
        pixel_width=12,
    )
    with pytest.raises(ValueError, match="of different structure"):
        stack_caches([new, wide])
    with pytest.raises(ValueError, match="holds 2 sessions, 0 to 1; got 2"):
        take_session(ready(batch=2), 2)
    with pytest.raises(ValueError, match="got a batch of 2"):
        put_session(ready(batch=2), 0, ready(batch=2))


def test_a_cache_shows_itself_in_ten_lines():
    cache = ready(batch=2, num_chunks=1)
    pending = PIPELINE.generate(PARAMS, cache)[0]
    for state, shown in (("ready", cache), ("pending", pending)):
        lines = repr(shown).splitlines()
        assert len(lines) <= 10
        assert all(len(line) < 100 for line in lines)
        assert f"sessions=(2,), {state}, chunk=[1, 1], " in lines[0]
        assert str(shown) == repr(shown)
    assert "transformer_cache=Memory, 3 arrays" in repr(cache)
    seen = []
    jax.eval_shape(lambda cache: seen.append(repr(cache)), cache)  # under a trace
    PIPELINE.generate(PARAMS, cache, donate=True)
    seen.append(repr(cache))  # used up
    assert all("chunk=" in text and len(text.splitlines()) <= 10 for text in seen)
