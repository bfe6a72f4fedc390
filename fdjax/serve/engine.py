"""The one thread that runs the model: sessions by turns, each when its chunk is due."""

import collections
import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from fdjax.run import edge
from fdjax.serve import together
from fdjax.serve.live import Live
from fdjax.serve.model import Model, Pixels

_T = TypeVar("_T")
_LONGEST_WAIT = 0.05  # seconds; after which it is looked again who can be sent more
_log = logging.getLogger(__name__)


class Job(Protocol):
    """Work that has time; it is done where no session is due."""

    def step(self) -> bool:
        """Makes one chunk; whether there is more to do."""


class Engine:
    """Runs a model on a thread of its own; every other thread asks it by `call`.

    Attributes:
        phase: "loading", "ready" or "failed".
        text: What is being loaded, or why it failed.
        progress: The part of loading that is done, in [0, 1].
        error: Why it failed.
        num_chunks: Made since it started.
        num_frames: Made since it started.
    """

    def __init__(
        self,
        model: Model,
        on_progress: Callable[[], None],
        *,
        max_sessions: int = 1,
        lanes: int | None = None,
    ) -> None:
        """Starts nothing.

        Args:
            model: What it runs.
            max_sessions: At a time.
            lanes: Sessions in one forward pass; see `together.num_lanes`.
            on_progress: Called on the thread when `phase`, `text` or `progress` change.
        """
        self.model = model
        self.phase, self.text, self.progress = "loading", "Starting", 0.0
        self.error: BaseException | None = None
        self.num_chunks = self.num_frames = 0
        self._on_progress = on_progress
        self._lives: list[Live] = []
        self._max_sessions, self._lanes = max_sessions, lanes
        self._together: together.Together | None = None
        self._spacing = 0.0  # seconds that a chunk is shown for
        self._jobs: collections.deque[Job] = collections.deque()
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread, which loads first."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the chunk that it makes."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout=10)

    def call(self, function: Callable[[], _T]) -> "concurrent.futures.Future[_T]":
        """Runs a function on the thread, between two chunks, in the order of calls."""
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        with self._wake:
            self._calls.append(run)
            self._wake.notify()
        return future

    # On the thread only

    def add(self, live: Live) -> None:
        """Lets a session have its turns."""
        self._lives.append(live)

    def remove(self, live: Live) -> None:
        """Ends a session."""
        if live in self._lives:
            self._lives.remove(live)
        live.close()

    def add_job(self, job: Job) -> None:
        """Lets a job have what time is left."""
        self._jobs.append(job)

    def _work(self) -> None:
        try:
            self._prepare()
            self._tell("Ready", 1.0, "ready")
            while not self._stopping:
                self._turn()
        except BaseException as error:  # what no session is to blame for
            self.error = error
            self._tell(edge.message(error), self.progress, "failed")
        for live in self._lives:
            live.close()

    def _prepare(self) -> None:
        session = self.model.load(self._tell)
        lanes = together.num_lanes(self._lanes, self._max_sessions, session)
        if lanes > 1:
            self._tell("Compiling the batch of sessions", 0.95)
            self._together = together.Together(self.model, session, lanes)
        session.close()

    def _turn(self) -> None:
        """Answers calls, then makes the chunk that is due first, or waits."""
        while self._calls:
            self._calls.popleft()()
        due = [(when, live) for live in self._lives if (when := live.due()) is not None]
        due.sort(key=lambda each: each[0])
        when, now = due[0][0] if due else None, time.monotonic()
        if when is not None and when <= now:
            self._make(due, now)
            return
        if self._jobs:
            job = self._jobs[0]
            if not job.step():
                self._jobs.popleft()
            return
        wait = _LONGEST_WAIT if when is None else min(when - now, _LONGEST_WAIT)
        with self._wake:
            if not self._calls and not self._stopping:
                self._wake.wait(wait)

    def _make(self, due: list[tuple[float, Live]], now: float) -> None:
        """The chunk that is due first, and with it those that share its forward pass.

        A session whose chunk would be due soon comes along, early; one that would wait
        for long goes with the next one. So all fall into step.
        """
        chosen, batch = [due[0][1]], self._together
        if batch is not None and batch.take_in(chosen[0]):
            soon = [live for when, live in due if when <= now + self._spacing / 2]
            chosen = [live for live in soon if batch.take_in(live)]
        else:
            batch = None
        pairs = [(live, live.next_control()) for live in chosen]
        controls = [(live, given[0]) for live, given in pairs if given is not None]
        if not controls:
            return
        began = time.monotonic()
        made: Sequence[Pixels | Exception]
        try:
            if batch is None:
                made = [chosen[0].current.make(controls[0][1])]
            else:
                made = batch.make(controls)
        except Exception as error:
            made = [error] * len(controls)
        seconds = time.monotonic() - began
        for (live, _), video in zip(controls, made, strict=True):
            live.took(video, seconds)
            if not isinstance(video, Exception):
                self.num_chunks += 1
                self.num_frames += len(video)
                self._spacing = len(video) / self.model.fps

    def _tell(self, text: str, progress: float, phase: str = "loading") -> None:
        self.phase, self.text, self.progress = phase, text, progress
        _log.info("%s.", text)
        self._on_progress()
