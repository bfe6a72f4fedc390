"""`fdjax-convert` as a user types it: what it makes, what it says, its exit codes."""

import errno
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from fdjax import checkpoint
from fdjax.run import registry
from fdjax_convert import cli
from fdjax_convert import convert as load
from fdjax_convert.formats import readers
from tests import tiny as tiny_pipeline
from tests.convert import tiny_components as tiny
from tests.convert.load_test import OFFICIAL, assert_bytes, read, save

__all__ = ["OFFICIAL"]


class Pipeline:
    """Stands for a pipeline config: all that is asked of it is its components."""

    def __init__(self, **configs):
        self.components = {name: config.setup() for name, config in configs.items()}

    def setup(self):
        return self


class Runner:
    def __init__(self, **configs):
        self.pipeline = Pipeline(**configs)


@pytest.fixture(autouse=True)
def methods(monkeypatch, tmp_path):
    """Two methods of tiny components are installed, and nothing else."""
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    vae = {
        "encoder": tiny.CONFIGS["wan_vae_encoder"],
        "decoder": tiny.CONFIGS["wan_vae_decoder"],
    }
    small = Runner(transformer=tiny.CONFIGS["wan_dit"], **vae)
    wide = Runner(transformer=tiny.WIDE_TRANSFORMER, **vae)
    configs = {"small": small, "wide": wide}
    monkeypatch.setattr(registry, "runner_configs", lambda: configs)
    return configs


@pytest.fixture
def file(tmp_path):
    tensors = tiny.published(OFFICIAL, "bfloat16")
    return save(tmp_path / "a.pt", tensors, ("generator_ema",), "model.")


def test_convert_and_back(tmp_path, file, capsys):
    out, back = tmp_path / "out", tmp_path / "back.safetensors"
    assert cli.run([str(file), str(out)]) == 0
    text = capsys.readouterr().out
    num_leaves = len(checkpoint.read_metadata(out).shapes)
    assert f"Wan 48 wide, 3 blocks T2V: {num_leaves} tensors, " in text
    assert re.search(r"bfloat16, 0\.00 GB in \d+\.\d s \(\d+ MB/s\)", text)
    assert f"written to {out}" in text
    metadata = checkpoint.read_metadata(out)
    assert metadata.architecture == "wan_dit"
    assert metadata.config["network"]["dim"] == 48
    assert metadata.dtype == "bfloat16"
    assert metadata.source["wrapper"] == ["generator_ema"]
    assert cli.run(["--to_torch", str(out), str(back)]) == 0
    assert "official layout" in capsys.readouterr().out
    assert_bytes(read(back), tiny.published(OFFICIAL, "bfloat16"))
    assert cli.run(["--to_torch", "--wrapped", str(out), str(tmp_path / "b.pt")]) == 0
    opened = readers.open_checkpoint(tmp_path / "b.pt")
    assert (opened.wrapper, opened.prefix) == (("generator_ema",), "model.")


def test_the_method_that_fits_is_found(tmp_path, capsys):
    tensors = tiny.published_params(tiny.WIDE_TRANSFORMER, OFFICIAL)
    path = save(tmp_path / "a.safetensors", tensors)
    assert cli.run([str(path), str(tmp_path / "out"), "--dtype=bfloat16"]) == 0
    metadata = checkpoint.read_metadata(tmp_path / "out")
    assert metadata.config["network"]["dim"] == 96
    assert metadata.dtype == "bfloat16"


def test_what_was_asked_for_is_named(tmp_path, file, capsys):
    arguments = [str(file), str(tmp_path / "out"), "--method=wide"]
    assert cli.run([*arguments, "--component=transformer"]) == 2
    error = capsys.readouterr().err
    assert "a.pt is Wan 48 wide, 3 blocks T2V; you asked for Wan 96 wide" in error
    assert "Traceback" not in error
    assert cli.run([*arguments, "--component=decoder"]) == 2
    assert "you asked for Wan VAE decoder, first width 8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_size_that_no_method_has_is_named(tmp_path, capsys):
    tensors = tiny.published(OFFICIAL)
    tensors = {k: v for k, v in tensors.items() if not k.startswith("blocks.2.")}
    path = save(tmp_path / "a.safetensors", tensors)
    assert cli.run([str(path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "is Wan 48 wide, 2 blocks T2V (official layout); no installed" in error
    assert "Wan 48 wide, 3 blocks T2V (small), Wan 96 wide" in error


def test_the_right_size_with_a_wrong_key_gets_its_problems(tmp_path, capsys):
    tensors = tiny.published(OFFICIAL) | {"blocks.0.extra": np.ones(1, np.float32)}
    path = save(tmp_path / "a.safetensors", tensors)
    assert cli.run([str(path), str(tmp_path / "out")]) == 2
    assert "blocks.0.extra: unknown key" in capsys.readouterr().err


def test_a_file_of_two_components_needs_a_choice(tmp_path, capsys):
    layouts = [one for one in tiny.ALL if one.name == "official 2.1"]
    tensors = tiny.published(layouts[0]) | tiny.published(layouts[1])
    path = save(tmp_path / "vae.pth", tensors)
    assert cli.run([str(path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "--component=encoder or --component=decoder" in error
    assert cli.run([str(path), str(tmp_path / "out"), "--component=decoder"]) == 0
    assert checkpoint.read_metadata(tmp_path / "out").architecture == "wan_vae_decoder"


def test_inspect_a_wrapped_file(file, capsys):
    assert cli.run(["--inspect", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    fields = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in lines}
    assert fields["format"] == "torch zip, not executed"
    assert fields["is"] == "Wan 48 wide, 3 blocks T2V (wan_dit, official layout)"
    assert fields["wrapper"] == 'generator_ema > prefix "model."'
    assert fields["types"].startswith("bfloat16 (")
    assert "in 96 tensors, " in fields["parameters"]
    assert "unknown keys" not in "".join(lines)


def test_inspect_names_unknown_dropped_and_other_entries(tmp_path, capsys):
    umt5 = next(one for one in tiny.ALL if one.architecture == "umt5")
    tensors = tiny.published(umt5)
    extra = {f"encoder.block.{i}.extra": np.ones(1, np.float32) for i in range(5)}
    extra["lm_head.weight"] = np.ones(1, np.float32)
    path = save(tmp_path / "a.pt", tensors | extra | {"step": 7})
    assert cli.run([f"--inspect={path}"]) == 0
    text = capsys.readouterr().out
    assert "unknown keys:\n  encoder.block.[0-4].extra (5)" in text
    assert "not used, predicts words, for the decoder half:\n  lm_head.weight" in text
    assert "beside the weights:\n  step: int" in text


def test_inspect_guesses_and_gives_up(tmp_path, capsys):
    tensors = tiny.published(OFFICIAL)
    del tensors["head.head.weight"]
    path = save(tmp_path / "a.safetensors", tensors)
    assert cli.run(["--inspect", str(path)]) == 0
    assert "perhaps Wan 48 wide, 3 blocks T2V (wan_dit, offi" in capsys.readouterr().out
    path = save(tmp_path / "b.safetensors", {"unet.w": np.ones(1, np.float32)})
    assert cli.run(["--inspect", str(path)]) == 0
    assert "nothing that fdjax knows" in capsys.readouterr().out


def test_inspect_a_folder_and_what_was_converted(tmp_path, file, capsys):
    save(tmp_path / "b.safetensors", tiny.published(OFFICIAL))
    assert cli.run(["--inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.count("wan_dit, official layout") == 2
    assert cli.run([str(file), str(tmp_path / "out")]) == 0
    assert cli.run(["--inspect", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "architecture    wan_dit" in text
    assert f"converted from  {file}, official layout" in text
    assert checkpoint.read_metadata(tmp_path / "out").source["sha256"] in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"expected SOURCE and DESTINATION, got []"),
        (["a"], "expected SOURCE and DESTINATION"),
        (["--inspect", "x", "y"], "expected no argument"),
        (["a", "b", "--colour=red"], "Unknown command line flag 'colour'"),
        (["a", "b", "--dtype=int4"], "should be one of <float32|bfloat16|float16>"),
        (["missing.pt", "b"], "There is no checkpoint at missing.pt; set SOURCE"),
        (["--inspect", "missing.pt"], "no checkpoint at missing.pt; set --inspect"),
        (["{file}", "b.safetensors"], "DESTINATION is a directory to make"),
        (["{file}", "{file}"], "exists; give --overwrite"),
        (["{file}", "b", "--method=smal"], "unknown method 'smal'"),
        (["{file}", "b", "--component=head"], "no component 'head' of any method"),
        (["{file}", "b", "--wrapper=ema"], "no entry 'ema'"),
        (
            ["{file}", "b", "--method=small", "--component=decoder", "--layout=x"],
            "layout must be one of official 2.1",
        ),
        (["--to_torch", "{file}", "b.pt"], "is no complete checkpoint of fdjax"),
        (["--to_torch", "missing", "b.pt"], "There is no checkpoint at missing"),
        (["{tmp}/empty", "b"], "holds no checkpoint"),
    ],
)
def test_mistakes_are_told_in_one_message(
    tmp_path, file, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(os.listdir(tmp_path))
    arguments = [one.format(file=file, tmp=tmp_path) for one in arguments]
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fdjax-convert: error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert sorted(os.listdir(tmp_path)) == before


def test_nothing_is_replaced_unless_asked(tmp_path, file):
    out = tmp_path / "out"
    assert cli.run([str(file), str(out)]) == 0
    assert cli.run([str(file), str(out)]) == 2
    assert cli.run([str(file), str(out), "--overwrite", "--dtype=float32"]) == 0
    assert checkpoint.read_metadata(out).dtype == "float32"
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "out"]


def test_a_full_disk_has_its_own_exit_code(tmp_path, file, capsys, monkeypatch):
    def fill(array):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(load, "contiguous", fill)
    assert cli.run([str(file), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "error: the disk filled up while" in error
    assert "Traceback" not in error
    assert os.listdir(tmp_path) == ["a.pt"]


def test_ctrl_c_leaves_nothing(tmp_path, file, capsys, monkeypatch):
    def interrupt(array):
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "contiguous", interrupt)
    assert cli.run([str(file), str(tmp_path / "out")]) == 130
    assert "interrupted. Nothing was written." in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_command_leaves_the_process_as_it_was(tmp_path, file):
    before = jax.config.jax_platforms, jax.config.jax_default_device
    assert cli.run([str(file), str(tmp_path / "out")]) == 0
    assert (jax.config.jax_platforms, jax.config.jax_default_device) == before
    program = (
        "import os, sys; sys.argv = ['fdjax-convert', '--help']\n"
        "from fdjax_convert import cli\n"
        "assert 'jax' not in sys.modules\n"
        "assert cli.run() == 0\n"
        "import jax; assert jax.config.jax_platforms == 'cpu'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=_environment())


def _environment():
    paths = os.pathsep.join(sys.path)
    return {**os.environ, "PYTHONPATH": paths, "JAX_PLATFORMS": "cuda"}


def test_debug_shows_the_traceback(capsys):
    assert cli.run(["missing.pt", "out", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_lists_every_flag(capsys):
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("inspect", "to_torch", "method", "component", "dtype", "wrapper"):
        assert f"  --{flag}\n" in text


def test_the_script_runs_from_a_clone(tmp_path, file):
    root = tiny_pipeline.__file__.rsplit("/tests/", 1)[0]
    result = subprocess.run(
        [sys.executable, f"{root}/scripts/convert_checkpoint.py", "--inspect", file],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "Wan 48 wide, 3 blocks T2V" in result.stdout
