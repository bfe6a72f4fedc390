"""How much there is in nested containers, each of them visited once.

The same container may stand in many places: a file of a few hundred bytes can describe
2**60 paths, or a structure that contains itself.
"""

import dataclasses
from pathlib import Path
from typing import Any

from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.tensors import LazyTensor

MAX_ENTRIES = 100_000  # the largest models have a few thousand
_MAX_LEVELS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class _Count:
    """What is below a container: tensors and entries by their paths, and levels."""

    tensors: int
    entries: int
    levels: int


_TENSOR = _Count(1, 1, 0)
_OTHER = _Count(0, 1, 0)


class Survey:
    """Counts what is in the content of a file.

    Args:
        path: The file, for the messages.
        content: Nested dicts, lists and tuples; it must outlive the survey.

    Raises:
        CheckpointError: A container contains itself, or the levels are too many.
    """

    def __init__(self, path: Path, content: Any):
        self._path = path
        self._counts: dict[int, _Count | None] = {}
        self._visit(content, 0)

    def num_tensors(self, content: Any) -> int:
        """Tensors below, by their paths."""
        return self._known(content).tensors

    def check_entries(self, content: Any) -> None:
        """Refuses more paths than any model has.

        Raises:
            CheckpointError: There are more.
        """
        if self._known(content).entries > MAX_ENTRIES:
            raise CheckpointError(f"{self._path} has more than {MAX_ENTRIES} entries")

    def _known(self, content: Any) -> _Count:
        if isinstance(content, LazyTensor):
            return _TENSOR
        return self._counts.get(id(content)) or _OTHER

    def _visit(self, content: Any, level: int) -> _Count:
        if isinstance(content, LazyTensor):
            return _TENSOR
        if not isinstance(content, dict | list | tuple) or not content:
            return _OTHER
        if id(content) in self._counts:
            known = self._counts[id(content)]
            if known is None:
                raise CheckpointError(
                    f"{self._path} has a structure that contains itself"
                )
            return known
        self._counts[id(content)] = None
        tensors = entries = levels = 0
        for value in content.values() if isinstance(content, dict) else content:
            below = (
                self._visit(value, level + 1) if level < _MAX_LEVELS else self._deep()
            )
            tensors += below.tensors
            entries += below.entries
            levels = max(levels, below.levels + 1)
        if levels > _MAX_LEVELS:
            self._deep()
        # A list without tensors is one value, however long it is.
        entries = entries if tensors or isinstance(content, dict) else 1
        # No more is asked than whether it is too much: the numbers stay small.
        cut = 2 * MAX_ENTRIES
        found = _Count(min(tensors, cut), min(entries, cut), levels)
        self._counts[id(content)] = found
        return found

    def _deep(self) -> _Count:
        raise CheckpointError(
            f"{self._path} is nested in more than {_MAX_LEVELS} levels"
        )
