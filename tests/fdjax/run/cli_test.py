"""The command line on the tiny method: lists, help, overrides, errors."""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from fdjax.config import derive_config, from_json
from fdjax.run import cli, media, plugins, registry, writer
from tests import processes, tiny_runner
from tests.tiny_runner import CONFIG, TinyRunner

pytestmark = pytest.mark.usefixtures("tiny_method")


def test_help_lists_methods_and_broken_plugins(fdjax_run):
    code, out, err = fdjax_run("--help")
    assert (code, err) == (0, "")
    assert re.search(r"\n  tiny +A tiny pipeline\.\n", out)
    assert "package x: bad = y:Z\n      E: why" in out
    assert "needs a reinstall" in out
    assert plugins.VARIABLE in out
    assert fdjax_run("-h") == (code, out, err)


def test_no_arguments_show_the_list_and_fail(fdjax_run):
    code, out, err = fdjax_run()
    assert (code, out) == (2, "")
    assert "A tiny pipeline." in err
    assert "name a METHOD" in err


def test_method_help_lists_every_field(fdjax_run):
    code, out, err = fdjax_run("tiny", "--help")
    assert (code, err) == (0, "")
    assert "A tiny pipeline." in out
    for flag, kind, doc in [
        ("total_blocks", "(int; default 4)", "Chunks to make, at least 1."),
        ("control", "(float; default 0.1)", "What every chunk is steered by."),
        (
            "seed",
            "(an integer from 0 to 4294967295 or None; default None)",
            "Seed of the noise;",
        ),
        ("pipeline", "(config, its parts below)", "The pipeline that runs."),
        ("pipeline.decoder", "(config, its parts below; or None)", "Config of the dec"),
        ("pipeline.decoder.channels", "(int; default 4)", ""),
        (
            "pipeline.diffusion_model.context_noise",
            "(float; default 100.0)",
            "Timestep, in [0, 1000]",
        ),
        ("pipeline.diffusion_model.transformer", "(config, its parts below)", ""),
    ]:
        found = re.search(rf"\n  --{re.escape(flag)}  (.*)\n(?: +(.*))?", out)
        assert found, flag
        assert found[1] == kind
        assert doc in (found[2] or "")
    assert "pipeline.diffusion_model (DiffusionModelConfig): Config of" in out
    assert fdjax_run("--help", "tiny")[1] == out


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ([], {}),
        (["--total_blocks", "7"], {"total_blocks": 7}),
        (["--total-blocks=7"], {"total_blocks": 7}),
        (["--control", "-1e-3"], {"control": -1e-3}),
        (["--control", "2"], {"control": 2.0}),
        (["--fps=1", "--fps=2"], {"fps": 2}),
        (["--profile"], {"profile": True}),
        (["--profile", "--fps", "3"], {"profile": True, "fps": 3}),
        (["--profile", "true"], {"profile": True}),
        (["--profile=True"], {"profile": True}),
        (["--norandom_weights"], {"random_weights": False}),
        (["--no-random-weights"], {"random_weights": False}),
        (["--random-weights", "False"], {"random_weights": False}),
        (["--progress"], {"progress": True}),
        (["--noprogress"], {"progress": False}),
        (["--progress", "None"], {"progress": None}),
        (["--prompt", "--fps=3 a-b"], {"prompt": "--fps=3 a-b"}),
        (["--prompt=a = b"], {"prompt": "a = b"}),
        (["--seed", "None"], {"seed": None}),
        (["--output-dir", "a-b/c"], {"output_dir": "a-b/c"}),
        (
            ["--pipeline.diffusion_model.seed", "7"],
            {"pipeline": {"diffusion_model": {"seed": 7}}},
        ),
        (
            ["--pipeline.diffusion-model.transformer.channels=8"],
            {"pipeline": {"diffusion_model": {"transformer": {"channels": 8}}}},
        ),
        (
            ["--pipeline.decoder", "None", "--pipeline.encoder=None"],
            {"pipeline": {"decoder": None, "encoder": None}},
        ),
        (["--pipeline.conditioner", "None"], {}),
    ],
)
def test_overrides(resolve, arguments, changes):
    assert resolve(*arguments) == derive_config(CONFIG, **changes)


def test_the_config_of_the_method_is_not_changed(resolve):
    resolve("--fps", "99")
    assert resolve().fps == 12


@pytest.mark.parametrize("flag", ["--no-instantiate", "--no_instantiate"])
@pytest.mark.parametrize("place", [0, 1, 2, 4])
def test_no_instantiate_prints_the_config_and_stops(
    fdjax_run, monkeypatch, flag, place
):
    monkeypatch.setattr(TinyRunner, "run", lambda self: pytest.fail("it ran"))
    arguments = ["tiny", "--pipeline.diffusion_model.transformer.channels", "5"]
    arguments.insert(place, flag)
    if place == 2:
        arguments = ["--debug", flag, *arguments[:2], *arguments[3:]]
    code, out, err = fdjax_run(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith(
        "Resolved config for 'tiny':\nTinyRunnerConfig:\n    runner_n"
    )
    transformer = "transformer: MeanTransformerConfig:\n                channels: 5\n"
    assert transformer in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["tyni"],
            "unknown method 'tyni'; did you mean 'tiny'?. See fdjax-run --help.",
        ),
        (["bad"], "unknown method 'bad'; package x: bad = y:Z is broken: E: why"),
        (["--fps", "3"], "unknown flag --fps; the flags of a method follow it"),
        (["tiny", "--fsp", "3"], "unknown flag --fsp; did you mean 'fps'?"),
        (
            ["tiny", "--transformer.channels", "3"],
            "did you mean 'pipeline.diffusion_model.transformer.channels'",
        ),
        (
            ["tiny", "--context-noise", "3"],
            "did you mean --pipeline.diffusion_model.context_noise?",
        ),
        (["tiny", "stray"], "unexpected argument 'stray'"),
        (["tiny", "--fps", "3", "a", "b"], "unexpected argument 'a'"),
        (["tiny", "-f", "3"], "unexpected argument '-f'"),
        (["tiny", "--fps"], "flag --fps needs a value"),
        (["tiny", "--fps", "x"], "flag --fps=x: must be int, got 'x'"),
        (["tiny", "--fps=2.5"], "flag --fps=2.5: must be int, got '2.5'"),
        (["tiny", "--profile=maybe"], "--profile=maybe: must be true or false"),
        (["tiny", "--seed", "4294967301"], "must be an integer from 0 to 4294967295"),
        (["tiny", "--seed", "-5"], "--seed=-5: must be an integer from 0 to 42949"),
        (["tiny", "--seed", f"{2**63}"], "must be an integer from 0 to 4294967295"),
        (
            ["tiny", "--pipeline.diffusion_model.seed", "4294967296"],
            "must be an integer from 0 to 4294967295",
        ),
        (["tiny", "--fps", "2147483648"], "must be int from -2147483647 to 21"),
        (["tiny", "--control", "nan"], "must be float from"),
        (["tiny", "--nofps"], "unknown flag --nofps; did you mean 'fps'"),
        (["tiny", "--fps", "None"], "must be int, got 'None'"),
        (["tiny", "--fps", "0"], "fps must be at least 1, got 0"),
        (["tiny", "--total-blocks", "0"], "total_blocks must be at least 1, got 0"),
        (["tiny", "--runner_name", "a/b"], "runner_name must be letters"),
        (
            ["tiny", "--pipeline.diffusion_model.context_noise", "-1"],
            "[0, 1000], got -1.0. (in TinyRunnerConfig.pipeline.diffusion_model)",
        ),
        (["tiny", "--pipeline.decoder", "x"], "must be None, got 'x'; its parts are"),
        (
            ["tiny", "--pipeline.conditioner=x"],
            "must be ConditionerConfig or None, got 'x'",
        ),
        (
            ["tiny", "--pipeline.diffusion_model", "None"],
            "unknown flag --pipeline.diff",
        ),
        (
            ["tiny", "--pipeline.decoder", "None", "--pipeline.decoder.channels", "3"],
            "flag --pipeline.decoder.channels sets a part of --pipeline.decoder, which",
        ),
        (["tiny", "--control", "-1"], "control must be at least 0, got -1.0"),
        (["tiny", "--pixel-height", "7"], "multiples of 2, got 7 x 8"),
        (["tiny", "--prompt", "x"], "tiny takes no prompt"),
        (["tiny", "--config"], "flag --config needs a value"),
        (["tiny", "--config", "no.json"], "there is no file no.json"),
    ],
)
def test_mistakes_give_one_message_and_exit_code_2(
    fdjax_run, monkeypatch, arguments, message
):
    monkeypatch.setattr(
        TinyRunner, "load_weights", lambda *_, **__: pytest.fail("weights read")
    )
    monkeypatch.setattr(
        TinyRunner,
        "read_inputs",
        lambda self: (self.read_text(), ORIGINAL_READ_INPUTS(self))[1],
    )
    code, out, err = fdjax_run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert err.startswith("fdjax-run: error: ")
    assert len(err.splitlines()) == 1
    assert not list(pathlib.Path().iterdir())


ORIGINAL_READ_INPUTS = TinyRunner.read_inputs


def test_unwritable_output_directory(fdjax_run):
    pathlib.Path("file").write_text("x")
    code, _, err = fdjax_run("tiny", "--output-dir", "file")
    assert code == 2
    assert "output directory file cannot be written: it is a file." in err


def test_debug_shows_the_traceback(fdjax_run):
    code, _, err = fdjax_run("tiny", "--control=-1", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("fdjax-run: error: control must be")


def test_a_defect_is_one_line_and_a_traceback_in_a_file(
    fdjax_run, monkeypatch, tmp_path
):
    def run(self):
        raise TypeError("a defect\nwith details")

    monkeypatch.setattr(TinyRunner, "run", run)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, err = fdjax_run("tiny")
    assert (code, out) == (1, "")
    [line] = err.splitlines()
    assert line.startswith("fdjax-run: failed: TypeError: a defect (traceback: ")
    text = pathlib.Path(line.split("traceback: ")[1].rstrip(")")).read_text()
    assert text.startswith("Traceback")
    assert "a defect\nwith details" in text


def test_a_method_of_wrong_types_is_a_mistake_of_its_author(fdjax_run, monkeypatch):
    decoder = dataclasses.replace(CONFIG.pipeline, decoder=CONFIG.pipeline.encoder)
    wrong = dataclasses.replace(CONFIG, pipeline=decoder)
    monkeypatch.setattr(
        registry, "discover", lambda: registry.Discovery({"tiny": wrong}, {}, ())
    )
    code, _, err = fdjax_run("tiny")
    assert code == 2
    assert "pipeline.decoder must be DecoderConfig or None, got a NullEncoderC" in err


def test_process_settings_are_made_at_the_edge_only(fdjax_run, monkeypatch):
    made = []
    monkeypatch.setattr(TinyRunner, "run", lambda self: made.append("run"))
    for name in ("set_defaults", "enable_compilation_cache"):
        monkeypatch.setattr(cli.xla_flags, name, lambda n=name: made.append(n))
    assert fdjax_run("tiny")[0] == 0
    assert made == ["run"]
    monkeypatch.setattr(sys, "argv", ["fdjax-run", "tiny"])
    assert cli.run() == 0
    assert made[1:] == ["set_defaults", "enable_compilation_cache", "run"]
    monkeypatch.setattr(sys, "argv", ["fdjax-run", "tiny", "--no-compilation-cache"])
    assert cli.run() == 0
    assert made[4:] == ["set_defaults", "run"]


def test_a_full_disk_is_exit_code_1(fdjax_run, monkeypatch):
    def run(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TinyRunner, "run", run)
    code, _, err = fdjax_run("tiny")
    assert code == 1
    assert "No space left on device" in err
    assert "Traceback" not in err


def test_ctrl_c_is_exit_code_130(fdjax_run, monkeypatch):
    def run(self):
        raise KeyboardInterrupt("Wrote x.mp4: 3 frames.")

    monkeypatch.setattr(TinyRunner, "run", run)
    code, _, err = fdjax_run("tiny")
    assert code == 130
    assert "interrupted. Wrote x.mp4: 3 frames." in err


def test_a_run_and_its_repetition(fdjax_run):
    code, out, err = fdjax_run("tiny", "--control=0.5", "--output-dir=a")
    assert (code, out) == (0, "")
    assert "RANDOM WEIGHTS" in err
    assert "7 frames" in err
    name = "tiny-random-weights"
    file = f"a/{name}.config.json"
    text = pathlib.Path(file).read_text()
    assert from_json(text, classes=plugins.known_classes()).control == 0.5
    assert fdjax_run("--config", file, "--output_dir", "b")[0] == 0
    videos = [pathlib.Path(folder, f"{name}.mp4").read_bytes() for folder in "ab"]
    # The two differ in the hash of the config alone, which has another output_dir.
    assert len(videos[0]) == len(videos[1])
    assert fdjax_run("tiny", "--config", file, "--output_dir", "a")[0] == 0
    assert pathlib.Path("a", f"{name}.mp4").read_bytes() == videos[0]
    assert not logging.getLogger().handlers or "fdjax" not in str(logging.root.handlers)


@pytest.mark.parametrize("folder", ["12:30:05", "-x", "--y", "http:a", "a b/ü"])
def test_odd_output_directories(fdjax_run, folder):
    code, _, err = fdjax_run("tiny", f"--output_dir={folder}", "--total_blocks=2")
    assert code == 0, err
    video = pathlib.Path(folder, "tiny-random-weights.mp4").absolute()
    assert len(media.read_video(video)) == 3
    assert len(list(video.parent.iterdir())) == 5


def test_a_disk_that_fills_up_is_one_line(fdjax_run, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer._Encoder, "add", fill)
    code, _, err = fdjax_run("tiny")
    assert code == 1
    assert "Traceback" not in err
    name = "outputs/tiny-random-weights.mp4"
    assert f"error: {name} cannot be written: No space left on device; nothing" in err
    assert not list(pathlib.Path("outputs").iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "--config f.json: A config must be JSON"),
        ('{"_class": "os:system"}', "in no package that registers methods"),
        (
            '{"_class": "fdjax.contract.encoder:NullEncoderConfig"}',
            "NullEncoderConfig, no run",
        ),
        ('{"_class": "NullEncoderConfig"}', "NullEncoderConfig, no run"),
        (
            '{"_class": "TinyRunerConfig"}',
            "uses a class 'TinyRunerConfig'; did you mean 'TinyRunnerConfig'",
        ),
    ],
)
def test_a_wrong_config_file(fdjax_run, text, message):
    pathlib.Path("f.json").write_text(text)
    code, _, err = fdjax_run("--config", "f.json")
    assert code == 2
    assert message in err


def test_a_wrong_value_in_a_config_file(fdjax_run):
    assert fdjax_run("tiny", "--output-dir=a")[0] == 0
    file = pathlib.Path("a/tiny-random-weights.config.json")
    tree = json.loads(file.read_text())
    for key, value, message in [
        ("fps", "x", "config.fps must be int, got 'x'"),
        ("fsp", 3, "TinyRunnerConfig.fsp; did you mean 'fps'?"),
        ("total_blocks", 0, "total_blocks must be at least 1"),
    ]:
        pathlib.Path("f.json").write_text(json.dumps(tree | {key: value}))
        code, _, err = fdjax_run("--config", "f.json")
        assert code == 2
        assert message in err
    code, _, err = fdjax_run("other", "--config", str(file))
    assert code == 2
    assert "is a run of 'tiny', not of 'other'" in err


def test_a_field_named_like_a_general_flag_is_refused(fdjax_run, monkeypatch):
    fields = list(cli.cli_flags.config_fields(CONFIG))
    clash = [dataclasses.replace(fields[0], path="debug")]
    with pytest.raises(ValueError, match="'debug' has the name of a flag"):
        cli._parse_flags([], clash, cli.Program())


@pytest.fixture
def process(tmp_path):
    """Starts a command in a process group of its own, as a shell does."""
    root = pathlib.Path(tiny_runner.__file__).parent.parent
    environment = {
        **os.environ,
        plugins.VARIABLE: "tiny=tests.tiny_runner:RUNNER_CONFIGS",
        "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
        "FDJAX_CACHE_DIR": str(tmp_path / "cache"),
    }
    # The run's, which would come before the command's own.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def start(*arguments, stdout=None):
        return processes.running(
            [sys.executable, "-m", "fdjax.run.cli", *arguments],
            env=environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_the_command_in_a_process_of_its_own(process, tmp_path):
    with process("tiny", "--total_blocks=2") as running:
        _, err = running.communicate()
    assert running.returncode == 0, err
    assert "3 frames" in err
    assert (tmp_path / "outputs" / "tiny-random-weights.mp4").exists()
    assert (tmp_path / "cache" / "xla").is_dir()


def test_ctrl_c_in_a_terminal_leaves_a_playable_file(process, tmp_path):
    endless = ["--total_blocks=9000000", "--num_controls=9000000"]
    with process("tiny", *endless) as running:
        temporary = []
        while not any(file.stat().st_size for file in temporary):
            assert running.poll() is None, running.stderr.read()
            temporary = list(tmp_path.glob("outputs/.*.tmp/new/*.mp4"))
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate()
    assert running.returncode == 130, err
    assert "Traceback" not in err
    count = int(re.search(r"interrupted\. Wrote .*mp4: (\d+) frames", err)[1])
    outputs = tmp_path / "outputs"
    assert len(media.read_video(outputs / "tiny-random-weights.mp4")) == count
    assert not list(outputs.glob(".*"))


def test_a_reader_that_goes_away_is_no_error(process):
    read, write = os.pipe()
    os.close(read)
    with process("--help", stdout=write) as running:
        os.close(write)
        _, err = running.communicate()
    assert running.returncode == 1
    assert err == ""


def test_a_clone_that_is_not_installed_has_a_script(tmp_path):
    root = pathlib.Path(tiny_runner.__file__).parent.parent
    packages = os.pathsep.join(path for path in sys.path if "site-packages" in path)
    # -S: without the .pth files of an installation.
    done = subprocess.run(
        [sys.executable, "-S", root / "scripts" / "run.py", "--help"],
        env={**os.environ, "PYTHONPATH": packages},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "\n  template-autoregressive\n" in done.stdout
