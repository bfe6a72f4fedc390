"""Compiles what a session runs, side by side, before there are weights.

Shapes are enough: `initialize_cache`, `generate` and `finalize` are called with them on
a thread, their programs are traced instead of run, and the compiler works on all of
them at once while weights are read. The calls with values then find them ready.
"""

import concurrent.futures
import contextvars
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from fdjax.axes import Params, PyTree
from fdjax.sharding import is_host_memory

_ahead: "contextvars.ContextVar[Programs | None]" = contextvars.ContextVar(
    "_ahead", default=None
)
_log = logging.getLogger(__name__)


def call(program: Any, *args: Any) -> Any:
    """The result of a jitted function; where `Programs` are made, its shapes."""
    programs = _ahead.get()
    return program(*args) if programs is None else programs.add(program, *args)


def session(
    pipeline: Any,
    params: Params,
    start: Callable[[], PyTree],
    inputs: PyTree | None,
    first: int = 0,
) -> "Iterator[None]":
    """The calls of a session, for `Programs`: its first chunk, then all others.

    Args:
        pipeline: What runs.
        params: Shapes of the weights, by component.
        start: Called without arguments for the cache that it begins with.
        inputs: Of each chunk of the session, or None; two are looked at.
        first: The chunk that comes next.
    """
    cache = start()
    for chunk in range(first, first + 3):
        control = None
        if inputs is not None:
            # All behind the second are alike.
            control = inputs[min(chunk, first + 1, len(inputs) - 1)]
        cache, _ = pipeline.generate(params, cache, control, donate=True)
        if chunk == first:
            yield
        cache = pipeline.finalize(params, cache, donate=True)
    yield


class Programs:
    """Programs that are being compiled.

    Nothing depends on them: what cannot be compiled ahead is compiled when it is
    called, and fails there if it must.
    """

    def __init__(self, calls: "Iterator[None]", moments: int = 2) -> None:
        """Begins to trace and to compile.

        Args:
            calls: Makes the calls; yields at the end of each moment of `wait`.
            moments: How often it yields.
        """
        self._jobs: list[list[concurrent.futures.Future[Any]]] = [
            [] for _ in range(moments)
        ]
        self._traced = [threading.Event() for _ in range(moments)]
        self._moment = 0
        self._seen: set[Any] = set()
        self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "compile")
        # A daemon: whoever interrupts a run does not wait for the compiler.
        threading.Thread(
            target=self._trace, args=(calls,), name="trace", daemon=True
        ).start()

    def _trace(self, calls: "Iterator[None]") -> None:
        _ahead.set(self)  # of this thread alone
        try:
            for traced in self._traced:
                next(calls, None)
                traced.set()
                self._moment += 1
        except Exception as error:
            _log.debug("Not all is compiled ahead: %r", error)
        finally:
            for traced in self._traced:
                traced.set()
            self._pool.shutdown(wait=False)

    def add(self, program: Any, *args: Any) -> PyTree:
        """Traces a jitted function and begins to compile it; shapes of its result."""
        traced = program.trace(*args)
        leaves, tree = jax.tree.flatten(args)
        key = program, tree, tuple(map(_signature, leaves))
        if key not in self._seen:
            self._seen.add(key)
            job = self._pool.submit(lambda: traced.lower().compile())
            self._jobs[self._moment].append(job)
        # What a program makes lives where its arguments were put, if they were.
        where = _result_place(leaves)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            traced.out_info,
        )

    def wait(self, moment: int = -1) -> None:
        """Waits for what one moment needs, the first being 0; the last by default."""
        self._traced[moment].wait()
        for job in self._jobs[moment]:
            if error := job.exception():
                _log.debug("A program was not compiled ahead: %r", error)

    @property
    def num_programs(self) -> int:
        """How many were begun so far."""
        return sum(map(len, self._jobs))


def _place(leaf: Any) -> Any:
    """Where an array was put, or its shape says that it will be; None: nowhere."""
    if isinstance(leaf, jax.Array):
        return leaf.sharding if leaf.committed else None
    return getattr(leaf, "sharding", None)


def _result_place(leaves: list[Any]) -> Any:
    """Where a program puts what it makes: on the device of its arguments, if on one."""
    placed = [place for leaf in leaves if (place := _place(leaf)) is not None]
    near = [place for place in placed if not is_host_memory(place)]
    return near[0] if near else None


def _signature(leaf: Any) -> Any:
    """What a program knows of an argument."""
    if hasattr(leaf, "shape"):
        return leaf.shape, str(leaf.dtype), _place(leaf)
    return leaf
