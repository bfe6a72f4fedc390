"""Finds the first chunk of a run that is NaN or infinite, and the stage that made it.

The device says so itself, in a flag per stage beside each chunk, which the host reads
when the chunk arrives: nothing waits for it.
"""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array, PyTree
from fdjax.engine.pipeline import StageProfiler

_WATCHED = ("encode", "diffuse", "decode")
_LAG = 4  # chunks; a writer has at most three in its hands, so that these arrived


class NonFiniteError(FloatingPointError):
    """A run was stopped as its network gives NaN or infinite values."""


class ChunkFlags:
    """Which stages of one chunk gave values that are all finite.

    Attributes:
        index: Of the chunk, within its run.
    """

    def __init__(self, index: int, flags: dict[str, Any]):
        self.index = index
        self._flags = flags

    @functools.cached_property
    def bad_stage(self) -> str | None:
        """The first stage that is not finite; waits for the chunk."""
        # The writer's thread and the run's may ask at once: both find the same.
        return next((name for name, flag in self._flags.items() if not flag), None)

    def is_good(self) -> bool:
        """Whether all stages are finite; waits for the chunk."""
        return self.bad_stage is None

    def is_ready(self) -> bool:
        """Whether the flags can be read without waiting."""
        return all(flag.is_ready() for flag in self._flags.values())


class FiniteWatch:
    """Stands where a profiler stands, and passes on what it is told.

    Attributes:
        profiler: Told of every stage, or None.
        bad: Stages by the index of the chunk, of those that were looked at.
    """

    def __init__(self, profiler: StageProfiler | None = None):
        self.profiler = profiler
        self.bad: dict[int, str] = {}
        self._values: dict[str, PyTree] = {}
        self._waiting: collections.deque[ChunkFlags] = collections.deque()

    def record(self, stage: str, value: PyTree) -> None:
        """Notes the result of a stage."""
        if stage in _WATCHED:
            self._values[stage] = value
        if self.profiler is not None:
            self.profiler.record(stage, value)

    def end_chunk(self, index: int) -> ChunkFlags:
        """Has the device check the chunk whose stages were recorded."""
        stages = {stage: _real_leaves(value) for stage, value in self._values.items()}
        self._values = {}
        flags = _flags(stages)
        for flag in flags.values():
            # On its way beside the chunk: to read it later costs no waiting.
            flag.copy_to_host_async()
        chunk = ChunkFlags(index, flags)
        self._waiting.append(chunk)
        return chunk

    def look(self) -> None:
        """Fills `bad` by what arrived, without waiting for more."""
        alone = jax.process_count() == 1
        while self._waiting:
            # Several processes must stop at one chunk: they go by its age.
            known = self._waiting[0].is_ready() if alone else len(self._waiting) > _LAG
            if not known:
                return
            self._note(self._waiting.popleft())

    def wait(self) -> None:
        """Fills `bad` by all chunks."""
        while self._waiting:
            self._note(self._waiting.popleft())

    def _note(self, chunk: ChunkFlags) -> None:
        if chunk.bad_stage is not None:
            self.bad[chunk.index] = chunk.bad_stage


def check_conditions(conditions: PyTree) -> None:
    """Refuses conditions that are not finite, as a broken text encoder gives them.

    Raises:
        NonFiniteError: Names the leaf.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(conditions):
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        here = getattr(leaf, "is_fully_addressable", True)
        if inexact and here and not np.isfinite(np.asarray(leaf)).all():
            name = jax.tree_util.keystr(path).lstrip(".")
            raise NonFiniteError(
                "The encoder of the conditions gives NaN or infinite values: "
                f"{name}. Nothing was made; check its weights and its dtype."
            )


def _real_leaves(tree: PyTree) -> list[Any]:
    arrays = map(jnp.asarray, jax.tree.leaves(tree))
    return [leaf for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.inexact)]


def _flags(stages: dict[str, list[Any]]) -> dict[str, Array]:
    """`_all_finite` of each stage, in one call for those of the same devices."""
    together: dict[frozenset[Any], list[str]] = {}
    for stage, leaves in stages.items():
        here = frozenset().union(*(leaf.sharding.device_set for leaf in leaves))
        together.setdefault(here, []).append(stage)
    flags: dict[str, Array] = {}
    for names in together.values():
        found = _all_finite([stages[name] for name in names])
        flags |= zip(names, found, strict=True)
    return {stage: flags[stage] for stage in stages}


@jax.jit
def _all_finite(stages: list[list[Array]]) -> list[Array]:
    """Whether all values of each stage are finite.  bool[] per stage."""
    return [
        functools.reduce(
            jnp.logical_and,
            [jnp.isfinite(leaf).all() for leaf in leaves],
            jnp.array(True),
        )
        for leaves in stages
    ]
