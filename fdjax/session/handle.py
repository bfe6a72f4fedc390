"""A live session: one rollout that is steered, forked, undone and begun again.

The state is a cache, a value; this is a small handle that holds the newest one, so that
each step can work in place. What it does to the cache is in `fdjax.session.journal`.
"""

import dataclasses
import os
from typing import Any

import jax
from jax.sharding import Mesh, Sharding

from fdjax.axes import Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.session import journal, recording, store
from fdjax.session.blend import path
from fdjax.session.place import Alone, Journal, Place
from fdjax.session.saved import SessionData, collect, handed_on
from fdjax.session.timeline import Event, SessionState, Start, Step, owned, small


class Session:
    """One rollout, its newest cache, and the way back.

        session = fdjax.Session(pipeline, params, conditions=conditions, key=key)
        video = session.tick(control)
        other = session.fork()
        session.undo()

    Steps work in place. A fork copies the transformer's cache once, when it is made;
    from then on neither sees what the other does. Undone chunks are made again by
    `redo`, from the same controls and the same noise: bit for bit.
    """

    def __init__(
        self,
        pipeline: StreamInferencePipeline,
        params: Params,
        *,
        conditions: Conditions,
        pixel_height: int | None = None,
        pixel_width: int | None = None,
        key: jax.Array | None = None,
        undo_on_device: int = 4,
        undo_on_host: int = 60,
    ) -> None:
        """Begins a session.

        Args:
            pipeline: Makes its chunks.
            params: Weights.
            conditions: From `encode_conditions`.
            pixel_height: As in `initialize_cache`.
            pixel_width: As in `initialize_cache`.
            key: As in `initialize_cache`.
            undo_on_device: Newest chunks that can be undone from the device's memory,
                >= 0.
            undo_on_host: Chunks before these, from the host's memory, >= 0.

        Raises:
            ValueError: A limit is negative, or `initialize_cache` refuses an argument.
        """
        self.pipeline, self.params = pipeline, params
        self._place: Place | None = None
        self._journal: Journal = ()
        self._limits = journal.checked_limits(undo_on_device, undo_on_host)
        self._weights: tuple[Params, dict[str, str]] | None = None
        self._start = Start(
            conditions=conditions,
            pixel_height=pixel_height,
            pixel_width=pixel_width,
            key=key,
        )
        self._begin()

    def _begin(self) -> None:
        self._state = SessionState.RESETTING
        self._conditions: Conditions = self._start.conditions
        self._upcoming: tuple[Conditions, ...] = ()
        self._leave_place()
        self._steps: tuple[Step, ...] = ()
        self._undone: tuple[Step, ...] = ()
        self._events: tuple[Event, ...] = ()
        self._seen: frozenset[str] = frozenset()
        cache = self.pipeline.initialize_cache(self.params, **vars(self._start))
        place = Alone(self.pipeline, self.params, cache, self._limits)
        # Conditions come from one program, so that undo beyond a change is exact.
        place.set_conditions(self._conditions)
        self._place = place
        self._state = SessionState.ACTIVE

    # What it is

    @property
    def state(self) -> SessionState:
        """What it can do now."""
        return self._state

    @property
    def cache(self) -> StreamInferencePipelineCache:
        """The newest cache; the next step uses it up, or in a batch a copy.

        Raises:
            ValueError: The session failed or is closed.
        """
        return self._active("cache").cache

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Rows and columns of its video."""
        return self._start.pixel_size

    @property
    def committed_step_id(self) -> int:
        """Number of chunks committed."""
        return len(self._steps)

    @property
    def timeline(self) -> tuple[Step, ...]:
        """The committed chunks, oldest first."""
        return self._steps

    @property
    def applied_event_ids(self) -> tuple[str, ...]:
        """Events of the committed chunks, in their order."""
        return tuple(name for step in self._steps for name in step.event_ids)

    @property
    def undo_limit(self) -> int:
        """How many chunks can be undone now."""
        return len(self._journal)

    @property
    def redo_limit(self) -> int:
        """How many undone chunks can be made again."""
        return len(self._undone)

    # What it does

    def tick(self, control: PyTree = None) -> PyTree:
        """Makes and commits one chunk; what was undone is forgotten.

        Args:
            control: As `generate` takes it. None: that of the newest event for this
                chunk, if there is one; earlier ones for it count as applied.

        Returns:
            What `generate` returns besides the cache.

        Raises:
            ValueError: The session is not active, or the control does not fit; the
                session then stays as it was.
        """
        output = self._tick(control)
        self._undone = ()
        return output

    def _tick(
        self, control: PyTree, event_ids: tuple[str, ...] | None = None
    ) -> PyTree:
        step = self._next_step(control, event_ids)
        place = self._active("tick")
        try:
            output, entry = place.advance(step.control)
        except BaseException:
            self._check_survived()
            raise
        if isinstance(place, Alone):
            step = dataclasses.replace(step, image=small(output))
        self._commit(step, entry)
        return output

    def _next_step(
        self, control: PyTree, event_ids: tuple[str, ...] | None = None
    ) -> Step:
        """The chunk to make, without its image; its conditions are set."""
        self._active("tick")
        index = self.committed_step_id
        if event_ids is None:
            due = [event for event in self._events if event.chunk == index]
            event_ids = tuple(event.event_id for event in due)
            if due and control is not None:
                raise ValueError(
                    f"Chunk {index} has events {list(event_ids)}, which give its "
                    "control; call tick() without one, or submit() no event."
                )
            control = due[-1].control if due else owned(control)
        upcoming = self._upcoming
        if upcoming:
            self._set_conditions(upcoming[0])
        return Step(
            index=index,
            control=control,
            event_ids=event_ids,
            conditions=self._conditions,
            upcoming=upcoming,
            image=None,
        )

    def _commit(self, step: Step, entry: journal.Entry | journal.Row | None) -> None:
        """Notes a chunk that was made."""
        self._steps = (*self._steps, step)
        self._upcoming = step.upcoming[1:]
        if step.event_ids:
            self._events = tuple(e for e in self._events if e.chunk != step.index)
        if entry is not None:
            self._journal = self._active("tick").kept((*self._journal, entry))

    def submit(self, event_id: str, control: PyTree, chunk: int | None = None) -> bool:
        """Takes an event; it is applied when its chunk is made.

        Args:
            event_id: The sender's name for it.
            control: As `generate` takes it.
            chunk: Index of the chunk to steer; the next one by default.

        Returns:
            Whether it is new: one that was seen before is acknowledged, no more.

        Raises:
            ValueError: The chunk is made already, the session is not active, or in a
                batch that the control does not fit.
        """
        place = self._active("submit")
        if event_id in self._seen:
            return False
        place.check(control)
        next_chunk = self.committed_step_id
        chunk = next_chunk if chunk is None else chunk
        if chunk < next_chunk:
            raise ValueError(
                f"Event {event_id!r} is for chunk {chunk}, the next is {next_chunk}; "
                "send it for that or a later one, or undo first."
            )
        if chunk < next_chunk + self.redo_limit:
            self._undone = ()  # another future
        event = Event(event_id=event_id, chunk=chunk, control=owned(control))
        self._events = (*self._events, event)
        self._seen |= {event_id}
        return True

    def undo(self, num_chunks: int = 1) -> None:
        """Goes back; `redo` or the same controls give the same frames, bit for bit.

        Args:
            num_chunks: How many chunks, from 0 to `undo_limit`.

        Raises:
            ValueError: More than are kept, or the session is not active.
        """
        place = self._active("undo")
        if not 0 <= num_chunks <= self.undo_limit:
            raise ValueError(
                f"undo can go back 0 to {self.undo_limit} of {self.committed_step_id} "
                f"chunks, got {num_chunks}; undo_on_device and undo_on_host set how "
                "many are kept."
            )
        try:
            for _ in range(num_chunks):
                step = self._steps[-1]
                place.restore(self._journal[-1])
                self._set_conditions(step.conditions)
                self._upcoming = step.upcoming
                self._journal, self._steps = self._journal[:-1], self._steps[:-1]
                self._undone = (*self._undone, step)
        except BaseException:
            self._check_survived()
            raise

    def redo(self, num_chunks: int = 1) -> list[PyTree]:
        """Makes undone chunks again, with their controls and conditions.

        Args:
            num_chunks: How many, from 0 to `redo_limit`.

        Returns:
            What `generate` gave for each.

        Raises:
            ValueError: More than were undone, or the session is not active.
        """
        self._active("redo")
        if not 0 <= num_chunks <= self.redo_limit:
            raise ValueError(
                f"redo can make 0 to {self.redo_limit} undone chunks again, got "
                f"{num_chunks}; a tick() after undo() forgets them."
            )
        outputs = []
        for _ in range(num_chunks):
            step = self._undone[-1]
            self._set_conditions(step.conditions)
            self._upcoming = step.upcoming
            outputs.append(self._tick(step.control, step.event_ids))
            self._undone = self._undone[:-1]
        return outputs

    def make_again(
        self, control: PyTree, conditions: Conditions, event_ids: tuple[str, ...]
    ) -> PyTree:
        """`tick` with what a chunk of another session was made from."""
        self._set_conditions(conditions)
        self._seen |= set(event_ids)
        self._undone, self._upcoming = (), ()
        return self._tick(control, event_ids)

    def jump(self, chunk: int) -> list[PyTree]:
        """Goes to where `chunk` chunks are committed: by `undo`, or by `redo`.

        Returns:
            What was made on the way; nothing on the way back.

        Raises:
            ValueError: It is out of reach, or the session is not active.
        """
        distance = chunk - self.committed_step_id
        if distance > 0:
            return self.redo(distance)
        self.undo(-distance)
        return []

    def switch_prompt(
        self, conditions: Conditions, num_chunks: int = 1, blend: str = "linear"
    ) -> None:
        """Another prompt from the next chunk on; what was undone is forgotten.

        What was generated stays visible with the keys and values that it has: clean
        latents of the window are not kept, so that it cannot be committed again under
        the new prompt.

        Args:
            conditions: From `encode_conditions`.
            num_chunks: Over how many chunks, >= 1; 1 is at once.
            blend: "linear" or "slerp", see `fdjax.session.blend`.

        Raises:
            ValueError: They do not fit, or the session is not active.
        """
        self._active("switch_prompt")
        upcoming = path(self._conditions, conditions, num_chunks, blend)
        self._set_conditions(upcoming[0])  # refuses what does not fit
        self._upcoming, self._undone = upcoming, ()

    def _set_conditions(self, conditions: Conditions) -> None:
        place = self._active("switch_prompt")
        if conditions is not self._conditions:
            place.set_conditions(conditions)
            self._conditions = conditions

    def fork(self) -> "Session":
        """Another session with the same past, and the same way back.

        Raises:
            ValueError: The session is not active.
        """
        place = self._active("fork")
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._place, other._journal = place.alone(self._limits, self._journal)
        return other

    def reset(self, **start: Any) -> None:
        """Begins again from the start; events and timeline are forgotten.

        Args:
            **start: `conditions`, `pixel_height`, `pixel_width` or `key`, where they
                are to differ from the session's first ones.

        Raises:
            ValueError: The session is closed, or `initialize_cache` refuses a value;
                the session has then failed, and can be reset again.
            TypeError: An argument of another name.
        """
        if self._state is SessionState.CLOSED:
            raise ValueError("reset was called on a closed session; begin a new one.")
        if unknown := sorted(start.keys() - vars(self._start).keys()):
            raise TypeError(
                f"reset takes {', '.join(vars(self._start))}; got {', '.join(unknown)}."
            )
        before, self._start = self._start, dataclasses.replace(self._start, **start)
        try:
            self._begin()
        except BaseException:
            self._start, self._state = before, SessionState.FAILED
            raise

    # Beyond this process

    def save(
        self,
        path: str | os.PathLike,
        *,
        way_back: int | None = None,
        overwrite: bool = False,
    ) -> None:
        """Writes all that the session holds; it appears at `path` whole or not at all.

        A save that is killed, or finds no room, leaves what was at `path`.

        Args:
            path: The file.
            way_back: For how many chunks what `undo` needs is written; all by default.
                Each takes as much as it does in memory.
            overwrite: Replace what is at `path`.

        Raises:
            FileExistsError: There is something at `path`.
            ValueError: The session is not active, or holds what no file can.
            OSError: The file cannot be written.
        """
        data, weights = self._data("save", way_back), self._hashes()
        store.save_session(
            path, data, pipeline=self.pipeline, weights=weights, overwrite=overwrite
        )

    def to_bytes(self, *, way_back: int | None = None) -> bytes:
        """What `save` writes, in memory; raises ValueError as it does."""
        data, weights = self._data("to_bytes", way_back), self._hashes()
        return store.session_bytes(data, pipeline=self.pipeline, weights=weights)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike | bytes,
        pipeline: StreamInferencePipeline,
        params: Params,
        *,
        undo_on_device: int = 4,
        undo_on_host: int = 60,
        sharding: Mesh | Sharding | None = None,
    ) -> "Session":
        """A session that `save` or `to_bytes` wrote; it goes on bit for bit.

        On the same kind of device with the same versions; a warning names what differs.
        It may come from anyone: nothing of it is executed, and its shapes are those
        that the pipeline makes. The caller limits its length, `pixel_size` and `cache`.

        Args:
            source: A file, or what is in it.
            pipeline: Of the settings that the session was saved with.
            params: The same weights; they may come from another place.
            undo_on_device, undo_on_host: As in the constructor.
            sharding: Where its arrays belong; by default where the weights are.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no session, damaged, or of another pipeline or other
                weights: says in what; or a limit is negative.
        """
        session = object.__new__(cls)
        session.pipeline, session.params = pipeline, params
        session._limits = journal.checked_limits(undo_on_device, undo_on_host)
        session._weights = None
        common = {"pipeline": pipeline, "params": params, "sharding": sharding}
        data = store.load_session(source, weights=session._hashes(), **common)
        vars(session).update(handed_on(data))
        place = Alone(pipeline, params, data.cache, session._limits)
        session._place, session._journal = place, place.kept(data.journal)
        session._state = SessionState.ACTIVE
        return session

    def replay(self) -> str:
        """What was done so far, as JSON; see `fdjax.session.repeat`."""
        data, settings = self._data("replay", 0), store.pipeline_settings(self.pipeline)
        return recording.record(data, settings, self._hashes())

    def _data(self, caller: str, way_back: int | None) -> SessionData:
        cache = self._active(caller).cache
        return collect(vars(self), cache, self._journal, way_back)

    def _hashes(self) -> dict[str, str]:
        """Of the weights; made once."""
        if self._weights is None or self._weights[0] is not self.params:
            self._weights = self.params, store.weights_of(self.params)
        return self._weights[1]

    def close(self) -> None:
        """Lets go of all memory; the timeline can still be read."""
        self._state = SessionState.CLOSED
        self._leave_place()

    def _leave_place(self) -> None:
        place, self._place, self._journal = self._place, None, ()
        if place is not None:
            place.close()

    def _active(self, caller: str) -> Place:
        state = self._state
        if state is SessionState.ACTIVE and self._place is not None:
            return self._place
        what = f"this one is {state.value}; {state.cure}"
        raise ValueError(f"{caller} needs an active session, {what}.")

    def _check_survived(self) -> None:
        """After an error: whether a cache is left to go on from."""
        if self._place is not None and not self._place.survived():
            self._state = SessionState.FAILED
            self._leave_place()
