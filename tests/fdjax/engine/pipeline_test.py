import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.config import Component
from fdjax.contract.conditioner import Conditions
from tests import tiny

CASE = testing.PipelineCase(
    config=tiny.CONFIG,
    initialize=tiny.initialize,
    make_input=lambda index: jnp.full((2,), float(index)),
    new_conditions=lambda pipeline, params: tiny.conditions(seed=5),
)
PIPELINE = tiny.CONFIG.setup()


def replace(**changes):
    return dataclasses.replace(tiny.CONFIG, **changes).setup()


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(CASE)


def test_equal_configs_give_equal_pipelines():
    assert isinstance(PIPELINE, Component)
    assert hash(PIPELINE) == hash(tiny.CONFIG.setup())
    assert tiny.CONFIG.setup() == PIPELINE != replace(name="other")


def test_injected_noise_is_used_and_replaces_the_key():
    params = CASE.params()
    noise = jax.random.normal(jax.random.key(3), (2, 2, 12, 4))
    _, first = PIPELINE.generate(params, CASE.cache(0), CASE.input(0), noise=noise)
    _, second = PIPELINE.generate(params, CASE.cache(1), CASE.input(0), noise=noise)
    _, drawn = PIPELINE.generate(params, CASE.cache(0), CASE.input(0))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, drawn)
    _, initial = PIPELINE.generate(params, CASE.cache(0), CASE.input(0), noise=noise[0])
    assert not np.array_equal(initial, first)
    assert not np.array_equal(initial, drawn)


def test_context_noise_can_be_injected():
    params = CASE.params()
    pending, _ = PIPELINE.generate(params, CASE.cache(), CASE.input(0))
    noise = jnp.ones((2, 12, 4))
    default = PIPELINE.finalize(params, pending)
    injected = PIPELINE.finalize(params, pending, noise=noise)
    latent = 0.9 * pending.final_state.clean + 0.1 * noise
    transformer = PIPELINE.diffusion_model.transformer
    expected = transformer.commit(
        params["transformer"],
        pending.transformer_cache,
        CASE.input(0),
        latent,
        jnp.float32(100),
    )
    testing.assert_close(injected.transformer_cache.mean, expected.mean)
    assert not np.array_equal(
        default.transformer_cache.mean, injected.transformer_cache.mean
    )


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"noise must have shape \(2, 12, 4\)"):
        PIPELINE.generate(
            CASE.params(), CASE.cache(), CASE.input(0), noise=jnp.ones((2, 12, 3))
        )


def test_without_a_decoder_the_latent_is_returned():
    pipeline = replace(decoder=None, spatial_compression_ratio=2)
    params = pipeline.init_params(jax.random.key(0))
    assert sorted(params) == ["encoder", "transformer"]
    cache = tiny.initialize(pipeline, params, jax.random.key(0))
    _, latent = pipeline.generate(params, cache, CASE.input(0))
    assert latent.shape == (2, 1, 3, 4, 4)


def test_without_an_encoder_an_input_is_refused():
    pipeline = replace(encoder=None)
    params = pipeline.init_params(jax.random.key(0))
    cache = tiny.initialize(pipeline, params, jax.random.key(0))
    with pytest.raises(ValueError, match="NullEncoderConfig"):
        pipeline.generate(params, cache, CASE.input(0))
    _, video = pipeline.generate(params, cache)
    assert video.shape == (2, 1, 6, 8, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pixel_height": 7, "pixel_width": 8}, "multiples of 2, got 7 x 8"),
        ({"pixel_height": 0, "pixel_width": 8}, "positive multiples"),
        ({}, "pixel_height and pixel_width are needed"),
        ({"text": ["a"]}, "either conditions= or text="),
    ],
)
def test_initialize_cache_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        PIPELINE.initialize_cache(
            CASE.params(), conditions=tiny.conditions(), **options
        )


@pytest.mark.parametrize(
    "inputs", [{"text": ["a"]}, {"image": jnp.zeros((1, 6, 8, 3))}, {"poses": 1}]
)
def test_without_a_conditioner_its_inputs_are_refused(inputs):
    with pytest.raises(ValueError, match=f"{next(iter(inputs))} was given, but"):
        PIPELINE.encode_conditions({}, **inputs)
    assert PIPELINE.encode_conditions({}) == Conditions()


def test_missing_params_are_named():
    with pytest.raises(ValueError, match="'decoder'"):
        tiny.initialize(PIPELINE, {"transformer": {}, "encoder": {}}, None)
    with pytest.raises(ValueError, match=r"got \['vae'\]"):
        PIPELINE.load_params(only=["vae"])


def test_the_seed_of_the_config_is_the_default_key():
    config = tiny.CONFIG.diffusion_model
    seeded = replace(diffusion_model=dataclasses.replace(config, seed=5))
    cache = tiny.initialize(seeded, CASE.params(), None)
    keys = jax.random.split(jax.random.key(5), 2)  # one for each of two sessions
    np.testing.assert_array_equal(
        jax.random.key_data(cache.key), jax.random.key_data(keys)
    )


def test_context_noise_is_a_timestep():
    with pytest.raises(ValueError, match=r"\[0, 1000\], got 1001"):
        dataclasses.replace(tiny.CONFIG.diffusion_model, context_noise=1001)


@pytest.mark.parametrize(
    ("inputs", "num_chunks", "message"),
    [(None, 0, "at least 1"), ([0, 0], 3, "one entry per chunk, 3; got 2")],
)
def test_rollout_refuses(inputs, num_chunks, message):
    with pytest.raises(ValueError, match=message):
        PIPELINE.rollout(CASE.params(), CASE.cache(), inputs, num_chunks)


def test_rollout_takes_stacked_inputs_and_one_chunk():
    params = CASE.params()
    stacked = jnp.arange(6.0).reshape(3, 2)
    _, from_stack = PIPELINE.rollout(params, CASE.cache(), stacked, 3)
    _, from_list = PIPELINE.rollout(params, CASE.cache(), list(stacked), 3)
    np.testing.assert_array_equal(from_stack, from_list)
    _, one = PIPELINE.rollout(params, CASE.cache(), stacked[:1], 1)
    testing.assert_close(one, from_stack[:, :1])


def test_rollout_is_differentiable_vmappable_and_exportable():
    params = CASE.params()

    def loss(params, key):
        cache = tiny.initialize(PIPELINE, params, key)
        return PIPELINE.rollout(params, cache, [CASE.input(0)] * 3, 3)[1].mean()

    gradient = jax.grad(loss)(params, jax.random.key(0))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    keys = jax.random.split(jax.random.key(0), 2)
    losses = jax.vmap(loss, in_axes=(None, 0))(params, keys)
    testing.assert_close(losses[1], loss(params, keys[1]))
    noise = jax.random.key_data(keys[0])
    exported = jax.export.export(
        jax.jit(lambda p, data: loss(p, jax.random.wrap_key_data(data)))
    )(params, noise)
    testing.assert_close(exported.call(params, noise), losses[0])


def test_profiler_hears_of_every_stage():
    stages = []

    class Recorder:
        def record(self, stage, value):
            stages.append(stage)

    recorder = Recorder()
    cache, _ = PIPELINE.generate(
        CASE.params(), CASE.cache(), CASE.input(0), profiler=recorder
    )
    PIPELINE.finalize(CASE.params(), cache, profiler=recorder)
    assert stages == ["encode", "diffuse", "decode", "finalize"]


@pytest.mark.parametrize("key", [0, 2**40, np.zeros(2, np.uint32), None])
def test_a_number_is_no_key(key):
    """Numbers alias: 2**32 + 5 would draw the noise of 5."""
    with pytest.raises(ValueError, match=r"typed key, as jax\.random\.key\(0\)"):
        PIPELINE.init_params(key)
    if key is not None:
        with pytest.raises(ValueError, match=r"typed key, as jax\.random\.key\(0\)"):
            PIPELINE.initialize_cache({}, text=["a"], key=key)
