"""A run that is told to end: its video is whole, and its code says why it ended."""

import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from fdjax.run import edge, media, plugins, signals
from tests import processes, tiny_runner

pytestmark = pytest.mark.usefixtures("default_signals")

NAME = "tiny-random-weights"
ENDLESS = ("tiny", "--total_blocks=9000000", "--num_controls=9000000")
ROOT = pathlib.Path(tiny_runner.__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    plugins.VARIABLE: "tiny=tests.tiny_runner:RUNNER_CONFIGS",
    "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
}
COMMAND = (sys.executable, "-m", "fdjax.run.cli", *ENDLESS)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))


def wait_for_frames(alive):
    """Until the encoder has written something."""
    while not any(p.stat().st_size for p in pathlib.Path().glob("outputs/.*/new/*")):
        assert alive()
        time.sleep(0.05)


def check_files(text):
    """The video is whole, has what was announced, and its reports lie beside it."""
    count = int(re.search(r"Wrote .*mp4: (\d+) frames", text)[1])
    assert len(media.read_video(f"outputs/{NAME}.mp4")) == count
    kinds = "mp4", "png", "config.json", "replay.json"
    names = {f"stats_{NAME}.json", *(f"{NAME}.{kind}" for kind in kinds)}
    assert set(os.listdir("outputs")) == names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_like_ctrl_c(number):
    with processes.running(
        COMMAND, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as running:
        wait_for_frames(lambda: running.poll() is None)
        running.send_signal(number)
        running.send_signal(number)  # a shell passes on what the kernel sent as well
        _, err = running.communicate()
    assert running.returncode == 128 + number, err
    assert "Traceback" not in err
    assert f"fdjax-run: {number.name}. Wrote " in err
    check_files(err)


def test_a_job_in_the_background_of_a_script(tmp_path):
    """`nohup … &`: the terminal's signals are ignored and stay so, SIGTERM is not."""
    previous = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP,)}
    try:
        with (
            pathlib.Path("log").open("w") as log,
            subprocess.Popen(
                ["sh", "-c", 'nohup "$@" & echo $!; wait $!', "sh", *COMMAND],
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=log,
            ) as shell,
        ):
            number = int(shell.stdout.readline())
            try:
                wait_for_frames(lambda: shell.poll() is None)
                for ignored in (signal.SIGHUP, signal.SIGINT):
                    os.kill(number, ignored)
                time.sleep(0.5)
                assert shell.poll() is None
                assert not pathlib.Path(f"outputs/{NAME}.mp4").exists()
                os.kill(number, signal.SIGTERM)
                shell.wait()
            finally:
                if shell.poll() is None:
                    os.kill(number, signal.SIGKILL)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    assert shell.returncode == 128 + signal.SIGTERM
    check_files(pathlib.Path("log").read_text())


def test_a_terminal_that_is_closed():
    """Every write to it fails from then on; the run is ended all the same."""
    terminal, other_end = pty.openpty()
    with processes.default_signals():
        running = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, *COMMAND],
            env=ENVIRONMENT,
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            start_new_session=True,
        )
    os.close(other_end)
    closed = threading.Event()
    reader = threading.Thread(target=drain, args=(terminal, closed))
    reader.start()
    try:
        wait_for_frames(lambda: running.poll() is None)
    finally:
        closed.set()
        reader.join()
        os.close(terminal)
    try:
        code = running.wait(60)
    finally:
        processes.kill(running)
    assert code == 128 + signal.SIGHUP
    frames = media.read_video(f"outputs/{NAME}.mp4")
    assert len(frames) > 0
    assert pathlib.Path(f"outputs/stats_{NAME}.json").exists()
    assert not list(pathlib.Path("outputs").glob(".*"))


OWN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def drain(terminal, closed):
    """Reads what is written to a terminal, which would fill up."""
    while not closed.is_set():
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 4096)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_codes_of_a_command(capsys, number):
    def command():
        signal.raise_signal(number)

    previous = signal.getsignal(number)
    assert edge.guard("tool", command) == 128 + number
    assert capsys.readouterr().err == f"\ntool: {number.name}.\n"
    assert signal.getsignal(number) == previous


def test_what_is_held_is_not_cut_short():
    done = []

    def finish():
        with signals.held():
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGHUP)
            done.append(1)

    with signals.ending_like_ctrl_c() as came:
        with pytest.raises(KeyboardInterrupt):
            finish()
        assert came[0] == signal.SIGTERM
    assert done == [1]


def test_a_second_ctrl_c_is_not_held():
    done = []

    def finish():
        with signals.held():
            signal.raise_signal(signal.SIGINT)
            done.append(1)
            signal.raise_signal(signal.SIGINT)
            done.append(2)

    with processes.default_signals():
        with pytest.raises(KeyboardInterrupt):
            finish()
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert done == [1]


def test_what_is_ignored_stays_ignored():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        with signals.ending_like_ctrl_c() as came, signals.held():
            for number in numbers:
                signal.raise_signal(number)
        assert came == []
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def test_other_threads_leave_signals_alone():
    found = []

    def work():
        with signals.ending_like_ctrl_c(), signals.held():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
