"""What the runner reads, and what it refuses before it reads any weight."""

import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from fdjax.config import derive_config
from fdjax_models.methods.maze_world import controls, text
from fdjax_models.methods.maze_world.config import RUNNER_CONFIGS
from fdjax_models.methods.maze_world.runner import start_image

CONFIG = RUNNER_CONFIGS["maze-world"]


def read(tmp_path, **changes):
    config = derive_config(CONFIG, output_dir=str(tmp_path), **changes)
    return config.setup().prepare()


def test_default_inputs(tmp_path):
    inputs = read(tmp_path)
    assert inputs.image is None
    assert inputs.text == (CONFIG.prompt,)
    assert all(np.shape(keys) == (1, 4, 2) for keys in inputs.controls)


def test_a_seed_starts_in_a_maze_of_the_prompts_style(tmp_path):
    red, blue = (
        read(tmp_path, maze_seed=1, prompt=f"{colour} brick at day").image
        for colour in ("red", "blue")
    )
    assert red.shape == (1, 96, 160, 3)
    assert red[..., 0].mean() > red[..., 2].mean()
    assert blue[..., 2].mean() > blue[..., 0].mean()
    again = read(tmp_path, maze_seed=1, prompt="red brick at day").image
    np.testing.assert_array_equal(red, again)


def test_the_start_view_is_few_programs(caplog):
    """Small ones are too quick to be kept on disk, and are compiled in every run."""
    jax.clear_caches()
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        start_image(4, text.tokenize_prompt("red brick"))
    compiled = [r for r in caplog.records if "Finished XLA comp" in r.getMessage()]
    assert 1 <= len(compiled) <= 6


def test_controls_of_any_length_take_no_room(tmp_path):
    for count in (10**9, 99999999999999):
        inputs = read(tmp_path, controls=f"w*{count}", total_blocks=1)
        assert len(inputs.controls) == 1 + -(-count // 4)
        np.testing.assert_array_equal(inputs.controls[10**8], [[[1, 0]] * 4])


def test_frames_are_labelled_by_the_keys_held(tmp_path):
    label = read(tmp_path, controls="w*2 wa*3 .*2 d").label
    shown = [label(0, 0), *(label(chunk, n) for chunk in (1, 2) for n in range(4))]
    assert shown == ["", "w", "w", "wa", "wa", "wa", "", "", "d"]


def test_an_image_of_another_size_is_resized_with_a_note(tmp_path, caplog):
    path = tmp_path / "start.png"
    Image.fromarray(np.full((50, 70, 3), 200, np.uint8)).save(path)
    with caplog.at_level(logging.INFO):
        image = read(tmp_path, image=str(path)).image
    assert image.shape == (1, 96, 160, 3)
    assert "resized to 96 x 160" in caplog.text


def test_proportions_are_kept_where_that_is_asked_for(tmp_path):
    path = tmp_path / "start.png"
    Image.fromarray(np.full((96, 120, 3), 200, np.uint8)).save(path)
    whole, cut, barred = (
        read(tmp_path, image=str(path), fit=fit).image[0, 0, :, 0]
        for fit in ("stretch", "crop", "pad")
    )
    assert whole.min() == cut.min() == barred.max() > 0.5
    assert (barred == -1).sum() == 40


def test_controls_from_a_file(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text("w*4 a*4\n")
    keys = read(tmp_path, controls=str(path)).controls
    assert len(keys) == 3
    np.testing.assert_array_equal(keys[2][0], [[0, 1]] * 4)


@pytest.mark.parametrize(
    ("end", "after"), [("hold", [[0, 1]] * 4), ("repeat", [[1, 0]] * 2 + [[0, 1]] * 2)]
)
def test_what_comes_when_the_controls_end(tmp_path, end, after):
    config = derive_config(
        CONFIG, output_dir=str(tmp_path), controls="w*2 a*2", total_blocks=9
    )
    assert config.setup().num_chunks(config.setup().prepare()) == 2
    runner = derive_config(config, controls_end=end).setup()
    inputs = runner.prepare()
    assert runner.num_chunks(inputs) == 9
    np.testing.assert_array_equal(inputs.controls[2][0], after)
    assert inputs.label(8, 3) == "a"


def test_events_and_arrays_are_controls_too(tmp_path):
    given = [{"frame": 0, "keys": "wa"}, {"frame": 4, "keys": ""}]
    events = json.dumps([*given, {"frame": 8, "end": True}])
    np.save(tmp_path / "keys.npy", np.float32([[1, 1]] * 4 + [[0, -0.5]] * 4))
    keys = read(tmp_path, controls=events)
    array = read(tmp_path, controls=str(tmp_path / "keys.npy"))
    assert len(keys.controls) == len(array.controls) == 3
    for inputs, last in ((keys, [0, 0]), (array, [0, -0.5])):
        np.testing.assert_array_equal(inputs.controls[1][0], [[1, 1]] * 4)
        np.testing.assert_array_equal(inputs.controls[2][0], [last] * 4)
    assert (array.label(1, 0), array.label(2, 0)) == ("wa", "d")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 3)),
        np.zeros(4),
        np.full((4, 2), np.nan),
        np.full((4, 2), 1.5),
        np.array([["w", "a"]]),
    ],
)
def test_arrays_that_are_no_keys(tmp_path, array):
    np.save(tmp_path / "keys.npy", array)
    with pytest.raises(ValueError, match=r"\(forward, turn left\) in \[-1, 1\]"):
        read(tmp_path, controls=str(tmp_path / "keys.npy"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"controls": "w*4 q*2"}, ValueError, "'q'"),
        ({"controls": "missing.txt"}, FileNotFoundError, "missing.txt"),
        ({"image": "missing.png"}, FileNotFoundError, "missing.png"),
        ({"fit": "keep"}, ValueError, "stretch, crop or pad"),
        ({"fit": "croq"}, TypeError, "fit must be one of 'stretch', 'crop'"),
        ({"prompt": ""}, ValueError, "prompt"),
        ({"pixel_height": 104}, ValueError, "96 and 160"),
        ({"maze_seed": 2**32}, TypeError, "maze_seed must be an integer from 0 to"),
        ({"maze_seed": -1}, TypeError, "maze_seed must be an integer from 0 to"),
        ({"image": "a.png", "maze_seed": 3}, ValueError, "not both"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        read(tmp_path, **changes)


def test_keys_of_a_live_session_are_those_of_a_run():
    runner = RUNNER_CONFIGS["maze-world"].setup()
    steering = runner.steering(runner.read_inputs())
    assert steering.actions.keys() == controls.KEYS.keys()
    for keys in ("", "w", "wa", "sd", "ws"):
        _, control = steering.control(None, keys)
        held = controls.read_keys(f"{keys or '.'}*8")
        wanted = controls.chunk_controls(held, 1)[None]
        np.testing.assert_array_equal(control, wanted)
        assert control.dtype == wanted.dtype
