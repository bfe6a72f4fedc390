"""Where a session's cache lives, and what can be done to it there.

Alone, it is worked on in place. In a batch it is one of the lanes; see
`fdjax.session.batch`. The session itself, its timeline and its events, is the same.
"""

from typing import Protocol

import jax

from fdjax.axes import Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.session import journal

Journal = tuple[journal.Entry | journal.Row, ...]
"""The way back, oldest chunk first."""


class Place(Protocol):
    """One session's cache, ready between any two calls."""

    @property
    def cache(self) -> StreamInferencePipelineCache:
        """The newest cache; the next step may use it up."""

    def advance(
        self, control: PyTree
    ) -> tuple[PyTree, journal.Entry | journal.Row | None]:
        """Makes and commits one chunk.

        Returns:
            What `generate` gives besides the cache, and what leads back.
        """

    def check(self, control: PyTree) -> None:
        """Refuses a control that would disturb others.

        Raises:
            ValueError: It does not fit.
        """

    def restore(self, entry: journal.Entry | journal.Row) -> None:
        """Goes back over the newest chunk."""

    def set_conditions(self, conditions: Conditions) -> None:
        """Another prompt for the chunks to come."""

    def kept(self, entries: Journal) -> Journal:
        """The entries that are kept, each where it belongs."""

    def alone(
        self, limits: tuple[int, int], entries: Journal
    ) -> "tuple[Alone, Journal]":
        """A copy of the cache in a place of its own, and entries that last."""

    def close(self) -> None:
        """Lets go of the memory."""

    def survived(self) -> bool:
        """Whether there is a cache to go on from, after an error."""


class Alone:
    """A cache of its own.

    Attributes:
        cache: The newest one; every step uses it up.
    """

    def __init__(
        self,
        pipeline: StreamInferencePipeline,
        params: Params,
        cache: StreamInferencePipelineCache,
        limits: tuple[int, int],
    ) -> None:
        """Takes a ready cache.

        Args:
            pipeline: The one that the cache is of.
            params: Weights.
            cache: Used up by the first step.
            limits: Chunks that can be undone from the device's memory, and chunks
                before these from the host's.
        """
        self._pipeline, self._params, self._limits = pipeline, params, limits
        self.cache = cache

    def advance(self, control: PyTree) -> tuple[PyTree, journal.Entry | None]:
        """See `Place`."""
        pipeline, params = self._pipeline, self._params
        entry = journal.take(pipeline, self.cache) if sum(self._limits) else None
        pending, output = pipeline.generate(params, self.cache, control, donate=True)
        self.cache = pipeline.finalize(params, pending, donate=True)
        return output, entry

    def check(self, control: PyTree) -> None:
        """See `Place`; alone there is nobody else, and `generate` looks at it."""

    def restore(self, entry: journal.Entry | journal.Row) -> None:
        """See `Place`."""
        self.cache = journal.restore(self._pipeline, self.cache, entry.resolve())

    def set_conditions(self, conditions: Conditions) -> None:
        """See `Place`."""
        self.cache = self._pipeline.update_conditions(
            self._params, self.cache, conditions
        )

    def kept(self, entries: Journal) -> Journal:
        """The newest: the last few where they are, others on the host."""
        on_device, on_host = self._limits
        entries = entries[len(entries) - min(on_device + on_host, len(entries)) :]
        older = max(len(entries) - on_device, 0)
        moved = (journal.to_host(entry.resolve()) for entry in entries[:older])
        return (*moved, *entries[older:])

    def alone(
        self, limits: tuple[int, int], entries: Journal
    ) -> "tuple[Alone, Journal]":
        """See `Place`."""
        # Entries of the journal are never donated: both can hold them.
        copy = journal.copy_cache(self.cache)
        return Alone(self._pipeline, self._params, copy, limits), entries

    def close(self) -> None:
        """See `Place`."""

    def survived(self) -> bool:
        """See `Place`."""
        return not used_up(self.cache)


def used_up(cache: StreamInferencePipelineCache) -> bool:
    """Whether a step that failed took some of the cache with it."""
    leaves = jax.tree.leaves(cache)
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves)
