"""The helpers that keep tests from leaving processes behind."""

import os
import signal
import subprocess
import sys

import pytest

from tests import processes

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def test_a_process_is_killed_where_its_block_fails():
    with (
        pytest.raises(RuntimeError, match="the test fails"),
        processes.running(SLEEP) as process,
    ):
        raise RuntimeError("the test fails")
    assert process.returncode == -signal.SIGKILL


def test_the_whole_group_is_killed():
    code = f"import subprocess; subprocess.run({SLEEP!r})"
    options = {"stdout": subprocess.PIPE, "text": True}
    with processes.running([sys.executable, "-c", code], **options) as process:
        assert process.stdout.readline() == "up\n"
        processes.kill(process)
        # The pipe ends when the grandchild, which holds it too, is gone.
        assert process.stdout.read() == ""


def test_what_a_test_forgets_is_killed_and_told():
    with (
        pytest.raises(AssertionError, match=r"outlived its test: .*sleep"),
        processes.reaped(),
    ):
        process = subprocess.Popen(SLEEP)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("ignored", [True, False])
def test_children_can_be_interrupted_where_sigint_is_ignored(ignored):
    handler = signal.SIG_IGN if ignored else signal.default_int_handler
    previous = signal.signal(signal.SIGINT, handler)
    try:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with processes.running(SLEEP, **options) as process:
            assert process.stdout.readline() == "up\n"
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in err
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, previous)
