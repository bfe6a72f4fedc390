"""Child processes of tests: none outlives its test, Ctrl-C works in all of them."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def default_signals() -> Iterator[None]:
    """Within it Ctrl-C interrupts and SIGHUP ends, here and in processes started then.

    A run in the background of a script (`nohup … &`) ignores both, and its children
    inherit that. `Popen(preexec_fn=…)` could undo it, but warns beside threads.
    """
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGHUP: signal.SIG_DFL,
    }
    previous = {number: signal.signal(number, to) for number, to in defaults.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def running(arguments, **options) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, as a shell starts it; killed on leaving.

    `Popen` as a context waits instead, for ever if the test has failed or timed out.
    """
    with default_signals():
        process = subprocess.Popen(arguments, process_group=0, **options)
    with process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen) -> bool:
    """Kills a process, with its group if it leads one; whether it was alive."""
    if process.poll() is not None:
        return False
    if os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    return True


@contextlib.contextmanager
def reaped() -> Iterator[None]:
    """Kills what was started within and is alive at the end.

    Raises:
        AssertionError: Something was.
    """
    started, start = [], subprocess.Popen.__init__

    def noted(self, *arguments, **options):
        start(self, *arguments, **options)
        started.append(self)

    with mock.patch.object(subprocess.Popen, "__init__", noted):
        yield
    alive = [process.args for process in started if kill(process)]
    assert not alive, f"outlived its test: {alive}"
