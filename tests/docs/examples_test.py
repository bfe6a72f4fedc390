"""The examples run, and say and write what they are meant to."""

import dataclasses
import os
import re
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest

import fdjax
from fdjax.run import media
from fdjax.run.preset import read_preset
from tests.docs.snippets import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run(tmp_path):
    """Runs one example in an empty directory; gives what it printed."""
    roots = [ROOT, ROOT / "models", ROOT / "convert"]
    path = os.pathsep.join([*map(str, roots), *sys.path])

    def run_example(name, *arguments):
        done = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_example


def test_there_is_no_example_without_a_test():
    tested = {"quickstart.py", "fork_and_undo.py", "gradients.py"}
    tested |= {"many_clips.py", "many_sessions.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert folders - {"__pycache__", "outputs"} == {"own_method", "maze_at_dusk"}
    # own_method: tests/plugin_test.py
    assert {path.name for path in EXAMPLES.glob("*.ipynb")} == {"walk.ipynb"}


def test_quickstart(run, tmp_path):
    assert "now 25" in run("quickstart.py")
    frames = iio.imread(tmp_path / "outputs/quickstart.gif")
    assert frames.shape == (25, 96, 160, 3)
    # Blue at night, and it moves.
    red, green, blue = frames.mean((0, 1, 2))
    assert blue > red
    assert blue > green
    assert np.abs(np.diff(frames.astype(float), axis=0)).mean() > 1


def test_fork_and_undo(run, tmp_path):
    printed = run("fork_and_undo.py")
    assert "left and right differ: True" in printed
    assert "the same to the bit: True" in printed
    assert "chunks made by each session: [6, 7, 7]" in printed
    assert iio.imread(tmp_path / "outputs/fork_and_undo.png").shape == (288, 480, 3)


@pytest.mark.slow
def test_gradients_find_the_turn(run):
    printed = run("gradients.py")
    slopes = [float(each) for each in re.findall(r"slope ([+-][\d.]+)", printed)]
    assert slopes[0] < 0  # more to the left is better
    assert slopes[3] > 0  # that was too far
    found = re.search(r"found ([+-][\d.]+), made with ([+-][\d.]+)", printed)
    assert abs(float(found[1]) - float(found[2])) < 0.1


def test_the_preset_has_a_walk_into_the_dusk(tmp_path):
    config = read_preset(EXAMPLES / "maze_at_dusk", fdjax.runner_configs())
    config = dataclasses.replace(config, output_dir=tmp_path, progress=False)
    video = media.read_video(config.setup().run().output)
    assert len(video) == 33
    # The sky loses its blue.
    sky = video[:, :24, 64:96].mean((1, 2))
    assert sky[:12, 2].min() - sky[:12, 0].max() > 20
    assert sky[-1, 2] - sky[-1, 0] < 0.5 * (sky[0, 2] - sky[0, 0])


def test_many_clips(run, tmp_path):
    given = ("prompts.txt", "clips")
    (tmp_path / "prompts.txt").write_text("clear red brick maze\n\nblue maze\n")
    printed = run("many_clips.py", *given, "--processes", "2")
    assert len(re.findall(r"^line \d: ", printed, re.M)) == 2
    clips = tmp_path / "clips"
    assert sorted(path.name for path in clips.iterdir()) == ["00000.mp4", "00002.mp4"]
    assert media.read_video(clips / "00000.mp4").shape == (13, 96, 160, 3)
    again = run("many_clips.py", *given, "--task", "0", "--num_tasks", "2")
    assert again == "to make: 0, there: 2\n"


@pytest.fixture
def notebook():
    nbformat = pytest.importorskip("nbformat")  # the extra "docs"
    return nbformat.read(EXAMPLES / "walk.ipynb", as_version=4)


def test_the_notebook_keeps_its_outputs(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    kinds = [
        kind
        for cell in cells
        for output in cell.outputs
        for kind in output.get("data", {})
    ]
    assert "image/png" in kinds
    assert not any(output.output_type == "error" for c in cells for output in c.outputs)


def test_the_notebook_runs(notebook, monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    roots = [ROOT, ROOT / "models", ROOT / "convert"]
    path = os.pathsep.join([*map(str, roots), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    client = nbclient.NotebookClient(
        notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()


@pytest.mark.slow  # docs/sessions.md does the same among the snippets
def test_many_sessions(run, tmp_path):
    printed = run("many_sessions.py")
    assert "chunks made: [5, 4, 3]" in printed
    assert "made again to the bit: True" in printed
    assert "lanes that are free: 1" in printed
    rows = iio.imread(tmp_path / "outputs/many_sessions.png").reshape(3, 96, 640, 3)
    red, green, blue = rows.astype(float).mean((1, 2)).T
    # Each in the colour of its own prompt.
    assert red[0] > green[0]
    assert green[1] > red[1]
    assert blue[2] > red[2]
