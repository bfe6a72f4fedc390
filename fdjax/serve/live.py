"""A player's live session: timelines, commands and pace, on the engine's thread."""

import dataclasses
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fdjax.axes import PyTree
from fdjax.run import edge
from fdjax.serve import replays, saving
from fdjax.serve.model import Model, Pixels
from fdjax.serve.parcels import Parcels
from fdjax.serve.pictures import Picture
from fdjax.serve.recording import Recording
from fdjax.serve.timeline import Timeline

_KEPT_EVENTS = 1000  # ids of events that are known when they come again
_LEAD = 1.3  # times what a chunk took lately, so that the next one is there in time
_SMOOTHING = 0.2
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame on its way to a page.

    Attributes:
        timeline: "a" or "b".
        epoch: Of the timeline when it was made; older ones are stale.
        chunk: Index of its chunk.
        index: Of the frame in its chunk.
        count: Frames of the chunk.
        when: Second of `time.monotonic` at which it is due.
        input: Number of the newest input that its chunk saw.
        picture: What it shows.
    """

    timeline: str
    epoch: int
    chunk: int
    index: int
    count: int
    when: float
    input: int
    picture: Picture


class Sink(Protocol):
    """Who sees a session: its player, or who watches it. Calls return at once."""

    @property
    def is_full(self) -> bool:
        """Whether frames wait that cannot be sent."""

    def show(self, frames: Sequence[Frame]) -> None:
        """Takes frames in their order."""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Takes a message; one of a new epoch makes frames before it stale."""


class Live:
    """One session as its player has it: up to two timelines, of which one moves."""

    def __init__(self, model: Model, max_chunks: int, parcels: Parcels) -> None:
        """Holds no memory of the device yet; `begin` does.

        Args:
            model: That makes its chunks.
            max_chunks: In a timeline.
            parcels: Files from and for its player.
        """
        self.model, self._parcels = model, parcels
        self.id = secrets.token_hex(4)  # known to directors
        self.secret = secrets.token_urlsafe(18)  # known to its player alone
        self.player: Sink | None = None
        self.watchers: list[Sink] = []
        self.timelines: dict[str, Timeline] = {}
        self.selected = "a"
        self.playing = True
        self.keys, self._tapped, self._holding, self.input = "", "", "", 0
        self.began = time.time()
        self.chunk_seconds, self.num_frames = 0.0, 0
        self._script: replays.Script | None = None
        self.recording: Recording | None = None
        self._max_chunks = max_chunks
        self._clock = 0.0  # when the last frame that was made has been shown
        self._events: OrderedDict[str, None] = OrderedDict()
        self._applied: list[str] = []

    # What the engine calls

    def begin(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begins, or begins again.

        Raises:
            ValueError: The method does not take the prompt.
        """
        seed = secrets.randbelow(2**31) if seed is None else seed
        session = self.model.begin(prompt, seed)
        self.put(Timeline(self.model, session, prompt or self.model.prompt, seed))
        self.tell({"type": "began", "seed": seed})

    def put(self, timeline: Timeline) -> None:
        """Makes this timeline the only one."""
        timeline.epoch = 1 + max((t.epoch for t in self.timelines.values()), default=0)
        self._close_timelines()
        self.timelines, self.selected = {"a": timeline}, "a"
        self.playing, self._clock, self._tapped = True, 0.0, ""
        self._script = None
        self.tell_state()

    def close(self) -> None:
        """Lets go of all memory."""
        self.tell({"type": "ended"})
        self._close_timelines()
        if self.recording is not None:
            self.recording.abort()
            self.recording = None

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """All who see it."""
        player = () if self.player is None else (self.player,)
        return (*player, *self.watchers)

    @property
    def current(self) -> Timeline:
        """The timeline that moves."""
        return self.timelines[self.selected]

    def due(self) -> float | None:
        """The second from which its next chunk should be made; None: not now."""
        if not self.playing or not self.timelines or self.player is None:
            return None
        if self.player.is_full:
            return None
        return self._clock - self.chunk_seconds * _LEAD

    def next_control(self) -> tuple[PyTree] | None:
        """What the next chunk takes, in a tuple; None if there is none to make."""
        timeline = self.current
        if len(timeline.chunks) >= self._max_chunks:
            self._pause(f"The session has {self._max_chunks} chunks; begin it again.")
            return None
        self._holding = self._held()
        if self._script is not None and not self._follow(self._script):
            return None
        try:
            control = timeline.next_control(self._holding)
        except IndexError:
            self._pause("The controls have ended; begin again, or undo.")
            return None
        self._tapped = ""
        return (control,)

    def _follow(self, script: replays.Script) -> bool:
        """Does what a replay file says for the next chunk; whether there is more."""
        index, before = len(self.current.chunks), self.model.runner.frames_before
        if index >= script.num_chunks:
            self._script = None
            self._pause("The replay has ended; go on from here.")
            return False
        if (prompt := script.said(index, before)) is not None:
            self.current.switch_prompt(prompt, 1, "linear")
        self._holding = script.keys(index, before)
        return True

    def took(self, made: Pixels | Exception, seconds: float) -> None:
        """Shows the chunk that was made.

        Args:
            made: Its video, or why there is none.
            seconds: That it took.
        """
        if isinstance(made, Exception):
            self._fail(made)
            return
        timeline = self.current
        timeline.commit(self._holding, made)
        self._measure(seconds)
        self._show(timeline, made)
        self._tell_chunk(timeline, made[-1])

    def do(self, command: Mapping[str, Any]) -> None:
        """Carries out a command; what cannot be is told to the player."""
        kind = command["type"]
        action: Callable[[Any], None] = getattr(self, f"_do_{kind}")
        if self._is_known(command.get("event_id")):
            return
        try:
            action(command)
        except (ValueError, FloatingPointError) as error:
            text = edge.message(error)
            self.tell({"type": "refused", "command": kind, "text": text})
        except Exception as error:
            self._fail(error)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Sends a message to all who see it."""
        for sink in self.sinks:
            sink.tell(message)

    def tell_state(self) -> None:
        """Says where all timelines stand, and shows their pictures."""
        self.tell(self.state())
        for timeline in self.timelines.values():
            if timeline.last is not None:
                self._show_still(timeline)

    def state(self) -> dict[str, Any]:
        """Where all timelines stand."""
        return {
            "type": "state",
            "session": self.id,
            "selected": self.selected,
            "playing": self.playing,
            "recording": self.recording is not None,
            "timelines": [each.summary() for each in self.timelines.values()],
        }

    # Commands

    def _do_keys(self, command: Mapping[str, Any]) -> None:
        known = self.model.steering.actions
        if unknown := sorted(set(command["keys"]) - known.keys()):
            named = ", ".join(f"{key} ({what})" for key, what in known.items())
            raise ValueError(
                f"unknown key {unknown[0]!r}; the keys are {named or 'none'}."
            )
        self.keys = command["keys"]
        if self.keys:
            self._script = None  # whoever takes the keys leads
        self._tapped += "".join(key for key in self.keys if key not in self._tapped)
        self.input = max(self.input, command["input"])
        if self.keys and not self.playing:
            self._do_play({"playing": True})

    def _do_prompt(self, command: Mapping[str, Any]) -> None:
        notes = self.current.switch_prompt(
            command["text"], command["chunks"], command["blend"]
        )
        for note in notes:
            self.tell({"type": "note", "text": note})
        self._do_play({"playing": True})

    def _do_play(self, command: Mapping[str, Any]) -> None:
        self.playing = command["playing"]
        self.tell(self.state())

    def _do_undo(self, command: Mapping[str, Any]) -> None:
        self.current.undo(command["chunks"])
        self._moved()

    def _do_redo(self, command: Mapping[str, Any]) -> None:
        timeline = self.current
        for _ in range(command["chunks"]):
            (video,) = timeline.redo(1)
            self._tell_chunk(timeline, video[-1])
        self._moved()

    def _do_jump(self, command: Mapping[str, Any]) -> None:
        distance = command["chunk"] - len(self.current.chunks)
        if distance > 0:
            self._do_redo({"chunks": distance})
        elif distance < 0:
            self._do_undo({"chunks": -distance})

    def _do_fork(self, command: Mapping[str, Any]) -> None:
        del command
        source = self.current
        name = "b" if source.name == "a" else "a"
        old = self.timelines.get(name)
        epoch = source.epoch + (old.epoch if old else 0) + 1
        if old is not None:
            old.session.close()
        self.timelines[name] = source.fork(name, epoch)
        self.selected = name
        self.tell({"type": "forked", "source": source.name, "timeline": name})
        self._moved()

    def _do_select(self, command: Mapping[str, Any]) -> None:
        if command["timeline"] not in self.timelines:
            raise ValueError(f"There is no timeline {command['timeline']}; fork first.")
        self.selected, self._clock = command["timeline"], 0.0
        self.tell(self.state())

    def _do_drop(self, command: Mapping[str, Any]) -> None:
        if command["timeline"] not in self.timelines or len(self.timelines) == 1:
            raise ValueError("The only timeline stays; begin again instead.")
        self.timelines.pop(command["timeline"]).session.close()
        (self.selected,) = self.timelines
        self.tell(self.state())

    def _do_reset(self, command: Mapping[str, Any]) -> None:
        self.begin(command["text"] or None, command["seed"])

    def _do_save(self, command: Mapping[str, Any]) -> None:
        del command
        timeline = self.current
        name = f"{self.model.name}-{len(timeline.chunks)}.session"
        self._offer(saving.to_bytes(timeline), "application/octet-stream", name)

    def _do_load(self, command: Mapping[str, Any]) -> None:
        parcel = self._parcels.take(command["file"])
        if parcel is None:
            raise ValueError("There is no such file; send it again.")
        if parcel.data[:1] == b"{":
            script = replays.from_bytes(parcel.data, self.model)
            self.begin(script.prompt or None, script.seed)
            self._script = script
            return
        self.put(saving.from_bytes(parcel.data, self.model))
        self._moved()

    def _do_replay(self, command: Mapping[str, Any]) -> None:
        del command
        data = replays.to_bytes(self.current)
        self._offer(data, "application/json", f"{self.model.name}.replay.json")

    def _do_record(self, command: Mapping[str, Any]) -> None:
        if command["recording"] and self.recording is None:
            self.recording = Recording(self.model.name, self.model.fps)
        elif not command["recording"]:
            self._end_recording()
        self.tell(self.state())

    # Parts

    def _held(self) -> str:
        """Keys held now or tapped since the last chunk, in the order of the method."""
        held = self.keys + self._tapped
        return "".join(key for key in self.model.steering.actions if key in held)

    def _is_known(self, event_id: str | None) -> bool:
        """Whether an event came before; a new one is noted."""
        if event_id is None:
            return False
        if event_id in self._events:
            self.tell({"type": "acknowledged", "event_id": event_id, "applied": False})
            return True
        self._events[event_id] = None
        self._applied.append(event_id)
        if len(self._events) > _KEPT_EVENTS:
            self._events.popitem(last=False)
        return False

    def _moved(self) -> None:
        """After a way back or forth: waits there, so that it can be looked at."""
        self.playing, self._clock, self._tapped = False, 0.0, ""
        self.tell(self.state())
        self._show_still(self.current)

    def _pause(self, text: str) -> None:
        self.playing = False
        self.tell({"type": "note", "text": text})
        self.tell(self.state())

    def _fail(self, error: Exception) -> None:
        _log.warning("A session failed: %s", edge.message(error), exc_info=error)
        self.playing = False
        text = f"{edge.message(error)}; begin again."
        self.tell({"type": "refused", "command": "step", "text": text})
        self.tell(self.state())

    def _measure(self, seconds: float) -> None:
        last = self.chunk_seconds or seconds
        self.chunk_seconds = (1 - _SMOOTHING) * last + _SMOOTHING * seconds

    def _show(self, timeline: Timeline, video: np.ndarray) -> None:
        start = max(time.monotonic(), self._clock)
        spacing = 1 / self.model.fps
        self._clock = start + len(video) * spacing
        self.num_frames += len(video)
        frames = [
            Frame(
                timeline=timeline.name,
                epoch=timeline.epoch,
                chunk=len(timeline.chunks) - 1,
                index=index,
                count=len(video),
                when=start + index * spacing,
                input=self.input,
                picture=Picture(pixels),
            )
            for index, pixels in enumerate(video)
        ]
        for sink in self.sinks:
            sink.show(frames)
        if self.recording is not None and not self.recording.add(video):
            self.tell({"type": "note", "text": "The recording is full; it ends here."})
            self._end_recording()

    def _show_still(self, timeline: Timeline) -> None:
        """Shows where a timeline stands."""
        if timeline.last is None:
            return
        frame = Frame(
            timeline=timeline.name,
            epoch=timeline.epoch,
            chunk=len(timeline.chunks) - 1,
            index=0,
            count=1,
            when=time.monotonic(),
            input=self.input,
            picture=timeline.last,
        )
        for sink in self.sinks:
            sink.show([frame])

    def _tell_chunk(self, timeline: Timeline, last: np.ndarray) -> None:
        chunk = timeline.chunks[-1]
        applied, self._applied = self._applied, []
        self.tell(
            {
                "type": "chunk",
                **timeline.summary(),
                "keys": chunk.keys,
                "thumbnail": Picture(last).thumbnail(),
                "chunk_ms": 1e3 * self.chunk_seconds,
                "applied_event_ids": applied,
            }
        )

    def _end_recording(self) -> None:
        if self.recording is None:
            raise ValueError("Nothing is being recorded.")
        recording, self.recording = self.recording, None
        self._offer(recording.finish(), "video/mp4", f"{self.model.name}.mp4")
        self.tell(self.state())

    def _offer(self, data: bytes, media_type: str, name: str) -> None:
        """Gives the player a file, by an address that is good once."""
        if self.player is not None:
            address = f"/v1/files/{self._parcels.put(data, media_type, name)}"
            self.player.tell({"type": "file", "url": address, "name": name})

    def _close_timelines(self) -> None:
        for timeline in self.timelines.values():
            timeline.session.close()
        self.timelines = {}
