"""The likeliest next chunks, made before the player has chosen.

While a player looks at a chunk, a device has nothing to do. It makes the next one for
several controls at once, in the lanes of a batch; the one that the player then asks for
is there already. All lanes hold the same session otherwise.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.engine.cache import StreamInferencePipelineCache, take_session
from fdjax.session import journal, lanes
from fdjax.session.handle import Session
from fdjax.session.place import Alone, Journal, used_up


class Futures:
    """A session's place in which chunks are made ahead.

        futures = fdjax.Futures(session, count=3, control=control)
        habits = Habits(controls)
        futures.ahead(habits.likeliest(3))
        video = session.tick(control)  # there already, if it was among them

    The session is used as always. Its chunks are those that it makes alone, but for
    rounding.

    Attributes:
        hits: Chunks that were there when they were asked for.
        misses: Chunks that were not, though others had been made ahead.
    """

    def __init__(self, session: Session, *, count: int, control: PyTree) -> None:
        """Moves a session here.

        Args:
            session: Alone, with at least one chunk.
            count: Futures that are made at once, >= 1.
            control: A control of any chunk but the first, leaves [1, ...].

        Raises:
            ValueError: The count is out of range, or the session made no chunk or is in
                a batch.
        """
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}.")
        place = session._active("Futures")
        if not isinstance(place, Alone) or session.committed_step_id < 1:
            raise ValueError(
                "Futures takes a session that is alone and has made its first chunk; "
                "leave() its batch, or tick() it once."
            )
        self._session, self._count = session, count
        self._pipeline, self._params = session.pipeline, session.params
        self._controls = lanes.Controls(control, count)
        self._cache = lanes.repeat(place.cache, count)
        self._ahead: tuple[list[bytes], PyTree, journal.Entry] | None = None
        self._chosen: int | None = None
        self.hits = self.misses = 0
        # A first chunk has codec states of another structure: there is no way back.
        first = len(session._journal) == session.committed_step_id
        session._journal = session._journal[1:] if first else session._journal
        session._place = self

    def ahead(self, controls: Sequence[PyTree]) -> None:
        """Makes the next chunk for some controls; waits for nothing.

        Args:
            controls: At most `count`, as `tick` takes them; the rest of the lanes make
                the last one once more. What was made ahead before is dropped.

        Raises:
            ValueError: There are none or too many, or one does not fit.
        """
        if not 1 <= len(controls) <= self._count:
            raise ValueError(
                f"ahead makes 1 to {self._count} futures, got {len(controls)} controls."
            )
        chosen = [*controls, *[controls[-1]] * (self._count - len(controls))]
        together = self._controls.together(dict(enumerate(chosen)))
        self._drop()
        entry = journal.take(self._pipeline, self._cache)
        output = self._step(together)
        names = [_name(together, lane) for lane in range(self._count)]
        self._ahead = names, output, entry

    def end(self) -> None:
        """The session goes on alone."""
        place, entries = self.alone(self._session._limits, self._session._journal)
        self._session._place, self._session._journal = place, entries

    # What the session asks for

    @property
    def cache(self) -> StreamInferencePipelineCache:
        """A copy of the session's cache; what was made ahead is dropped."""
        self._drop()
        return take_session(self._cache, 0)

    def check(self, control: PyTree) -> None:
        """Refuses a control that does not fit."""
        self._controls.check(control, 0)

    def advance(self, control: PyTree) -> tuple[PyTree, journal.Row]:
        """The future of this control, or a chunk that is made now."""
        together = self._controls.together(dict.fromkeys(range(self._count), control))
        name = _name(together, 0)
        if self._ahead is not None and name in self._ahead[0]:
            names, whole, entry = self._ahead
            self._ahead, self._chosen = None, names.index(name)
            self.hits += 1
            output = lanes.row(whole, np.int32(self._chosen))
        else:
            self.misses += self._ahead is not None
            self._drop()
            entry = journal.take(self._pipeline, self._cache)
            output = lanes.row(self._step(together), np.int32(0))
        # All lanes were the same before the chunk.
        return output, journal.Row(journal.Shared(entry), 0)

    def restore(self, entry: journal.Entry | journal.Row) -> None:
        """Goes back over the newest chunk, in all lanes."""
        self._drop()
        self._go_back(entry.resolve())

    def set_conditions(self, conditions: Conditions) -> None:
        """Another prompt; what was made ahead is dropped."""
        row = self._pipeline.update_conditions(self._params, self.cache, conditions)
        self._cache = lanes.repeat(row, self._count)

    def kept(self, entries: Journal) -> Journal:
        """As a session alone keeps them."""
        limits = self._session._limits
        return Alone(self._pipeline, self._params, self._cache, limits).kept(entries)

    def alone(self, limits: tuple[int, int], entries: Journal) -> tuple[Alone, Journal]:
        """A copy of the session, and entries of one session."""
        place = Alone(self._pipeline, self._params, self.cache, limits)
        return place, tuple(entry.resolve() for entry in entries)

    def close(self) -> None:
        """Forgets what was made ahead."""
        self._ahead = None

    def survived(self) -> bool:
        """Whether there is a cache to go on from."""
        return not used_up(self._cache)

    def _step(self, control: PyTree) -> PyTree:
        pending, output = self._pipeline.generate(
            self._params, self._cache, control, donate=True
        )
        self._cache = self._pipeline.finalize(self._params, pending, donate=True)
        return output

    def _drop(self) -> None:
        """All lanes as the session is: what was made ahead is gone."""
        if self._ahead is not None:
            self._go_back(self._ahead[2])
        if self._chosen is not None:
            # Not before: somebody waited for the frames.
            large = self._cache.transformer_cache
            rest = dataclasses.replace(self._cache, transformer_cache=())
            self._cache = _choose(large, rest, np.int32(self._chosen))
        self._ahead = self._chosen = None

    def _go_back(self, entry: journal.Entry) -> None:
        every = np.ones(self._count, bool)
        self._cache = journal.restore(self._pipeline, self._cache, entry, every)


class Habits:
    """Counts which control followed which, to guess the next one.

    A key that is held stays held most of the time: before anything was counted, the
    next control is the last one.
    """

    def __init__(self, controls: Sequence[np.ndarray]) -> None:
        """Takes all that a player can do.

        Args:
            controls: Arrays of one shape, as `tick` takes them.
        """
        self._controls = [np.asarray(control) for control in controls]
        self._counts: dict[int, collections.Counter[int]] = collections.defaultdict(
            collections.Counter
        )
        self._last = 0

    def observe(self, control: np.ndarray) -> None:
        """Notes what the player did; a control of no name is not noted."""
        for number, known in enumerate(self._controls):
            if np.array_equal(known, control):
                self._counts[self._last][number] += 1
                self._last = number
                return

    def likeliest(self, count: int) -> list[np.ndarray]:
        """At most `count` controls, the likeliest first."""
        counts = self._counts[self._last]
        numbers = range(len(self._controls))
        ranked = sorted(numbers, key=lambda each: (-counts[each], each != self._last))
        return [self._controls[number] for number in ranked[:count]]


def _name(together: PyTree, lane: int) -> bytes:
    """A control as its bytes."""
    return b"".join(leaf[lane].tobytes() for leaf in jax.tree.leaves(together))


@functools.partial(jax.jit, donate_argnums=0)
def _choose(
    large: PyTree, rest: StreamInferencePipelineCache, lane: Array
) -> StreamInferencePipelineCache:
    """One lane in the place of all."""

    def spread(leaf: Array) -> Array:
        # [B, ...] -> [1, ...] -> [B, ...]
        row = jax.lax.dynamic_slice_in_dim(leaf, lane, 1)
        return jnp.broadcast_to(row, leaf.shape)

    cache = dataclasses.replace(rest, transformer_cache=large)
    return jax.tree.map(spread, cache)
