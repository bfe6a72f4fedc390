"""A live session: one rollout that is steered, forked, undone and begun again.

The state is a cache, a value; this is a small handle that holds the newest one, so that
each step can work in place. What it does to the cache is in `fdjax.session.journal`.
"""

import dataclasses
import enum
from typing import Any

import jax
import numpy as np

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.session import journal
from fdjax.session.blend import path

_THUMBNAIL = 96  # pixels of the longer side, at most


class SessionState(enum.Enum):
    """What a session can do now."""

    ACTIVE = "active"
    """It takes calls."""

    RESETTING = "resetting"
    """It is being begun again."""

    FAILED = "failed"
    """A step failed midway and left no cache; `reset` begins it again."""

    CLOSED = "closed"
    """It holds nothing and takes no call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One committed chunk of a timeline.

    Attributes:
        index: Of the chunk, from 0.
        control: What `generate` was given.
        event_ids: Of the events that gave the control, in their order.
        conditions: Those that the chunk was made with.
        upcoming: Conditions that were to come before the chunk was made, its own first.
        image: The last frame, small.  float[B, H, W, 3] in [-1, 1], or None where the
            output is no video.
    """

    index: int
    control: PyTree
    event_ids: tuple[str, ...]
    conditions: Conditions
    upcoming: tuple[Conditions, ...]
    image: Array | None

    @property
    def thumbnail(self) -> np.ndarray | None:
        """The small frame on the host; waits for its chunk."""
        return None if self.image is None else np.asarray(self.image)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """A control that was sent for one chunk.

    Attributes:
        event_id: The sender's; one that was seen before is not applied again.
        chunk: Index of the chunk that it steers.
        control: As `generate` takes it.
    """

    event_id: str
    chunk: int
    control: PyTree


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
        limits = {"undo_on_device": undo_on_device, "undo_on_host": undo_on_host}
        for name, limit in limits.items():
            if limit < 0:
                raise ValueError(f"{name} must be >= 0, got {limit}; 0 keeps nothing.")
        self.pipeline, self.params = pipeline, params
        self._limits = undo_on_device, undo_on_host
        self._start: dict[str, Any] = {
            "conditions": conditions,
            "pixel_height": pixel_height,
            "pixel_width": pixel_width,
            "key": key,
        }
        self._begin()

    def _begin(self) -> None:
        self._state = SessionState.RESETTING
        self._conditions: Conditions = self._start["conditions"]
        self._upcoming: tuple[Conditions, ...] = ()
        self._cache: StreamInferencePipelineCache | None = None
        self._journal: tuple[journal.Entry, ...] = ()
        self._steps: tuple[Step, ...] = ()
        self._undone: tuple[Step, ...] = ()
        self._events: tuple[Event, ...] = ()
        self._seen: frozenset[str] = frozenset()
        cache = self.pipeline.initialize_cache(self.params, **self._start)
        # Conditions come from one program, so that undo beyond a change is exact.
        self._cache = self.pipeline.update_conditions(
            self.params, cache, self._conditions
        )
        self._state = SessionState.ACTIVE

    # What it is

    @property
    def state(self) -> SessionState:
        """What it can do now."""
        return self._state

    @property
    def cache(self) -> StreamInferencePipelineCache:
        """The newest cache; the next step uses it up.

        Raises:
            ValueError: The session failed or is closed.
        """
        return self._active("cache")

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
        cache = self._active("tick")
        index = self.committed_step_id
        due = [event for event in self._events if event.chunk == index]
        if event_ids is None:
            event_ids = tuple(event.event_id for event in due)
            if due and control is not None:
                raise ValueError(
                    f"Chunk {index} has events {list(event_ids)}, which give its "
                    "control; call tick() without one, or submit() no event."
                )
            control = due[-1].control if due else _owned(control)
        upcoming = self._upcoming
        if upcoming:
            self._set_conditions(upcoming[0])
            cache = self._active("tick")
        entry = journal.take(self.pipeline, cache) if sum(self._limits) else None
        try:
            pending, output = self.pipeline.generate(
                self.params, cache, control, donate=True
            )
            self._cache = self.pipeline.finalize(self.params, pending, donate=True)
        except BaseException:
            self._check_survived(cache)
            raise
        step = Step(
            index=index,
            control=control,
            event_ids=event_ids,
            conditions=self._conditions,
            upcoming=upcoming,
            image=_small(output),
        )
        self._steps = (*self._steps, step)
        self._upcoming = upcoming[1:]
        self._events = tuple(each for each in self._events if each not in due)
        if entry is not None:
            self._journal = _kept((*self._journal, entry), *self._limits)
        return output

    def submit(self, event_id: str, control: PyTree, chunk: int | None = None) -> bool:
        """Takes an event; it is applied when its chunk is made.

        Args:
            event_id: The sender's name for it.
            control: As `generate` takes it.
            chunk: Index of the chunk to steer; the next one by default.

        Returns:
            Whether it is new: one that was seen before is acknowledged, no more.

        Raises:
            ValueError: The chunk is made already, or the session is not active.
        """
        self._active("submit")
        if event_id in self._seen:
            return False
        next_chunk = self.committed_step_id
        chunk = next_chunk if chunk is None else chunk
        if chunk < next_chunk:
            raise ValueError(
                f"Event {event_id!r} is for chunk {chunk}, the next is {next_chunk}; "
                "send it for that or a later one, or undo first."
            )
        if chunk < next_chunk + self.redo_limit:
            self._undone = ()  # another future
        event = Event(event_id=event_id, chunk=chunk, control=_owned(control))
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
        cache = self._active("undo")
        if not 0 <= num_chunks <= self.undo_limit:
            raise ValueError(
                f"undo can go back 0 to {self.undo_limit} of {self.committed_step_id} "
                f"chunks, got {num_chunks}; undo_on_device and undo_on_host set how "
                "many are kept."
            )
        try:
            for _ in range(num_chunks):
                cache = journal.restore(self.pipeline, cache, self._journal[-1])
                step = self._steps[-1]
                if step.conditions is not self._conditions:
                    cache = self.pipeline.update_conditions(
                        self.params, cache, step.conditions
                    )
                self._cache, self._conditions = cache, step.conditions
                self._upcoming = step.upcoming
                self._journal, self._steps = self._journal[:-1], self._steps[:-1]
                self._undone = (*self._undone, step)
        except BaseException:
            self._check_survived(cache)
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
        cache = self._active("switch_prompt")
        if conditions is self._conditions:
            return
        self._cache = self.pipeline.update_conditions(self.params, cache, conditions)
        self._conditions = conditions

    def fork(self) -> "Session":
        """Another session with the same past, and the same way back.

        Raises:
            ValueError: The session is not active.
        """
        cache = self._active("fork")
        # Entries of the journal are never donated: both can hold them.
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._cache = journal.copy_cache(cache)
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
        if unknown := sorted(start.keys() - self._start.keys()):
            raise TypeError(
                f"reset takes {', '.join(self._start)}; got {', '.join(unknown)}."
            )
        before, self._start = self._start, self._start | start
        try:
            self._begin()
        except BaseException:
            self._start, self._state = before, SessionState.FAILED
            raise

    def close(self) -> None:
        """Lets go of all memory; the timeline can still be read."""
        self._state, self._cache, self._journal = SessionState.CLOSED, None, ()

    def _active(self, caller: str) -> StreamInferencePipelineCache:
        if self._state is not SessionState.ACTIVE or self._cache is None:
            cure = {
                SessionState.FAILED: "reset() it",
                SessionState.RESETTING: "wait for reset() to return",
            }.get(self._state, "begin a new one")
            raise ValueError(
                f"{caller} needs an active session, this one is {self._state.value}; "
                f"{cure}."
            )
        return self._cache

    def _check_survived(self, cache: StreamInferencePipelineCache) -> None:
        """After an error: whether a cache is left to go on from."""
        leaves = jax.tree.leaves(cache)
        if any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in leaves):
            self._state, self._cache, self._journal = SessionState.FAILED, None, ()


def _kept(
    entries: tuple[journal.Entry, ...], on_device: int, on_host: int
) -> tuple[journal.Entry, ...]:
    """The newest entries: the last `on_device` where they are, others on the host."""
    entries = entries[-(on_device + on_host) :]
    older = max(len(entries) - on_device, 0)
    return (*map(journal.to_host, entries[:older]), *entries[older:])


def _owned(control: PyTree) -> PyTree:
    """The control, which its owner cannot change any more."""
    return jax.tree.map(
        lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, control
    )


def _small(output: PyTree) -> Array | None:
    """The last frame of a video with every n-th pixel; None of anything else."""
    if not isinstance(output, jax.Array) or output.ndim != 5 or output.shape[-1] != 3:
        return None
    stride = -(-max(output.shape[2:4]) // _THUMBNAIL)
    # [B, T, H, W, 3] -> [B, H', W', 3]
    return output[:, -1, ::stride, ::stride]
