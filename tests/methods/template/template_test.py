"""The template: contract, recorded rollouts, guidance, configs, runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from fdjax import testing
from fdjax.config import derive_config, from_json, to_json
from fdjax.contract.conditioner import Conditions
from fdjax.run import media, plugins
from fdjax_models.methods.template.config import AUTOREGRESSIVE, OFFLINE, RUNNER_CONFIGS
from tests import golden


def in_float32(config, **transformer):
    return derive_config(
        config,
        encoder={"dtype": "float32"},
        decoder={"dtype": "float32"},
        diffusion_model={"transformer": {"dtype": "float32", **transformer}},
    )


TINY = in_float32(AUTOREGRESSIVE, model_dim=64, num_heads=2, sink_size_t=2)
GUIDED = in_float32(AUTOREGRESSIVE, model_dim=64, num_heads=2, guidance_scale=3.0)


def conditions(config, seed=1, batch=2):
    text, negative = jax.random.normal(jax.random.key(seed), (2, batch, 4, 16))
    guided = config.diffusion_model.transformer.guidance_scale > 1
    return Conditions(text=text, negative_text=negative if guided else None)


def initialize(pipeline, params, key):
    return pipeline.initialize_cache(
        params,
        conditions=conditions(pipeline.config),
        pixel_height=6,
        pixel_width=4,
        key=key,
    )


def make_input(index):
    return jax.random.normal(jax.random.key(100 + index), (2, 2, 6, 4, 8))


CASES = {
    name: testing.PipelineCase(
        config=config,
        initialize=initialize,
        make_input=make_input,
        new_conditions=lambda pipeline, params: conditions(pipeline.config, seed=9),
    )
    for name, config in {"sink": TINY, "guided": GUIDED}.items()
}


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, id=f"{name}-{check.__name__}")
        for name in CASES
        for check in testing.CHECKS
        # Operation by operation takes long: once for this network.
        if name == "sink" or check.__name__ != "check_without_jit"
    ],
)
def test_contract(name, check):
    check(CASES[name])


# Recorded rollouts of NVIDIA/flashdreams, recipes/template, in float32, with weights
# and inputs of tests/golden.py: sum, sum of absolutes, first five and last three values
# of the video in the order B C T H W.

_TORCH_NAMES = {
    "encoder": "encoder.proj",
    "decoder": "decoder.proj",
    "timestep_in": "timestep_encoder.0",
    "timestep_out": "timestep_encoder.2",
    "ffn_in": "ffn.0",
    "ffn_out": "ffn.2",
}
_NETWORK = "diffusion_model.transformer.network."


def golden_params(pipeline):
    shapes = jax.eval_shape(pipeline.init_params, jax.random.key(0))
    params = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        part, name = path[0], path[-2]
        prefix = _NETWORK + _TORCH_NAMES.get(name, name)
        shape = leaf.shape[::-1]
        if part != "transformer":
            prefix = _TORCH_NAMES[part]
            shape += (1, 1, 1) * (len(shape) == 2)
        suffix = "bias" if path[-1] == "bias" else "weight"
        weight = golden.fill_weight(f"{prefix}.{suffix}", shape)
        params[path] = jnp.asarray(weight.reshape(leaf.shape[::-1]).T)
    return traverse_util.unflatten_dict(params)


@functools.cache
def golden_rollout(name, guidance_scale, num_chunks):
    config = {"autoregressive": AUTOREGRESSIVE, "offline": OFFLINE}[name]
    config = in_float32(config, guidance_scale=guidance_scale)
    pipeline, len_t = config.setup(), config.diffusion_model.transformer.len_t
    params = golden_params(pipeline)
    negative = golden.fill_input("negctx", (1, 4, 16)) if guidance_scale > 1 else None
    cache = pipeline.initialize_cache(
        params,
        conditions=Conditions(
            text=jnp.asarray(golden.fill_input("context", (1, 4, 16))),
            negative_text=None if negative is None else jnp.asarray(negative),
        ),
        pixel_height=6,
        pixel_width=4,
    )
    num_draws = pipeline.diffusion_model.scheduler.num_draws
    shape = pipeline.diffusion_model.transformer.latent_shape(cache.transformer_cache)
    videos = []
    for index in range(num_chunks):
        control = golden.fill_input(f"control{index}", (1, 8, len_t, 6, 4))
        draws = [
            golden.fill_input(f"draw{index * num_draws + draw}", shape)
            for draw in range(1, num_draws + 1)
        ]
        cache, video = pipeline.generate(
            params,
            cache,
            jnp.asarray(control.transpose(0, 2, 3, 4, 1)),
            noise=jnp.asarray(np.stack(draws)),
        )
        cache = pipeline.finalize(params, cache)
        videos.append(np.asarray(video).transpose(0, 4, 1, 2, 3))
    return videos


@pytest.mark.parametrize(
    ("run", "index", "expected"),
    [
        (
            ("autoregressive", 1.0, 4),
            0,
            "745.499451 82020.326645 -79.348694 1608.592651 -81.887085 1607.604858 "
            "253.4944 155.079132 -1043.064575 153.4888",
        ),
        (
            ("autoregressive", 1.0, 4),
            3,
            "753.014965 81951.526081 -75.544525 1605.890137 -78.656189 1602.7229 "
            "255.071411 155.316849 -1039.93335 154.850494",
        ),
        (
            ("autoregressive", 3.0, 3),
            2,
            "762.893185 81939.491741 -78.587219 1603.5625 -80.761749 1605.750488 "
            "254.342255 157.365417 -1042.228882 154.756271",
        ),
        (
            ("offline", 1.0, 1),
            0,
            "-1159.686190 392555.665602 75.586975 1926.326416 72.767456 1923.716309 "
            "205.525574 91.510361 -1305.876465 89.219894",
        ),
    ],
)
def test_recorded_rollouts(run, index, expected):
    video = golden_rollout(*run)[index]
    expected = np.array(expected.split(), float)
    actual = golden.summary(video)
    # Float32 sums in another order; the values are large, as the raw timestep goes
    # into a linear layer.
    scale = np.abs(video).max()
    np.testing.assert_allclose(actual[1:], expected[1:], rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-5 * expected[1])


# Bad values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"len_t": 3}, "must be multiples of 2, the patch size in time, got"),
        ({"window_size_t": 0}, "window must be >= 1, got 0"),
        ({"sink_size_t": -2}, "sink must be >= 0"),
        ({"len_t": 4, "window_size_t": 2}, "make the window 2 or more"),
        ({"num_heads": 3}, "num_heads must divide model_dim, got 3 and 128"),
    ],
)
def test_sizes_that_cannot_work_are_refused_by_the_config(changes, message):
    with pytest.raises(ValueError, match=message):
        derive_config(AUTOREGRESSIVE, diffusion_model={"transformer": changes})


def test_missing_conditions_are_named():
    pipeline = GUIDED.setup()
    params = CASES["guided"].params()
    text = conditions(TINY).text
    size = {"pixel_height": 6, "pixel_width": 4}
    with pytest.raises(ValueError, match="negative_text missing"):
        pipeline.initialize_cache(params, conditions=Conditions(text=text), **size)
    with pytest.raises(ValueError, match="text missing"):
        pipeline.initialize_cache(params, conditions=Conditions(), **size)
    with pytest.raises(ValueError, match=r"multiples of 2 and 2.*got 6 x 5"):
        pipeline.initialize_cache(
            params, conditions=conditions(GUIDED), pixel_height=6, pixel_width=5
        )


def test_a_size_that_does_not_fit_is_found_before_weights_are_read(tmp_path):
    config = dataclasses.replace(
        RUNNER_CONFIGS["template-offline"],
        output_dir=tmp_path,
        random_weights=False,  # there is no checkpoint to read
        pixel_width=5,
    )
    with pytest.raises(ValueError, match=r"multiples of 2 and 2.*got 6 x 5"):
        config.setup().run()


# The method


def test_the_configs_of_the_method():
    known = plugins.known_classes()
    for slug, config in RUNNER_CONFIGS.items():
        assert config.runner_name == config.pipeline.name == slug
        assert config.description
        text = to_json(config, classes=known)
        assert from_json(text, classes=known) == config


@pytest.mark.parametrize(
    ("slug", "changes", "frames"),
    [
        ("template-autoregressive", {}, 4),
        ("template-autoregressive", {"pipeline": {"encoder": None}}, 4),
        ("template-offline", {}, 8),
    ],
)
def test_runs(tmp_path, slug, changes, frames):
    config = dataclasses.replace(RUNNER_CONFIGS[slug], output_dir=tmp_path)
    result = derive_config(config, **changes).setup().run()
    assert media.read_video(result.output).shape == (frames, 6, 4, 3)
