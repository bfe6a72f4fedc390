"""What a person steers a run with: keys that are held, an array, prompts that change.

One way of writing it for every method, on the command line and in Python:

    "w*24 a*8"                                     keys, and for how many frames
    [{"frame": 0, "keys": "w"},                    events, each from a frame on
     {"frame": 48, "prompt": "the same at night"},
     {"frame": 96, "end": true}]
    walk.txt, walk.json                            a file with either of them
    walk.npy                                       an array of the method's own

What the keys do is a table of each method.
"""

import bisect
import dataclasses
import itertools
import json
import operator
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from fdjax.checkpoint import fetch
from fdjax.config.values import did_you_mean
from fdjax.run.keys import controls_text, held_keys, read_runs

End = Literal["stop", "hold", "repeat"]
"""What comes when the controls end: the run stops, the last of them is held, or they
are repeated."""

Source = str | pathlib.Path | np.ndarray | Sequence[Mapping[str, Any]]
"""A text, a file, or in Python an array or a list of events."""

FOREVER = 2**62
"""More frames than any video has."""

_MOST_FRAMES = 10**15
_EVENT = ("frame", "keys", "prompt", "end")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Controls:
    """Controls by frame, however many there are.

    What is held in frame n, while it is on the screen, moves frame n + 1. A prompt is
    that of the chunk which holds its frame, and of those behind it.

    Attributes:
        held: Keys of each run of equal frames, "" for none.
        ends: The frame behind each run, ascending.
        prompts: (frame, text), ascending.
        array: Controls of the method's own, one row a frame, in place of keys.
        steers: Whether keys or an array were given, and not prompts alone.
        end: What comes behind the last frame.
    """

    held: tuple[str, ...] = ("",)
    ends: tuple[int, ...] = (FOREVER,)
    prompts: tuple[tuple[int, str], ...] = ()
    array: np.ndarray | None = dataclasses.field(default=None, compare=False)
    steers: bool = True
    end: End = "stop"

    @property
    def num_frames(self) -> int:
        """Frames until they end; `FOREVER` if the last event is held."""
        return self.ends[-1]

    @property
    def length(self) -> int:
        """Frames until the run ends with them; `FOREVER` if it does not."""
        return self.num_frames if self.end == "stop" else FOREVER

    @property
    def end_text(self) -> str:
        """What comes when they end."""
        then = {
            "stop": "and the run with the chunk; --controls_end hold and repeat go on",
            "hold": "and the last of them is held on",
            "repeat": "and begin again",
        }
        return f"The controls end at frame {self.num_frames}, {then[self.end]}."

    def clock(self, frame: int) -> int | None:
        """Which of the frames that were given is in force; None: nothing is held."""
        if frame < 0 or (frame >= self.num_frames and self.end == "stop"):
            return None
        if self.end == "repeat":
            return frame % self.num_frames
        return min(frame, self.num_frames - 1)

    def keys_at(self, frame: int) -> str:
        """Keys that are held in a frame."""
        at = self.clock(frame)
        return "" if at is None else self.held[bisect.bisect_right(self.ends, at)]

    def prompt_in(self, start: int, stop: int) -> str | None:
        """The last prompt that is said in the frames from `start` to before `stop`."""
        period = self.num_frames if self.end == "repeat" else FOREVER
        said = [
            (frame + (stop - 1 - frame) // period * period, text)
            for frame, text in self.prompts
            if frame < stop
        ]
        last, text = max(said, key=operator.itemgetter(0), default=(-1, None))
        return text if last >= start else None


def read_controls(
    source: Source,
    actions: Mapping[str, str],
    *,
    end: End = "stop",
    takes_array: bool = False,
) -> Controls:
    """Controls, from any of the forms that the module describes.

    Args:
        source: Keys, events, or the path of a file: text that ends in .txt, .json or
            .npy.
        actions: What each key does; "." is no key. Empty: the method has none.
        end: What comes when they end.
        takes_array: Whether the method has an array form, whose shape it checks.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: They are malformed; says where, and what is meant.
    """
    if isinstance(source, np.ndarray) or _is_array_file(source):
        if not takes_array:
            raise ValueError("controls cannot be an array here; give keys or events.")
        array = source if isinstance(source, np.ndarray) else _load(source)
        if not array.ndim or not len(array):
            raise ValueError(f"controls hold no frame, got an array of {array.shape}.")
        return Controls(ends=(len(array),), held=("",), array=array, end=end)
    if isinstance(source, str | pathlib.Path):
        text = controls_text(source).strip()
        if text.startswith(("[", "{")):
            return _read_events(_parse_json(text), actions, end)
        if str(source).strip().endswith(".json"):
            raise ValueError(f"controls file {source} must hold a list of events.")
        if not actions:
            raise ValueError(_NO_KEYS)
        runs = read_runs(text, actions)
        ends = itertools.accumulate(frames for _, frames in runs)
        return Controls(held=tuple(keys for keys, _ in runs), ends=tuple(ends), end=end)
    return _read_events(source, actions, end)


def check_rows(controls: Controls, *columns: str) -> None:
    """Refuses an array that is not one row of numbers in [-1, 1] per frame.

    Args:
        controls: With an array or without.
        columns: What each column is.

    Raises:
        ValueError: The array has another shape, or leaves [-1, 1].
    """
    array = controls.array
    if array is None:
        return
    shape = (controls.num_frames, len(columns))
    is_right = array.shape == shape and array.dtype.kind in "fiu"
    if not is_right or not (np.abs(array.astype(np.float64)) <= 1).all():
        raise ValueError(
            f"controls as an array must be ({', '.join(columns)}) in [-1, 1], numbers "
            f"[frames, {len(columns)}], got {array.dtype}{list(array.shape)}."
        )


_NO_KEYS = (
    "controls of this method are events of prompts, as it has no keys; for example "
    '[{"frame": 48, "prompt": "the same at night"}], or a .json file of them.'
)


def _read_events(events: Any, actions: Mapping[str, str], end: End) -> Controls:
    """Controls that are given as what happens from which frame on."""
    if isinstance(events, str) or not isinstance(events, Sequence) or not events:
        raise ValueError(
            'controls must be a list of events such as {"frame": 0, "keys": "w"}, got '
            f"{events!r:.60}."
        )
    for number, event in enumerate(events):
        _check_event(event, number)
    ordered = sorted(events, key=operator.itemgetter("frame"))
    keys, prompts = _said(ordered, "keys"), _said(ordered, "prompt")
    if keys and not actions:
        raise ValueError(_NO_KEYS)
    # What is held before the first key event is nothing.
    rest = [(0, "")] if not keys or keys[0][0] else []
    starts = [frame for frame, _ in rest + keys]
    held = [held_keys(text, actions) for _, text in rest + keys]
    return Controls(
        held=tuple(held),
        ends=(*starts[1:], _end_of(ordered)),
        prompts=tuple(prompts),
        steers=bool(keys),
        end=end,
    )


def _end_of(events: Sequence[Mapping[str, Any]]) -> int:
    """The frame of the event that ends the controls; `FOREVER` if there is none."""
    ends = [event["frame"] for event in events if "end" in event]
    if not ends:
        return FOREVER
    last = max((e["frame"] for e in events if "end" not in e), default=0)
    if len(ends) > 1 or ends[0] <= last:
        raise ValueError(
            f"controls must have one end, behind all other events, got ends at frames "
            f"{ends} and another event at frame {last}."
        )
    return ends[0]


def _check_event(event: Any, number: int) -> None:
    """Refuses an event that says nothing, or something else than events say."""
    where = f"controls event {number}"
    if not isinstance(event, Mapping):
        raise ValueError(f"{where} must be an object, got {event!r:.60}.")
    for name in event:
        if name not in _EVENT:
            hint = did_you_mean(str(name), _EVENT) or f"; it may have {_EVENT}"
            raise ValueError(f"{where} has an unknown field {name!r}{hint}")
    frame = event.get("frame")
    if type(frame) is not int or not 0 <= frame < _MOST_FRAMES:
        raise ValueError(
            f"{where} must have a frame, a whole number from 0, got {frame!r:.40}."
        )
    for name in ("keys", "prompt"):
        if not isinstance(event.get(name, ""), str):
            raise ValueError(f"{where}: {name} must be text, got {event[name]!r:.40}.")
    if "prompt" in event and not event["prompt"].strip():
        raise ValueError(f"{where}: prompt must not be empty.")
    if "end" in event and (event["end"] is not True or len(event) > 2):
        raise ValueError(f'{where}: an end is {{"frame": N, "end": true}} alone.')
    if len(event) < 2:
        raise ValueError(f"{where} must say what happens: one of {_EVENT[1:]}.")


def _said(events: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, str]]:
    """(frame, text) of the events that have a field, at most one of them a frame."""
    said = [(event["frame"], event[name]) for event in events if name in event]
    for (frame, _), (following, _) in itertools.pairwise(said):
        if frame == following:
            raise ValueError(f"controls have two {name} events at frame {frame}.")
    return said


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"controls begin as JSON and are none: {error}.") from None


def _is_array_file(source: Any) -> bool:
    return isinstance(source, str | pathlib.Path) and str(source).strip().endswith(
        ".npy"
    )


def _load(source: Any) -> np.ndarray:
    """The array in a .npy file, which is never executed."""
    path = fetch.fetch_file(str(source).strip(), what="controls file")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"controls file {source} must be a .npy array: {error}."
        ) from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"controls file {source} must be one array, not an archive.")
    return array
