"""Prompts that change in the midst of a run, on maze-world with a small network."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from fdjax.config import derive_config
from fdjax_models.methods.maze_world.config import RUNNER_CONFIGS

CONFIG = RUNNER_CONFIGS["maze-world"].tiny()
NO_DECODER = {"decoder": None, "spatial_compression_ratio": 8}


def events(*prompts, end=None):
    said = [{"frame": frame, "prompt": text} for frame, text in prompts]
    ended = [] if end is None else [{"frame": end, "end": True}]
    return json.dumps([{"frame": 0, "keys": "w"}, *said, *ended])


def latents(folder, **changes):
    """What a run makes, without a decoder: one latent frame a chunk."""
    config = derive_config(
        CONFIG,
        output_dir=str(folder),
        pipeline=NO_DECODER,
        **({"progress": False, "total_blocks": 4, "prompt": "red"} | changes),
    )
    return np.load(config.setup().run().output)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return latents(tmp_path_factory.mktemp("plain"), controls=events())


def test_a_prompt_comes_with_its_chunk(tmp_path, plain):
    """As `update_conditions` between two chunks, and nothing before it changes."""
    made = latents(tmp_path, controls=events((2, "blue night")))
    np.testing.assert_array_equal(made[:, :2], plain[:, :2])
    assert np.abs(made[:, 2] - plain[:, 2]).max() > 1e-3
    pipeline = derive_config(CONFIG.pipeline, **NO_DECODER).setup()
    params = pipeline.init_params(jax.random.key(0))
    cache = pipeline.initialize_cache(
        params, text=["red"], pixel_height=96, pixel_width=160
    )
    keys = np.zeros((1, 4, 2), np.float32)
    for chunk in range(4):
        if chunk == 2:
            conditions = pipeline.encode_conditions(params, text=["blue night"])
            cache = pipeline.update_conditions(params, cache, conditions)
        cache, latent = pipeline.generate(params, cache, keys)
        cache = pipeline.finalize(params, cache)
        keys = keys * 0 + np.float32([1, 0])
        np.testing.assert_array_equal(made[:, chunk : chunk + 1], latent)


def test_the_prompt_of_the_first_frame_is_that_of_the_run(tmp_path, plain):
    made = latents(tmp_path, prompt="blue", controls=events((0, "red")))
    np.testing.assert_array_equal(made, plain)


def test_repeated_prompts_come_again(tmp_path):
    twice = events((0, "red"), (1, "blue"), end=2)
    made = latents(tmp_path / "a", controls=twice, controls_end="repeat")
    said = events((0, "red"), (1, "blue"), (2, "red"), (3, "blue"))
    np.testing.assert_array_equal(made, latents(tmp_path / "b", controls=said))


def test_a_resumed_run_goes_on_with_them(tmp_path):
    said = {"controls": events((1, "blue"), (3, "green"))}
    whole = latents(tmp_path / "a", **said)
    first = latents(tmp_path / "b", **said, total_blocks=2, save_session=True)
    [session] = (tmp_path / "b").glob("*.session")
    rest = latents(tmp_path / "b", **said, total_blocks=2, resume=str(session))
    np.testing.assert_array_equal(np.concatenate([first, rest], 1), whole)


def test_what_is_not_reached_is_said(tmp_path, plain, caplog):
    with caplog.at_level(logging.WARNING):
        made = latents(tmp_path, controls=events((4, "blue")))
    assert "The prompt of frame 4 is not reached, the video ends at 4" in caplog.text
    np.testing.assert_array_equal(made, plain)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("stop", "end at frame 2, and the run with the chunk"),
        ("hold", "end at frame 2, and the last of them is held on"),
        ("repeat", "end at frame 2, and begin again"),
    ],
)
def test_what_comes_when_the_controls_end_is_said(caplog, end, said):
    runner = dataclasses.replace(CONFIG, controls="w*2", controls_end=end).setup()
    inputs = runner.read_inputs()
    with caplog.at_level(logging.INFO):
        runner.tell_end(inputs, 1)
        assert not caplog.records
        runner.tell_end(inputs, 2)
    assert said in caplog.text


def test_a_pipeline_without_text_has_no_prompt_to_change(tmp_path):
    config = dataclasses.replace(CONFIG, controls=events((2, "blue")), prompt="")
    config = derive_config(config, pipeline={"conditioner": None})
    with pytest.raises(ValueError, match=r"change the prompt at frame 2, and .* no"):
        config.setup().read_controls({"w": "forward"})
