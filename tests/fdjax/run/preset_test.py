"""Presets: what they may say, what they must not, and what wins over them."""

import json
import os
import pathlib

import pytest

from fdjax.config import derive_config, from_json, to_json
from fdjax.run import plugins, registry
from fdjax.run.preset import read_preset
from tests import tiny_runner
from tests.tiny_runner import CONFIG

CONFIGS = {"tiny": CONFIG}


def write(folder, **fields):
    folder.mkdir(exist_ok=True)
    (folder / "preset.json").write_text(json.dumps(fields))
    return folder


def read(folder, **options):
    return read_preset(folder, CONFIGS, **options)


def test_fields_nested_or_dotted(tmp_path):
    expected = derive_config(
        CONFIG, fps=24, pipeline={"diffusion_model": {"seed": 7}, "decoder": None}
    )
    model = {"diffusion_model": {"seed": 7}, "decoder": None}
    folder = write(tmp_path / "a", method="tiny", fps=24, pipeline=model)
    assert read(folder) == read(str(folder)) == read(folder / "preset.json") == expected
    dotted = {"pipeline.diffusion_model.seed": 7, "pipeline": {"decoder": None}}
    assert read(write(tmp_path / "b", method="tiny", fps=24, **dotted)) == expected


def test_files_are_named_from_the_preset(tmp_path, monkeypatch):
    folder = write(tmp_path / "a", method="tiny", prompt="p.txt", controls="c.json")
    for name in ("p.txt", "c.json"):
        (folder / name).write_text("x")
    config = read(folder)
    assert (config.prompt, config.controls) == (
        str(folder / "p.txt"),
        str(folder / "c.json"),
    )
    monkeypatch.chdir(tmp_path)
    assert read("a").prompt == os.path.join("a", "p.txt")


@pytest.mark.usefixtures("tiny_method")
def test_texts_stay_texts_and_events_may_stand_in_it(tmp_path):
    events = [{"frame": 3, "prompt": "b"}]
    folder = write(tmp_path / "a", method="tiny", prompt="../b", controls=events)
    config = read(folder)
    assert config.prompt == "../b"
    assert json.loads(config.controls) == events
    written = to_json(config, classes=plugins.known_classes())  # beside a video
    assert from_json(written, classes=plugins.known_classes()) == config


def test_the_method_may_come_from_the_command(tmp_path):
    folder = write(tmp_path / "a", fps=24)
    assert read(folder, method="tiny").fps == 24
    with pytest.raises(ValueError, match="names no method"):
        read(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "tinny"}, "unknown method 'tinny'; did you mean 'tiny'"),
        ({"method": ["tiny"]}, "method must be text"),
        ({"fsp": 3}, "unknown field 'fsp'; did you mean 'fps'"),
        ({"pipeline": {"decodr": None}}, "'pipeline.decodr'; did you mean 'decoder'"),
        ({"pipeline.x.y": 3}, "unknown field 'pipeline.x.y'"),
        ({"_target": "x"}, "unknown field '_target'"),
        ({"fps": "fast"}, "fps must be int, got 'fast'"),
        ({"fps": 0}, "fps must be at least 1, got 0"),
        ({"pipeline.seed": 1, "pipeline": None}, "unknown field 'pipeline.seed'"),
        ({"output_dir": "/tmp"}, "output_dir is for whoever runs a preset"),
        ({"resume": "a.session"}, "resume is for whoever runs a preset"),
        ({"runner_name": "x"}, "runner_name is for whoever"),
        ({"prompt": "../a.txt"}, r"in the preset's folder.* got '\.\./a\.txt'"),
        ({"prompt": "/etc/a.txt"}, "in the preset's folder"),
        ({"prompt": "~/a.txt"}, "prompt names '~/a.txt', which is not in it"),
        ({"prompt": "file:///etc/a.txt"}, "in the preset's folder"),
        ({"controls": "b/../../walk.npy"}, "in the preset's folder"),
        ({"prompt": "link.txt"}, "in the preset's folder"),
        ({"prompt": "none.txt"}, "prompt names 'none.txt', which is not in it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, fields, message):
    folder = write(tmp_path / "a", **{"method": "tiny", **fields})
    (tmp_path / "a.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as info:
        read(folder)
    assert str(info.value).startswith(f"preset {folder / 'preset.json'}: ")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be JSON: Expecting value"),
        (b"[]", r"must be an object of fields, got \[\]"),
        (b"\xff", "must be UTF-8"),
        (b'{"fps": 1, "fps": 2}', "has 'fps' twice"),
        (b'{"a":' * 10**5, "must be JSON of few levels"),
        (b" " * 2**21, "at most 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_preset(tmp_path, content, message):
    (tmp_path / "preset.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_there_must_be_one(tmp_path):
    for path in (tmp_path, tmp_path / "none", pathlib.Path("a" * 300)):
        with pytest.raises(FileNotFoundError, match="there is no preset"):
            read(path)


@pytest.mark.usefixtures("tiny_method")
def test_flags_win_over_it(tmp_path, fdjax_run, monkeypatch):
    ran = []
    monkeypatch.setattr(
        tiny_runner.TinyRunner, "run", lambda self: ran.append(self.config)
    )
    folder = str(write(tmp_path / "a", method="tiny", fps=24, control=0.5))
    for command in (
        ["--preset", folder, "--fps", "30"],
        ["tiny", f"--preset={folder}", "--fps", "30"],
        ["--preset", folder, "--tiny", "--fps=30"],
    ):
        assert fdjax_run(*command)[0] == 0
        assert (ran[-1].fps, ran[-1].control) == (30, 0.5)
    assert ran[-1].total_blocks == 2
    for command, message in (
        (["--preset", folder, "--config", "x"], "give --config or --preset, not both"),
        (["tinny", "--preset", folder], "unknown method 'tinny'; did you mean 'tiny'"),
        (["--preset", str(tmp_path)], "there is no preset"),
        (["--preset"], "flag --preset needs a value"),
    ):
        code, _, error = fdjax_run(*command)
        assert (code, message in error) == (2, True), error


def test_the_example_is_of_a_method():
    folder = pathlib.Path(__file__).parents[3] / "examples" / "maze_at_dusk"
    assert read_preset(folder, registry.discover().configs).runner_name == "maze-world"
