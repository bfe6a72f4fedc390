"""Wan 2.1: published values, and whole runs of tiny networks."""

import dataclasses
import hashlib

import numpy as np
import pytest
from PIL import Image

from fdjax.config import derive_config, from_json, to_json
from fdjax.run import media, plugins
from fdjax_models.methods.wan21.config import RUNNER_CONFIGS
from fdjax_models.methods.wan21.published import NEGATIVE_PROMPT
from tests.networks.wan_dit.tiny_methods import HEIGHT, WIDTH, shrink

T2V, I2V = "wan21-t2v-1.3b-480p", "wan21-i2v-14b-480p"


def test_published_values():
    known = plugins.known_classes()
    found = {}
    for slug, config in RUNNER_CONFIGS.items():
        model = config.pipeline.diffusion_model
        network, solver = model.transformer.network, model.scheduler
        found[slug] = (
            (network.dim, network.num_layers, network.in_dim, network.image_dim),
            model.transformer.guidance_scale,
            (solver.num_inference_steps, solver.shift),
            (config.pixel_height, config.pixel_width),
        )
        assert config.runner_name == config.pipeline.name == slug
        assert (model.transformer.len_t, model.transformer.window_size_t) == (21, 21)
        assert (model.transformer.sink_size_t, model.seed) == (0, 42)
        assert (config.fps, config.total_blocks) == (16, 1)
        assert config.pipeline.conditioner.negative_prompt == NEGATIVE_PROMPT
        assert (config.pipeline.encoder is not None) == (slug == I2V)
        assert (config.pipeline.conditioner.image_encoder is not None) == (slug == I2V)
        text = to_json(config, classes=known)
        assert from_json(text, classes=known) == config
    assert found == {
        T2V: ((1536, 30, 16, 0), 6, (50, 8), (480, 832)),
        "wan21-t2v-14b-480p": ((5120, 40, 16, 0), 5, (50, 5), (480, 832)),
        I2V: ((5120, 40, 36, 1280), 5, (40, 3), (832, 480)),
    }


def test_negative_prompt_is_the_published_one():
    assert len(NEGATIVE_PROMPT) == 137
    digest = hashlib.sha256(NEGATIVE_PROMPT.encode()).hexdigest()
    assert digest == "ce96e0324e4b54ce4b6e867f669ca520952e1a34cc116543516b1897f0d3c47e"


def _small(slug, tmp_path, **changes):
    config = shrink(RUNNER_CONFIGS[slug], tmp_path, len_t=3, **changes)
    model = config.pipeline.diffusion_model
    solver = dataclasses.replace(model.scheduler, num_inference_steps=3)
    model = dataclasses.replace(model, scheduler=solver)
    pipeline = dataclasses.replace(config.pipeline, diffusion_model=model)
    return dataclasses.replace(config, pipeline=pipeline)


def _frames(config):
    return media.read_video(config.setup().run().output)


def test_text_to_video(tmp_path):
    config = _small(T2V, tmp_path, prompt="a fox")
    video = _frames(config)
    assert video.shape == (9, HEIGHT, WIDTH, 3)
    assert video.std() > 1
    # Guidance and the negative prompt take part.
    nice = {"conditioner": {"negative_prompt": "nice"}}
    assert np.any(_frames(derive_config(config, pipeline=nice)) != video)


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_image_to_video(tmp_path, picture, caplog):
    """A picture of 50 x 40 keeps its proportions, in about as many pixels."""
    config = _small(I2V, tmp_path, prompt="wind", image=picture)
    with caplog.at_level("INFO"):
        video = _frames(config)
    assert video.shape == (9, 32, 32, 3)  # of 43 x 35, in multiples of 16
    pixels = 255 - np.asarray(Image.open(picture))
    Image.fromarray(pixels).save(tmp_path / "other.png")
    other = dataclasses.replace(config, image=str(tmp_path / "other.png"))
    assert np.any(_frames(other) != video)


def test_squeezing_a_picture_is_asked_for_and_said(tmp_path, picture, caplog):
    config = _small(I2V, tmp_path, prompt="x", image=picture, fit="stretch")
    with caplog.at_level("INFO"):
        inputs = config.setup().prepare()
    assert inputs.image.shape == (1, HEIGHT, WIDTH, 3)
    said = f"is 50 x 40, resized to {HEIGHT} x {WIDTH}: its proportions change"
    assert said in caplog.text


@pytest.mark.parametrize(
    ("slug", "changes", "message"),
    [
        (T2V, {"total_blocks": 2}, "total_blocks must be 1, got 2"),
        (I2V, {"total_blocks": 2}, "total_blocks must be 1, got 2"),
        (I2V, {}, "starts from an image: set image"),
        (I2V, {"image": "nowhere.png"}, "nowhere.png does not exist"),
        (T2V, {"pixel_width": 24}, "pixel_width of 16, got 32 and 24"),
    ],
)
def test_bad_input(slug, changes, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dataclasses.replace(_small(slug, tmp_path), **changes).setup().prepare()


def test_chunk_lengths_must_agree(tmp_path):
    config = _small(I2V, tmp_path)
    encoder = dataclasses.replace(config.pipeline.encoder, len_t=4)
    pipeline = dataclasses.replace(config.pipeline, encoder=encoder)
    with pytest.raises(ValueError, match=r"encoder\.len_t must equal .* 3, got 4"):
        dataclasses.replace(config, pipeline=pipeline)
