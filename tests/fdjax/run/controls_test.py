"""Every way to say what steers a run, and what is wrong with it."""

import json
import pathlib

import numpy as np
import pytest

from fdjax.run.controls import FOREVER, read_controls

ACTIONS = {"w": "forward", "a": "turn left", "d": "turn right", ".": "no key"}
EVENTS = [
    {"frame": 0, "keys": "w"},
    {"frame": 3, "keys": "WA"},
    {"frame": 4, "prompt": "night"},
    {"frame": 5, "keys": ""},
    {"frame": 6, "end": True},
]
HELD = ["w", "w", "w", "wa", "wa", ""]


def held(controls, frames):
    return [controls.keys_at(frame) for frame in frames]


@pytest.fixture(params=["text", "txt", "path", "json", "inline", "txt of json"])
def source(request, tmp_path):
    """One script in every form of text."""
    keys, path = "w*3 wa*2 .", tmp_path / "walk"
    events = [event for event in EVENTS if "prompt" not in event]
    if request.param == "text":
        return keys
    if request.param == "inline":
        return " " + json.dumps(events)
    ending = ".json" if request.param == "json" else ".txt"
    path = path.with_suffix(ending)
    path.write_text(json.dumps(events) if "json" in request.param else keys + "\n")
    return path if request.param == "path" else str(path)


def test_every_form_says_the_same(source):
    controls = read_controls(source, ACTIONS)
    assert held(controls, range(6)) == HELD
    assert controls.num_frames == controls.length == 6
    assert controls == read_controls("w*3 wa*2 .", ACTIONS)


def test_events_may_be_a_list_and_in_any_order():
    controls = read_controls(EVENTS[::-1], ACTIONS)
    assert held(controls, range(6)) == HELD
    assert controls.prompts == ((4, "night"),)


@pytest.mark.parametrize(
    ("end", "after", "length"),
    [
        ("stop", ["", ""], 6),
        ("hold", ["d", "d"], FOREVER),
        ("repeat", ["w", "w"], FOREVER),
    ],
)
def test_the_end_of_the_controls(end, after, length):
    controls = read_controls("w*3 d*3", ACTIONS, end=end)
    assert held(controls, [-1, 0, 5, 6, 600]) == ["", "w", "d", *after]
    assert controls.length == length


def test_events_without_an_end_go_on():
    controls = read_controls([{"frame": 2, "keys": "d"}], ACTIONS)
    assert held(controls, [0, 1, 2, 10**12]) == ["", "", "d", "d"]
    assert controls.length == FOREVER


def test_prompts_alone_steer_nothing():
    controls = read_controls([{"frame": 8, "prompt": "a"}], {})
    assert not controls.steers
    assert controls.keys_at(10) == ""
    assert read_controls("w", ACTIONS).steers


def naive(prompts, start, stop, period):
    """The last prompt that is said in some frames, frame by frame."""
    said = dict(prompts)
    for frame in reversed(range(start, stop)):
        if (text := said.get(frame % period if period else frame)) is not None:
            return text
    return None


@pytest.mark.parametrize("end", ["stop", "hold", "repeat"])
def test_which_prompt_comes_with_a_chunk(end):
    prompts = [(0, "a"), (5, "b"), (7, "c"), (8, "d")]
    events = [{"frame": frame, "prompt": text} for frame, text in prompts]
    controls = read_controls([*events, {"frame": 11, "end": True}], {}, end=end)
    for start in range(40):
        for stop in range(start + 1, start + 15):
            expected = naive(prompts, start, stop, 11 if end == "repeat" else 0)
            assert controls.prompt_in(start, stop) == expected


def test_an_array_is_one_row_a_frame(tmp_path):
    array = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy", str(tmp_path / "a.npy")):
        for end, last in (("stop", None), ("hold", 2), ("repeat", 1)):
            controls = read_controls(source, ACTIONS, end=end, takes_array=True)
            np.testing.assert_array_equal(controls.array, array)
            assert [controls.clock(n) for n in (-1, 0, 2, 4)] == [None, 0, 2, last]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "hold no frame"),
        ("x*3", r"unknown key\(s\) 'x'; the keys are w \(forward\), a \(turn left\)"),
        ("[", "begin as JSON and are none"),
        ("[" * 100_000, "begin as JSON and are none"),
        ('{"frame": 0, "keys": "w"}', "must be a list of events"),
        ([], "must be a list of events"),
        (["w"], "event 0 must be an object, got 'w'"),
        ([{"frame": 0}], "event 0 must say what happens: one of"),
        ([{"keys": "w"}], "event 0 must have a frame, a whole number from 0, got None"),
        ([{"frame": -1, "keys": "w"}], "got -1"),
        ([{"frame": 1.5, "keys": "w"}], "got 1.5"),
        ([{"frame": True, "keys": "w"}], "got True"),
        ([{"frame": 10**30, "keys": "w"}], "a whole number"),
        ([{"frame": 0, "key": "w"}], "unknown field 'key'; did you mean 'keys'"),
        ([{"frame": 0, "zzz": "w"}], "unknown field 'zzz'; it may have"),
        ([{"frame": 0, "keys": 3}], "keys must be text, got 3"),
        ([{"frame": 0, "prompt": None}], "prompt must be text, got None"),
        ([{"frame": 0, "prompt": " "}], "prompt must not be empty"),
        ([{"frame": 0, "keys": "wx"}], r"unknown key\(s\) 'x'; the keys are"),
        ([{"frame": 0, "keys": "w"}, {"frame": 0, "keys": "a"}], "two keys events at"),
        ([{"frame": 3, "end": False}], "an end is"),
        ([{"frame": 3, "end": True, "keys": "w"}], "an end is"),
        ([{"frame": 0, "end": True}], "one end, behind all other events"),
        ([{"frame": 3, "end": True}, {"frame": 3, "keys": "w"}], "one end, behind"),
        ([{"frame": 3, "end": True}, {"frame": 4, "end": True}], r"at frames \[3, 4\]"),
        (np.zeros((3, 2)), "cannot be an array here"),
        ("a.npy", "cannot be an array here"),
    ],
)
def test_what_is_wrong_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        read_controls(source, ACTIONS)


def test_a_method_without_keys_takes_prompts():
    for source in ("w*3", [{"frame": 0, "keys": "w"}]):
        with pytest.raises(ValueError, match="are events of prompts, as it has no"):
            read_controls(source, {})


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.json", None, FileNotFoundError, r"controls file .*a\.json does not exist"),
        ("a.txt", None, FileNotFoundError, r"controls file .*a\.txt does not exist"),
        ("a.npy", None, FileNotFoundError, r"controls file .*a\.npy does not exist"),
        ("a.json", b"\xff\xfe\xfa", ValueError, r"a\.json must be UTF-8"),
        ("a.json", b"w*3", ValueError, r"a\.json must hold a list of events"),
        ("a.npy", b"w*3", ValueError, r"a\.npy must be a \.npy array"),
        ("a" * 300 + ".json", None, FileNotFoundError, "does not exist"),
    ],
)
def test_files_that_are_wrong(tmp_path, name, content, error, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for source in (str(path), pathlib.Path(path)):
        with pytest.raises(error, match=message):
            read_controls(source, ACTIONS, takes_array=True)


def test_empty_arrays_hold_no_frame():
    for array in (np.zeros((0, 2)), np.float32(3)):
        with pytest.raises(ValueError, match="hold no frame"):
            read_controls(np.asarray(array), ACTIONS, takes_array=True)
