"""Cosmos-Predict2.5: published values, whole runs of tiny networks, bad input."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.config import derive_config, from_json, to_json
from fdjax.contract.conditioner import Conditions
from fdjax.run import plugins
from fdjax_models.methods.cosmos import tiny
from fdjax_models.methods.cosmos.config import RUNNER_CONFIGS
from fdjax_models.networks.cosmos_dit.config import COSMOS_2B

T2V, I2V = "cosmos2-t2v-2b-720p", "cosmos2-i2v-2b-720p"
# As long as the chat around a prompt of the tests.
SHORT = {
    "conditioner": {"text_encoder": {"max_length": 160}},
    "diffusion_model": {"transformer": {"network": {"text_len": 160}}},
}


def _small(slug, tmp_path, **changes):
    config = derive_config(RUNNER_CONFIGS[slug].tiny(), pipeline=SHORT)
    pipeline = {"conditioner": {"negative_prompt": "bad"}}
    config = derive_config(config, pipeline=pipeline, pixel_height=32, pixel_width=48)
    options = {"prompt": "a fox", "output_dir": str(tmp_path)} | changes
    return dataclasses.replace(config, **options)


def test_published_values():
    known = plugins.known_classes()
    for slug, config in RUNNER_CONFIGS.items():
        pipeline, model = config.pipeline, config.pipeline.diffusion_model
        assert config.runner_name == pipeline.name == slug
        assert (config.pixel_height, config.pixel_width, config.fps) == (720, 1280, 16)
        assert config.total_blocks == 1
        transformer = model.transformer
        assert transformer.network == COSMOS_2B
        assert (transformer.len_t, transformer.window_size_t) == (24, 24)
        assert (transformer.guidance_scale, model.seed) == (8, 42)
        assert model.context_noise == 0
        image = slug == I2V
        assert transformer.conditional_frame_timestep == (0.1 if image else None)
        assert (pipeline.conditioner.image_encoder is not None) is image
        assert (pipeline.encoder is not None) is image
        text = pipeline.conditioner.negative_prompt
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert digest.startswith("6d7ca93077e7e4a8417947ab03266c97")
        scheduler = model.scheduler.setup()
        first, last = scheduler.timesteps[:5], scheduler.timesteps[-5:]
        np.testing.assert_array_equal(first, [995, 994, 993, 992, 990])
        np.testing.assert_array_equal(last, [49, 30, 17, 9, 0])
        assert len(scheduler.timesteps) == 37
        text = to_json(config, classes=known)
        assert from_json(text, classes=known) == config
        decoder = pipeline.decoder.setup()
        assert decoder.num_output_frames(transformer.len_t, first=True) == 93


@pytest.mark.parametrize("shape", [None, (1, 4, 6, 16), (1, 1, 4, 8, 16)])
def test_image_to_video_refuses_a_start_from_nothing(shape):
    encoder = RUNNER_CONFIGS[I2V].pipeline.encoder.setup()
    image = None if shape is None else jnp.zeros(shape)
    with pytest.raises(
        ValueError, match=r"starts from a first frame.*\(B, 1, 4, 6, 16"
    ):
        encoder.initialize_cache({}, Conditions(image_embedding=image), 4, 6)


@pytest.mark.parametrize(
    ("slug", "changes", "message"),
    [
        (I2V, {"image": ""}, "starts from an image: set image"),
        (I2V, {"image": "nowhere.png"}, "nowhere.png does not exist"),
        (T2V, {"pixel_width": 24}, "pixel_width of 16, got 32 and 24"),
        (T2V, {"prompt": ""}, "prompt"),
    ],
)
def test_bad_input(slug, changes, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _small(slug, tmp_path, **changes).setup().prepare()


def test_one_chunk_only(tmp_path):
    with pytest.raises(ValueError, match="total_blocks must be 1, got 2"):
        _small(T2V, tmp_path, total_blocks=2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"text_encoder": {"max_length": 9}}, r"must equal .* 512, got 9"),
        ({"negative_prompt": None}, "guidance_scale=8.0 needs a negative prompt"),
    ],
)
def test_parts_that_do_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        derive_config(RUNNER_CONFIGS[T2V], pipeline={"conditioner": parts})


def _conditions(seed, *_):
    keys = jax.random.split(jax.random.key(seed), 3)
    text = (1, 160, 32)
    return Conditions(
        text=jax.random.normal(keys[0], text),
        negative_text=jax.random.normal(keys[1], text),
        image_embedding=jax.random.normal(keys[2], (1, 1, 4, 6, 16)),
    )


def _initialize(pipeline, params, key):
    return pipeline.initialize_cache(
        params, conditions=_conditions(0), pixel_height=32, pixel_width=48, key=key
    )


def _case():
    changes = tiny.changes(RUNNER_CONFIGS[I2V].pipeline)
    config = derive_config(RUNNER_CONFIGS[I2V].pipeline, **changes)
    network = {"transformer": {"network": {"num_layers": 1}}}
    config = derive_config(config, diffusion_model=network)
    return testing.PipelineCase(
        # The VAE has contracts of its own.
        config=dataclasses.replace(
            derive_config(config, **SHORT), decoder=None, spatial_compression_ratio=8
        ),
        initialize=_initialize,
        num_chunks=3,
        new_conditions=lambda *_: _conditions(1),
    )


CHECKS = [
    check
    for check in testing.CHECKS
    # Those that compile what the suite over the network's streams compiles, too.
    if check.__name__ not in ("check_without_jit", "check_sessions", "check_rollout")
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(_case())
