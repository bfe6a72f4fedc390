"""Whether a session that was read is one that its pipeline could have made.

A file may come from anywhere. Structure, shapes and types of all that a step would read
are compared with those that the pipeline makes, without running anything.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fdjax.axes import Params, PyTree
from fdjax.checkpoint import files
from fdjax.contract.conditioner import Conditions
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.session import journal
from fdjax.session.saved import SessionData
from fdjax.session.timeline import Step


def check(data: SessionData, pipeline: StreamInferencePipeline, params: Params) -> None:
    """Refuses what the pipeline could not have made.

    Args:
        data: A session; its arrays may lie anywhere.
        pipeline: Of its settings.
        params: Their shapes count.

    Raises:
        ValueError: Says which part is not as it must be.
    """
    _check_counts(data)
    shapes = _Shapes(data, pipeline, params)
    _compare("its cache", data.cache, shapes.cache(len(data.steps), data.conditions))
    first = len(data.steps) - len(data.journal)
    for number, entry in enumerate(data.journal, start=first):
        step = data.steps[number]
        wanted = shapes.entry(number, step.conditions)
        _compare(f"its way back from chunk {number}", entry.arrays, wanted.arrays)
        if entry.is_first != wanted.is_first:
            raise ValueError(f"its way back from chunk {number} is another chunk's")
    for ahead in (*data.upcoming, *_all_conditions(data.undone)):
        shapes.cache(len(data.steps), ahead)


def _check_counts(data: SessionData) -> None:
    chunk = len(data.steps)
    if len(data.journal) > chunk:
        raise ValueError("its way back is longer than its timeline")
    indices = [(chunk, data.cache.autoregressive_index)]
    first = chunk - len(data.journal)
    indices += [
        (number, entry.autoregressive_index)
        for number, entry in enumerate(data.journal, start=first)
    ]
    for number, index in indices:
        if not np.all(np.asarray(index) == number):
            raise ValueError(f"what it calls chunk {number} is another one")
    if any(event.chunk < chunk for event in data.events):
        raise ValueError("it has events for chunks that are made")
    if data.cache.final_state is not None:
        raise ValueError("its cache is in the midst of a chunk")


def _all_conditions(steps: tuple[Step, ...]) -> list[Conditions]:
    return [each for step in steps for each in (step.conditions, *step.upcoming)]


class _Shapes:
    """Shapes of the caches and entries of one session, by the shapes of conditions."""

    def __init__(
        self, data: SessionData, pipeline: StreamInferencePipeline, params: Params
    ):
        self._data, self._pipeline, self._params = data, pipeline, params
        self._fresh: Any = None
        self._later: Any = None
        self._known: dict[Any, Any] = {}

    def cache(self, chunk: int, conditions: Conditions) -> Any:
        """The cache before chunk `chunk`."""
        base = self._after_one() if chunk else self._before_all()
        key = (bool(chunk), _aval_key(conditions))
        if key not in self._known:
            self._known[key] = _shape(
                "its conditions",
                self._pipeline.update_conditions,
                self._params,
                base,
                conditions,
            )
        return self._known[key]

    def entry(self, chunk: int, conditions: Conditions) -> journal.Entry:
        """The journal's entry of chunk `chunk`."""
        cache = self.cache(chunk, conditions)

        def take(cache: PyTree) -> Any:
            return journal.take(self._pipeline, cache).arrays

        key = ("entry", bool(chunk), _aval_key(conditions))
        if key not in self._known:
            self._known[key] = _shape("its way back", take, cache)
        scratch, encoder_cache, decoder_cache, index = self._known[key]
        return journal.Entry(
            scratch=scratch,
            encoder_cache=encoder_cache,
            decoder_cache=decoder_cache,
            autoregressive_index=index,
            is_first=cache.is_first,
        )

    def _before_all(self) -> Any:
        start = self._data.start

        def begin(params: Params, conditions: Conditions) -> Any:
            return self._pipeline.initialize_cache(
                params,
                conditions=conditions,
                pixel_height=start.pixel_height,
                pixel_width=start.pixel_width,
                key=start.key,
            )

        if self._fresh is None:
            what = "its start"
            self._fresh = _shape(what, begin, self._params, start.conditions)
        return self._fresh

    def _after_one(self) -> Any:
        """One chunk later; a codec's state is another one then, for good."""

        def step(params: Params, cache: PyTree, control: PyTree) -> Any:
            cache, _ = self._pipeline.generate(params, cache, control)
            return self._pipeline.finalize(params, cache)

        if self._later is None:
            fresh, control = self._before_all(), self._data.steps[0].control
            self._later = _shape(
                "its first control", step, self._params, fresh, control
            )
        return self._later


def _shape(what: str, function: Callable[..., Any], *arguments: PyTree) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:  # whatever strange shapes can make a network raise
        reason = files.shorten(error).rstrip(".")
        raise ValueError(f"this pipeline does not take {what} ({reason})") from None


def _aval_key(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(map(_aval, leaves))


def _compare(what: str, found: PyTree, wanted: PyTree) -> None:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (found, wanted)]
    if structures[0] != structures[1]:
        raise ValueError(f"{what} has not the structure that this pipeline gives it")
    named = jax.tree_util.tree_leaves_with_path(found)
    for (path, leaf), shape in zip(named, jax.tree.leaves(wanted), strict=True):
        if _aval(leaf) != _aval(shape):
            raise ValueError(
                f"{what} has {_aval(leaf)} at {jax.tree_util.keystr(path)}, this "
                f"pipeline makes {_aval(shape)}"
            )


def _aval(leaf: Any) -> str:
    """Type and shape of an array; a plain number has none."""
    if not hasattr(leaf, "shape"):
        return type(leaf).__name__
    return f"{leaf.dtype}{list(leaf.shape)}"
