"""Many live sessions in one forward pass, of any age, prompt and seed.

A batch has a fixed number of lanes and one cache, B of them. A session that joins is
copied into a free lane, one that leaves is copied out, and nothing is compiled for
either. A lane that is not told to go on in a tick is computed with the others, and then
gets back the slots that this overwrote.
"""

import collections
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from fdjax.axes import PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.engine.cache import (
    StreamInferencePipelineCache,
    put_session,
    take_session,
)
from fdjax.session import journal, lanes
from fdjax.session.handle import Session
from fdjax.session.place import Alone, Journal, used_up
from fdjax.session.timeline import SessionState


class BatchOutput(Mapping[Session, PyTree]):
    """What one tick made, by session; read like a dict.

    Attributes:
        whole: As `generate` gives it, for all lanes.  [B, ...].
        lanes: Row of each session that made a chunk.
    """

    def __init__(self, whole: PyTree, rows: Mapping[Session, int]) -> None:
        self.whole, self.lanes = whole, dict(rows)
        self._finite = lanes.finite(whole)

    def __getitem__(self, session: Session) -> PyTree:
        """A session's own, [1, ...], on the device."""
        return lanes.row(self.whole, np.int32(self.lanes[session]))

    def __iter__(self) -> Iterator[Session]:
        """Sessions that made a chunk."""
        return iter(self.lanes)

    def __len__(self) -> int:
        """How many sessions made a chunk."""
        return len(self.lanes)

    def on_host(self) -> dict[Session, PyTree]:
        """Each session's own as NumPy arrays, [1, ...]; waits, and copies once."""
        whole = jax.device_get(self.whole)

        def own(lane: int) -> PyTree:
            return jax.tree.map(lambda leaf: leaf[lane : lane + 1], whole)

        return {session: own(lane) for session, lane in self.lanes.items()}

    @property
    def failed(self) -> tuple[Session, ...]:
        """Sessions whose chunk has NaN or infinite values; waits for the chunk.

        The others are as if these were not there. One that failed can be undone.
        """
        finite = np.asarray(self._finite)
        return tuple(each for each, lane in self.lanes.items() if not finite[lane])


class SessionBatch:
    """Live sessions that make their chunks together.

        first.tick()  # a session's first chunk is made alone
        batch = fdjax.SessionBatch(first, capacity=8, control=np.zeros((1, 4, 2)))
        batch.join(first)
        videos = batch.tick({first: control})
        batch.leave(first)

    A session stays what it is: in a batch, too, it is undone, forked, given another
    prompt, reset and closed. Its chunks equal those that it makes alone, but for
    rounding; and they do not depend on who else is in the batch, to the bit.
    """

    def __init__(
        self,
        pattern: Session,
        *,
        capacity: int,
        control: PyTree = None,
        undo_on_device: int = 4,
        undo_on_host: int = 60,
    ) -> None:
        """Makes the lanes and compiles all that is ever needed.

        Args:
            pattern: A session with at least one chunk. It gives pipeline, weights, size
                and number of prompt tokens, and does not join.
            capacity: Lanes, >= 1. All are computed in every tick.
            control: A control of any chunk but the first, as `generate` takes it for
                one session: leaves [1, ...]. None: chunks take none.
            undo_on_device: Newest ticks whose chunks can be undone from the device's
                memory, >= 0.
            undo_on_host: Chunks of a session before these, from the host's memory,
                >= 0.

        Raises:
            ValueError: A number is out of range, the session made no chunk, or the
                pipeline refuses the control.
        """
        limits = {"undo_on_device": undo_on_device, "undo_on_host": undo_on_host}
        for name, limit in limits.items():
            if limit < 0:
                raise ValueError(f"{name} must be >= 0, got {limit}; 0 keeps nothing.")
        if capacity < 1:
            raise ValueError(f"capacity must be >= 1, got {capacity}.")
        _check_begun(pattern)
        self.pipeline, self.params = pattern.pipeline, pattern.params
        self._limits = undo_on_device, undo_on_host
        self._controls = lanes.Controls(control, capacity)
        self._sessions: list[Session | None] = [None] * capacity
        self._recent: collections.deque[journal.Shared] = collections.deque()
        self._cache = lanes.repeat(pattern.cache, capacity)
        self._warm_up(pattern)

    def _warm_up(self, pattern: Session) -> None:
        """Runs everything once; what lanes hold until a session joins is of no use."""
        self._cache = put_session(self._cache, 0, pattern.cache, donate=True)
        Lane(self, 0).set_conditions(pattern._conditions)
        entry = journal.take(self.pipeline, self._cache)
        self._cache, whole = self._step(self._controls.together({}))
        made = BatchOutput(whole, {pattern: 0})
        jax.block_until_ready((made[pattern], made.failed))
        idle = np.arange(self.capacity) > 0
        for way in (entry, journal.to_host(entry)):
            row = journal.Row(journal.Shared(way), 0).resolve()
            self._cache = journal.restore(self.pipeline, self._cache, row, idle)
        self._cache = journal.restore(self.pipeline, self._cache, entry, idle)

    @property
    def capacity(self) -> int:
        """Number of lanes, B."""
        return len(self._sessions)

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Those in the batch, by lane."""
        return tuple(session for session in self._sessions if session is not None)

    @property
    def num_free(self) -> int:
        """Lanes that a session can join."""
        return self._sessions.count(None)

    def join(self, session: Session) -> None:
        """Puts a session into a free lane; from now on its cache is here.

        Its way back comes with it, down to its first chunk, which is made alone and
        cannot be undone here.

        Args:
            session: Of the same pipeline, weights and size, with at least one chunk.

        Raises:
            ValueError: It is in a batch already, made no chunk or does not fit, or
                there is no free lane. Nothing has changed then.
        """
        cache = self._ready("join")
        _check_begun(session)
        if isinstance(session._place, Lane):
            raise ValueError("join was given a session that is in a batch; leave it.")
        if session.pipeline != self.pipeline or session.params is not self.params:
            raise ValueError(
                "join takes a session of the batch's own pipeline and params, this one "
                "has others; make it with batch.pipeline and batch.params."
            )
        if not self.num_free:
            raise ValueError(
                f"All {self.capacity} lanes are taken; leave() one, or make a batch of "
                "more capacity."
            )
        lane = self._sessions.index(None)
        place = Lane(self, lane)
        for event in session._events:
            place.check(event.control)
        self._cache = put_session(cache, lane, session.cache, donate=True)
        entries = session._journal[-(session.committed_step_id - 1) or None :]
        if session.committed_step_id == 1:
            entries = ()
        self._sessions[lane] = session
        session._place, session._journal = place, place.kept(entries)

    def leave(self, session: Session) -> None:
        """Takes a session out; it goes on alone, with its way back.

        Raises:
            ValueError: It is not in this batch.
        """
        lane = self._lane(session, "leave")
        place, entries = lane.alone(session._limits, session._journal)
        lane.close()
        session._place, session._journal = place, place.kept(entries)

    def check(self, session: Session, control: PyTree) -> None:
        """Refuses what `tick` would refuse for this session.

        Raises:
            ValueError: The session is not in this batch, or the control does not fit.
        """
        self._lane(session, "check").check(control)

    def tick(self, controls: Mapping[Session, PyTree]) -> BatchOutput:
        """Makes and commits one chunk of some sessions; the others stay as they are.

        Args:
            controls: Each session's control, [1, ...] or without the first axis; the
                host puts them together. None: that of the session's newest event for
                this chunk, or zeros.

        Returns:
            Each session's output.

        Raises:
            ValueError: A session is not in this batch, or its control does not fit;
                nothing has happened then, for any of them.
        """
        self._ready("tick")
        if not controls:
            raise ValueError("tick needs at least one session, got none.")
        index = {session: self._lane(session, "tick").index for session in controls}
        steps = {each: each._next_step(control) for each, control in controls.items()}
        output, shared = self._advance(
            {index[session]: step.control for session, step in steps.items()}
        )
        for session, step in steps.items():
            row = None if shared is None else journal.Row(shared, index[session])
            session._commit(step, row)
            session._undone = ()
        return BatchOutput(output, index)

    # What lanes ask for

    def _advance(
        self, controls: Mapping[int, PyTree]
    ) -> tuple[PyTree, journal.Shared | None]:
        """One chunk of some lanes."""
        cache = self._ready("tick")
        together = self._controls.together(controls)
        idle = np.array(
            [
                session is not None and lane not in controls
                for lane, session in enumerate(self._sessions)
            ]
        )
        keeps = sum(self._limits) > 0
        entry = None
        if keeps or idle.any():
            entry = journal.take(self.pipeline, cache)
        try:
            self._cache, output = self._step(together)
            if entry is not None and idle.any():
                self._cache = journal.restore(self.pipeline, self._cache, entry, idle)
        except BaseException:
            self._fail()
            raise
        if entry is None or not keeps:
            return output, None
        shared = journal.Shared(entry)
        self._recent.append(shared)
        self._move_old()
        return output, shared

    def _step(self, control: PyTree) -> tuple[StreamInferencePipelineCache, PyTree]:
        pending, output = self.pipeline.generate(
            self.params, self._cache, control, donate=True
        )
        # A step that fails in between has used the old cache up, as `_fail` sees.
        return self.pipeline.finalize(self.params, pending, donate=True), output

    def _move_old(self) -> None:
        """Entries behind the newest few go to the host, or are forgotten."""
        on_device, on_host = self._limits
        while len(self._recent) > on_device:
            if not on_host:
                self._forget(self._recent.popleft())
                continue
            oldest = self._recent[0]
            if len(self._recent) == on_device + 1:
                # On its way while the device makes the next chunk.
                for leaf in jax.tree.leaves(oldest.entry.arrays):
                    leaf.copy_to_host_async()
                return
            oldest.entry = journal.to_host(oldest.entry)
            self._recent.popleft()

    def _forget(self, shared: journal.Shared) -> None:
        """Nobody can go back over a tick, nor over what was made before it."""
        for session in self.sessions:
            rows = [
                isinstance(entry, journal.Row) and entry.shared is shared
                for entry in session._journal
            ]
            if True in rows:
                session._journal = session._journal[rows.index(True) + 1 :]

    def _fail(self) -> None:
        """After an error: sessions whose lanes are lost have failed."""
        if used_up(self._cache):
            for session in self.sessions:
                session._check_survived()

    def _ready(self, caller: str) -> StreamInferencePipelineCache:
        if used_up(self._cache):
            raise ValueError(
                f"{caller} was called on a batch in which a step failed midway; make a "
                "new batch and begin its sessions again by reset()."
            )
        return self._cache

    def _lane(self, session: Session, caller: str) -> "Lane":
        place = session._place
        if not isinstance(place, Lane) or place.batch is not self:
            raise ValueError(
                f"{caller} was given a session that is not in this batch; join() it "
                "first."
            )
        return place


class Lane:
    """A session's place in a batch; see `fdjax.session.place.Place`."""

    def __init__(self, batch: SessionBatch, index: int) -> None:
        self.batch, self.index = batch, index

    @property
    def cache(self) -> StreamInferencePipelineCache:
        """A copy of the lane."""
        return take_session(self.batch._ready("cache"), self.index)

    def advance(self, control: PyTree) -> tuple[PyTree, journal.Row | None]:
        """One chunk of this session; the others stay as they are."""
        output, shared = self.batch._advance({self.index: control})
        entry = None if shared is None else journal.Row(shared, self.index)
        return lanes.row(output, np.int32(self.index)), entry

    def check(self, control: PyTree) -> None:
        """Refuses a control that cannot be put together with those of other lanes."""
        self.batch._controls.check(control, self.index)

    def restore(self, entry: journal.Entry | journal.Row) -> None:
        """Goes back over the newest chunk; the other lanes stay as they are."""
        batch = self.batch
        chosen = np.arange(batch.capacity) == self.index
        batch._cache = journal.restore(
            batch.pipeline, batch._ready("undo"), entry.resolve(), chosen
        )

    def set_conditions(self, conditions: Conditions) -> None:
        """By the program that serves sessions alone, so that undo is exact."""
        batch = self.batch
        row = batch.pipeline.update_conditions(batch.params, self.cache, conditions)
        batch._cache = put_session(batch._cache, self.index, row, donate=True)

    def kept(self, entries: Journal) -> Journal:
        """The newest; the batch moves them to the host for all lanes at once."""
        limit = sum(self.batch._limits)
        return entries[len(entries) - min(limit, len(entries)) :]

    def alone(self, limits: tuple[int, int], entries: Journal) -> tuple[Alone, Journal]:
        """A copy of the lane, and entries that do not hold other sessions'."""
        batch = self.batch
        place = Alone(batch.pipeline, batch.params, self.cache, limits)
        return place, tuple(entry.resolve() for entry in entries)

    def close(self) -> None:
        """Frees the lane."""
        self.batch._sessions[self.index] = None

    def survived(self) -> bool:
        """Whether the batch has a cache to go on from."""
        return not used_up(self.batch._cache)


def _check_begun(session: Session) -> None:
    if session.state is not SessionState.ACTIVE or session.committed_step_id < 1:
        raise ValueError(
            "A batch takes active sessions that have made their first chunk, got one "
            f"that is {session.state.value} with {session.committed_step_id} chunks; a "
            "first chunk is made alone: tick() the session once."
        )
