"""What is typed: prompts and keys."""

import logging

import numpy as np
import pytest

from fdjax_models.methods.maze_world import controls, text


def test_word_order_case_and_other_words_for_the_same_do_not_matter():
    expected = text.tokenize_prompt("red brick maze at dusk")
    for prompt in ("Dusk: BRICK, red!", "a red maze of bricks in the evening"):
        np.testing.assert_array_equal(text.tokenize_prompt(prompt), expected)


def test_unsaid_slots_have_their_own_token():
    tokens = text.tokenize_prompt("maze")
    np.testing.assert_array_equal(tokens, text.UNSAID_IDS)
    assert (text.tokenize_prompt("foggy") != tokens).sum() == 1


def test_every_style_has_a_prompt_that_names_it(caplog):
    for style in np.ndindex(*(len(words) for words in text.SLOTS.values())):
        tokens = text.tokenize_prompt(text.prompt_of_style(style))
        expected = text.tokens_of_style(np.array(style))
        if style[-1] == 0:  # clear air goes without saying
            expected[-1] = text.UNSAID_IDS[-1]
        np.testing.assert_array_equal(tokens, expected)
    assert not caplog.records


def test_unknown_and_contradicting_words_are_named_with_the_vocabulary(caplog):
    with caplog.at_level(logging.WARNING):
        tokens = text.tokenize_prompt("red or blue gothic brick")
    message = caplog.text
    assert "'gothic'" in message
    assert "'blue'" in message
    assert text.describe_vocabulary() in message
    np.testing.assert_array_equal(tokens, text.tokenize_prompt("red brick"))


def test_controls_are_keys_and_frames():
    keys = controls.parse_controls("w*2 wa*3 .\n D")
    expected = [[1, 0]] * 2 + [[1, 1]] * 3 + [[0, 0], [0, -1]]
    np.testing.assert_array_equal(keys, expected)
    np.testing.assert_array_equal(controls.parse_controls("ws*2"), [[0, 0]] * 2)


def test_an_unknown_key_is_refused_with_the_list_of_keys():
    with pytest.raises(ValueError, match=r"'x'.*w \(forward\)"):
        controls.parse_controls("w*3 ax*2")


@pytest.mark.parametrize("wrong", ["", "   ", "w*", "w*0", "*4", "w*-2", "w**2"])
def test_malformed_controls_are_refused(wrong):
    with pytest.raises(ValueError, match=r"control"):
        controls.parse_controls(wrong)


def test_the_first_chunk_takes_no_control():
    keys = controls.parse_controls("w*6")
    num_chunks = controls.num_chunks_for(keys)
    chunks = controls.controls_per_chunk(keys, num_chunks)
    assert chunks.shape == (3, 4, 2)
    np.testing.assert_array_equal(chunks[0], 0)
    np.testing.assert_array_equal(chunks[1:].reshape(-1, 2)[:6], keys)
    np.testing.assert_array_equal(chunks[2, 2:], 0)


@pytest.mark.parametrize("text", ["w*2 wa*3 .*9 D s*4", "ws*2 a", "a*0 d*5"])
def test_runs_of_keys_are_the_array_frame_by_frame(text):
    keys, frames = controls.read_keys(text), controls.parse_controls(text)
    assert keys.num_frames == len(frames)
    np.testing.assert_array_equal([keys.at(n) for n in range(len(frames))], frames)
    assert keys.at(-1) == keys.at(len(frames)) == (0, 0)
    num_chunks = controls.num_chunks_for(keys)
    assert num_chunks == controls.num_chunks_for(frames)
    np.testing.assert_array_equal(
        [controls.chunk_controls(keys, chunk) for chunk in range(num_chunks)],
        controls.controls_per_chunk(frames, num_chunks),
    )


@pytest.mark.parametrize("count", [10**9, 99999999999999])
def test_however_many_frames_take_no_room(count):
    keys = controls.read_keys(f"w*{count} a")
    assert keys.num_frames == count + 1
    assert (keys.at(count - 1), keys.at(count)) == ((1, 0), (0, 1))
    with pytest.raises(ValueError, match=f"{count + 1} frames make too large"):
        controls.parse_controls(f"w*{count} a")
    with pytest.raises(ValueError, match="in at most 15 digits"):
        controls.read_keys("w*" + "9" * 5000)


def test_keys_by_name():
    for name in ("w", "s", "a", "d", "wa", "sd", ""):
        assert controls.names_of(controls.read_keys(name or ".").at(0)) == name
