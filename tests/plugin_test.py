"""The example of a package with a method of its own, installed from its directory."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fdjax import testing
from fdjax.run import media

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGE = REPOSITORY / "examples/own_method"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where pip installed the package."""
    folder = tmp_path_factory.mktemp("plugin")
    source = folder / "source"
    shutil.copytree(PACKAGE, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--target", str(folder / "site"), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def fdjax_run(installed, tmp_path):
    """Runs fdjax-run with the package on the path; gives the finished process."""
    roots = [installed, REPOSITORY, REPOSITORY / "models", REPOSITORY / "convert"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, roots), *sys.path]),
        "FDJAX_CACHE_DIR": str(tmp_path / "cache"),
        "FDJAX_RUNNER_CONFIGS": "",
    }

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "fdjax.run.cli", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )

    return run


def test_the_package_is_what_pip_installed(installed):
    assert (installed / "fdjax_ripples" / "config.py").exists()
    [metadata] = installed.glob("fdjax_ripples-*.dist-info")
    assert "[fdjax.runner_configs]" in (metadata / "entry_points.txt").read_text()


def test_it_is_listed_beside_our_own_methods(fdjax_run):
    done = fdjax_run("--help")
    assert done.returncode == 0, done.stderr
    listed = done.stdout.partition("methods:")[2].partition("broken plug-ins:")[0]
    line = (
        "\n  ripples       Grey ripples that follow given levels, from another package."
    )
    assert line in listed
    assert "\n  template-autoregressive\n" in listed


def test_its_fields_are_flags(fdjax_run):
    done = fdjax_run("ripples", "--help")
    assert done.returncode == 0, done.stderr
    assert "--levels  (tuple of float; default (-0.5, 0.0, 0.5))" in done.stdout
    assert "Weight of the chunk before, in [0, 1)." in done.stdout
    done = fdjax_run("ripples", "--pipeline.diffusion_model.transformer.inertia", "1")
    assert done.returncode == 2
    assert "inertia must be in [0, 1), got 1.0" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_runs_from_the_command_line(fdjax_run, tmp_path):
    done = fdjax_run(
        "ripples",
        "--levels=0.8,-0.8",
        "--pipeline.diffusion-model.transformer.inertia=0.25",
    )
    assert done.returncode == 0, done.stderr
    video = media.read_video(tmp_path / "outputs" / "ripples.mp4")
    assert video.shape == (4, 32, 64, 3)
    # The second chunk is a quarter of the first one's latent and its own level.
    levels = np.array([0.8, 0.25 * 0.8 - 0.75 * 0.8])
    ripples = 0.1 * np.sin(np.linspace(0, 4 * np.pi, 16, endpoint=False))
    expected = (np.tanh(levels[:, None] + ripples) + 1) * 127.5
    row = np.repeat(np.repeat(expected, 4, axis=1), 2, axis=0)  # [T, W]
    # H.264 at this quality: a level or two, more at the edges of the blocks.
    error = np.abs(video.mean(-1) - row[:, None])
    assert error.mean() < 2
    assert error.max() < 8
    stats = json.loads((tmp_path / "outputs" / "stats_ripples.json").read_text())
    assert [chunk["frames"] for chunk in stats] == [2, 2]


def test_its_own_tests_pass(installed):
    """The contract suite, as its author runs it."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "-p",
        "no:cacheprovider",
    ]
    path = os.pathsep.join([str(installed), *sys.path])
    done = subprocess.run(
        [*command, str(PACKAGE / "tests" / "contract_test.py")],
        capture_output=True,
        text=True,
        cwd=PACKAGE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(testing.CHECKS)} passed" in done.stdout
