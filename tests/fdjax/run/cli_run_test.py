"""What a user sees of a run: from Enter to the last line."""

import dataclasses
import logging
import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import pytest

from fdjax.run import versions
from fdjax.run.inputs import LazySequence
from tests import tiny
from tests.tiny_runner import TinyRunner

pytestmark = pytest.mark.usefixtures("tiny_method")
ORIGINAL_READ_INPUTS = TinyRunner.read_inputs


def test_the_last_line_lists_every_file(fdjax_run):
    code, _, err = fdjax_run("tiny", "--save-session", "--progress=false")
    assert code == 0
    folder = pathlib.Path("outputs")
    last = err.splitlines()[-1]
    assert f"Wrote {(folder / 'tiny-random-weights.mp4').absolute()}: 7 frames" in last
    written = {path.name for path in folder.iterdir()}
    assert len(written) == 6
    assert all(name in last for name in written)


def test_what_happens_is_said_from_enter_to_the_first_frame(fdjax_run):
    lines = fdjax_run("tiny")[2].splitlines()
    order = ["RANDOM WEIGHTS", "Making random weights: transformer 1 MB", "... done in"]
    order += ["Compiling for the first chunk", "... first chunk under way after", "Wro"]
    found = [next(n for n, line in enumerate(lines) if text in line) for text in order]
    assert found == sorted(found)
    quiet = fdjax_run("tiny", "--progress=false")[2].splitlines()
    assert [line[:5] for line in quiet] == ["RANDO", "Wrote"]


def test_warnings_are_one_line_and_told_once(fdjax_run, monkeypatch):
    def run(self):
        for _ in range(3):
            logging.getLogger("fdjax.run.runner").warning("a word is unknown")
            warnings.warn("a prompt is too long", stacklevel=1)
            logging.getLogger("fdjax.run.runner").info("a step")

    monkeypatch.setattr(TinyRunner, "run", run)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        err = fdjax_run("tiny")[2]
    assert sorted(err.splitlines()) == [
        *("a prompt is too long", "a step", "a step", "a step", "a word is unknown"),
    ]


def test_version_tells_what_a_bug_report_needs(fdjax_run, monkeypatch):
    code, out, err = fdjax_run("--version")
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    wanted = ["fdjax", "python", "jax", "jaxlib", "flax", "numpy", "orbax-checkpoint"]
    assert set(wanted) <= set(names)
    assert re.search(r"^device: 1 x cpu", out, re.MULTILINE)
    monkeypatch.setattr(versions.jax, "devices", lambda: 1 / 0)
    code, out, err = fdjax_run("--version")
    assert (code, err) == (0, "")
    assert "devices: none, ZeroDivisionError" in out


def test_tiny_is_loud_and_leaves_other_flags_their_say(fdjax_run, resolve):
    config = resolve("--tiny", "--fps", "9")
    assert (config.random_weights, config.total_blocks, config.fps) == (True, 2, 9)
    assert resolve("--tiny", "--total-blocks", "3").total_blocks == 3
    code, _, err = fdjax_run("--tiny", "tiny")
    assert code == 0
    assert "TINY: a small random network" in err
    assert "output is noise" in err


def test_a_session_goes_on_from_the_command_line(fdjax_run):
    assert fdjax_run("tiny", "--save-session")[0] == 0
    session = "outputs/tiny-random-weights.session"
    code, _, err = fdjax_run("tiny", "--resume", session, "--total-blocks", "2")
    assert code == 0
    assert "Resumed at chunk 4" in err
    assert "tiny-random-weights-2.mp4: 4 frames" in err
    code, _, err = fdjax_run("tiny", "--resume", "nothing.session")
    assert (code, len(err.splitlines())) == (2, 2)  # and that the weights are random
    assert "error: There is no session at nothing.session" in err


def test_a_network_that_gives_nan_is_exit_code_1(fdjax_run, monkeypatch):
    def read_inputs(self):
        inputs = ORIGINAL_READ_INPUTS(self)
        controls = LazySequence(9, lambda n: jnp.full((1,), 3e38 if n == 2 else 0.1))
        return dataclasses.replace(inputs, controls=controls)

    def predict_flow(self, params, workspace, latent, timestep):
        workspace, flow = original(self, params, workspace, latent, timestep)
        return workspace, jnp.where(jnp.any(workspace[1] > 1e30), jnp.inf, flow)

    original = tiny.MeanTransformer.predict_flow
    monkeypatch.setattr(TinyRunner, "read_inputs", read_inputs)
    monkeypatch.setattr(tiny.MeanTransformer, "predict_flow", predict_flow)
    jax.clear_caches()
    code, _, err = fdjax_run("tiny")
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("fdjax-run: failed: chunk 2 is NaN or infinite, and the fir")
    assert "'diffuse'" in last
    assert "Wrote " in last
    assert fdjax_run("tiny", "--allow-nonfinite")[0] == 0
    jax.clear_caches()
