"""Wan 2.2 TI2V-5B: published values, runs with and without an image, contracts."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from fdjax import testing
from fdjax.config import derive_config, from_json, to_json
from fdjax.contract.conditioner import Conditions
from fdjax.run import media, plugins
from fdjax_models.methods.wan21 import published
from fdjax_models.methods.wan22.config import RUNNER_CONFIGS, TI2V_5B
from fdjax_models.methods.wan22.runner import without_image
from fdjax_models.networks.taehv.decoder import TAEW2_2
from fdjax_models.networks.wan_dit.image_conditioning import FirstFrameTimestep, Stamp
from fdjax_models.networks.wan_vae.vae import WAN21_VAE_ENCODER
from tests.networks.wan_dit.tiny_methods import shrink

SLUG = "wan22-ti2v-5b"
HEIGHT, WIDTH, LEN_T = 32, 64, 2


def test_published_values():
    config, known = RUNNER_CONFIGS[SLUG], plugins.known_classes()
    transformer = config.pipeline.diffusion_model.transformer
    network = transformer.network
    assert config.runner_name == config.pipeline.name == SLUG
    assert (network.dim, network.ffn_dim, network.num_heads) == (3072, 14336, 24)
    assert (network.num_layers, network.in_dim, network.out_dim) == (30, 48, 48)
    assert (transformer.len_t, transformer.window_size_t) == (21, 21)
    assert (transformer.sink_size_t, transformer.guidance_scale) == (0, 5)
    assert transformer.image_conditioning == (Stamp(), FirstFrameTimestep(value=0))
    solver = config.pipeline.diffusion_model.scheduler
    assert (solver.num_inference_steps, solver.shift) == (40, 5)
    # Of the reference's solver, torch float32: first, second, middle and last.
    steps = solver.setup().steps.timestep
    assert [int(steps[i]) for i in (0, 1, 20, 39)] == [999, 994, 833, 113]
    assert (config.pixel_height, config.pixel_width, config.fps) == (640, 1280, 16)
    assert config.pipeline.conditioner.negative_prompt == published.NEGATIVE_PROMPT
    assert config.pipeline.conditioner.image_encoder is None
    assert config.pipeline.setup().latent_size(640, 1280) == (40, 80)
    assert from_json(to_json(config, classes=known), classes=known) == config


def test_without_an_image_nothing_of_it_is_left():
    text_only = without_image(TI2V_5B)
    assert text_only.encoder is None
    assert text_only.diffusion_model.transformer.image_conditioning == ()
    assert "encoder" not in text_only.setup().components
    with_image = dataclasses.replace(RUNNER_CONFIGS[SLUG], image="a.png")
    assert with_image.resolved_pipeline == TI2V_5B
    assert RUNNER_CONFIGS[SLUG].resolved_pipeline == text_only
    assert RUNNER_CONFIGS[SLUG].tiny().image == ""
    assert with_image.tiny().image == "a.png"


def _small(tmp_path, **changes):
    config = shrink(RUNNER_CONFIGS[SLUG], tmp_path / "out", len_t=LEN_T, prompt="sea")
    solver = {"diffusion_model": {"scheduler": {"num_inference_steps": 2}}}
    sizes = {"pixel_height": HEIGHT, "pixel_width": WIDTH, "progress": False}
    return dataclasses.replace(
        derive_config(config, pipeline=solver), **sizes | changes
    )


def _picture(path, seed, shape=(HEIGHT, WIDTH)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def _video(config, chunks):
    chunks.clear()
    result = config.setup().run()
    assert result.num_frames == len(media.read_video(result.output)) == 5
    return np.concatenate(chunks)


def test_with_an_image_and_without(tmp_path, chunks):
    """The image's frame is its own whatever the noise; text alone draws every frame."""
    image = _picture(tmp_path / "a.png", 0)
    first, second = (
        _video(_small(tmp_path, image=image, seed=seed), chunks) for seed in (0, 1)
    )
    assert first.shape == (5, HEIGHT, WIDTH, 3)
    testing.assert_close(first[0], second[0], 1e-6)
    assert np.abs(first[1:] - second[1:]).max() > 0.01
    other = _video(_small(tmp_path, image=_picture(tmp_path / "b.png", 1)), chunks)
    assert np.abs(first[0] - other[0]).max() > 0.01
    drawn = [_video(_small(tmp_path, seed=seed), chunks)[0] for seed in (0, 1)]
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01


def test_a_picture_is_squeezed_unless_its_proportions_are_asked_for(tmp_path):
    image = _picture(tmp_path / "tall.png", 0, (90, 50))
    config = _small(tmp_path, image=image)
    assert config.setup().prepare().image.shape == (1, HEIGHT, WIDTH, 3)
    tall = dataclasses.replace(config, fit="keep", pixel_height=64)
    assert tall.setup().prepare().image.shape == (1, 64, 32, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_blocks": 2}, "one chunk: total_blocks must be 1, got 2"),
        ({"image": "nowhere.png"}, "nowhere.png does not exist"),
        ({"pixel_height": 48}, "pixel_height must be a multiple of 32 .* got 48 and"),
        ({"pixel_width": 80}, "pixel_width of 32, got 32 and 80"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_bad_input(changes, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _small(tmp_path, **changes).setup().prepare()


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (
            {"decoder": published.VAE_DECODER},
            r"pipeline\.decoder has latents of 16 channels and the transformer of 48",
        ),
        (
            {"encoder": {"encoder": WAN21_VAE_ENCODER}},
            r"pipeline\.encoder\.encoder has latents of 16 channels",
        ),
        ({"encoder": None}, r"takes an image, so that pipeline\.encoder must be"),
        ({"encoder": {"len_t": 5}}, r"encoder\.len_t must equal .* 21, got 5"),
    ],
)
def test_parts_that_do_not_fit(pipeline, message):
    with pytest.raises(ValueError, match=message):
        derive_config(RUNNER_CONFIGS[SLUG], pipeline=pipeline)


# Contracts: text to video without control is Wan 2.1's, whose contracts hold.
CHECKS = [check for check in testing.CHECKS if check.__name__ != "check_without_jit"]


def _conditions(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    text, negative = (jax.random.normal(key, (2, 8, 24)) for key in keys[:2])
    image = jax.random.uniform(keys[2], (2, HEIGHT, WIDTH, 3), minval=-1.0)
    return Conditions(text=text, negative_text=negative, image=image)


def _case():
    config = derive_config(
        shrink(RUNNER_CONFIGS[SLUG], "outputs", len_t=LEN_T).pipeline,
        conditioner=None,
        # The autoencoder's own tests cover it; the smaller decoder compiles faster.
        decoder=dataclasses.replace(
            TAEW2_2, widths=(8, 8, 8, 8), blocks_per_stage=1, dtype="float32"
        ),
        diffusion_model={
            "transformer": {"network": {"num_layers": 1}},
            "scheduler": {"num_inference_steps": 2},
        },
    )
    return testing.PipelineCase(
        config=config,
        initialize=lambda pipeline, params, key: pipeline.initialize_cache(
            params, conditions=_conditions(1), key=key
        ),
        remembers=False,  # a chunk is a whole video
        new_conditions=lambda pipeline, params: _conditions(2),
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(_case())
