"""A request to end, by Ctrl-C or by a signal, and what must not be cut short by it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

_ENDING = ("SIGTERM", "SIGHUP")  # Windows has the first only
_ONE_EVENT = 2.0  # seconds; a shell passes on the SIGHUP that the kernel sent as well


@contextlib.contextmanager
def ending_like_ctrl_c() -> Iterator[list[int]]:
    """Within it SIGTERM and SIGHUP raise `KeyboardInterrupt`, as SIGINT does.

    What is ignored stays so: SIGHUP under `nohup`, SIGINT of a job in the background of
    a script. Outside the main thread nothing changes.

    Yields:
        The numbers of those that came, in order; empty after a plain Ctrl-C.
    """
    came: list[int] = []
    last = -_ONE_EVENT

    def end(number: int, frame: Any) -> None:
        nonlocal last
        del frame
        again, last = time.monotonic() - last < _ONE_EVENT, time.monotonic()
        came.append(number)
        _leave_lost_terminal()
        if not again:
            raise KeyboardInterrupt

    previous = _handle(_ENDING, end)
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Ctrl-C and the like take effect at the end of the block; a second Ctrl-C at once.

    For what makes a run's results last. Whoever sends SIGTERM or SIGHUP again means
    the first one, and has SIGKILL for the rest.
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        del frame
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.append(number)

    previous = _handle(("SIGINT", *_ENDING), note)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for number in came[:1]:
        signal.raise_signal(number)


def _handle(names: tuple[str, ...], handler: Any) -> dict[int, Any]:
    """Sets a handler for signals that are not ignored; returns those before it."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {number: signal.getsignal(number) for number in numbers}
    # None: set by other than Python, and not ours to change.
    kept = {n: old for n, old in previous.items() if old not in (None, signal.SIG_IGN)}
    for number in kept:
        signal.signal(number, handler)
    return kept


def _leave_lost_terminal() -> None:
    """Sends output to nowhere if its terminal has gone, which every write would tell.

    A terminal that has been hung up is none any more, and nothing else that a process
    can ask of it is answered either.
    """
    for descriptor in (1, 2):
        try:
            os.fstat(descriptor)
            os.write(descriptor, b"")
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
