"""SIGKILL at any instant: the old or the new one is there, and nothing stays behind.

A short seeded round by default; `--robustness-trials N` kills N times more per kind, at
random instants, and before every operation.
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from fdjax.run import media, plugins
from tests import processes, tiny_runner
from tests.convert import servers
from tests.robustness import kill_points

pytestmark = [pytest.mark.usefixtures("default_signals"), pytest.mark.slow]

ROOT = pathlib.Path(tiny_runner.__file__).parents[1]
QUICK = {
    "checkpoint": 6,
    "checkpoint file": 8,
    "download": 10,
    "session": 5,
}  # of their operations; else before each


@pytest.fixture
def trials(request):
    return request.config.getoption("--robustness-trials")


@pytest.fixture
def environment():
    paths = [str(ROOT), *sys.path]
    with servers.serve() as server:
        for digit in "123":
            server.files[f"n{digit}"] = digit.encode() * kill_points.SIZE
        yield {
            **os.environ,
            "SERVER": server.url,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "HF_HUB_OFFLINE": "",
            "TRANSFORMERS_OFFLINE": "",
            plugins.VARIABLE: "tiny=tests.tiny_runner:RUNNER_CONFIGS",
        }


@pytest.mark.parametrize("name", kill_points.SCENARIOS)
@pytest.mark.timeout(0)  # of the long round; the quick one's process has its own
def test_what_is_written_is_whole(tmp_path, environment, trials, name):
    points = 0 if trials else QUICK.get(name, 0)
    done = subprocess.run(
        [
            *(sys.executable, kill_points.__file__, name, tmp_path),
            *(str(points), str(trials or 2), "0"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=None if trials else 300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    print(name, counts)
    assert counts["killed"] >= min(points or counts["operations"], 5)
    assert {"old", "new"} <= set(counts)  # kills came early and late


@pytest.mark.timeout(0)
def test_a_run_leaves_the_video_before_it(tmp_path, environment, trials):
    """Killed while it streams; the next run sweeps what it left and writes its own."""
    rng = random.Random(0)
    command = [sys.executable, "-m", "fdjax.run.cli", "tiny"]
    video = tmp_path / "outputs" / "tiny-random-weights.mp4"
    endless = ["--total_blocks=9000000", "--num_controls=9000000"]
    options = {"env": environment, "cwd": tmp_path, "stderr": subprocess.PIPE}
    subprocess.run([*command, "--total_blocks=2"], check=True, **options)
    whole = video.read_bytes()
    for _ in range(trials or 1):
        with processes.running([*command, *endless], **options) as running:
            while not list(video.parent.glob(".*/new/*.mp4")):
                assert running.poll() is None, running.stderr.read()
                time.sleep(0.02)
            time.sleep(rng.random())
            running.kill()
        others = [p for p in video.parent.glob("*.mp4") if p != video]
        assert video.read_bytes() == whole
        assert not others
    assert list(video.parent.glob(".*"))
    subprocess.run([*command, "--total_blocks=2"], check=True, **options)
    assert not list(video.parent.glob(".*"))
    assert len(media.read_video(video)) == 3
