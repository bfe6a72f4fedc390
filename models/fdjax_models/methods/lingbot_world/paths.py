"""Camera paths as people write them: distances and angles, or keys that are held.

The motion is that of the reference's live player (NVIDIA/flashdreams,
integrations/lingbot/lingbot/webrtc): the camera walks on the level, whatever its pitch.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from fdjax.run import controls
from fdjax.run.controls import FOREVER, Controls, End, Source

SPEED = 0.8
"""Of walking, units per second."""

TURN = 32.0
"""Of turning, degrees per second."""

STEEPEST = 85.0
"""Pitch stays within this, degrees."""


VERBS = {
    "forward": (0, 1),
    "back": (0, -1),
    "right": (1, 1),
    "left": (1, -1),
    "up": (2, 1),
    "down": (2, -1),
    "yaw": (3, 1),
    "pitch": (4, 1),
}
"""Word -> which of (forward, right, up, yaw, pitch), and its sign."""

KEYS = {
    "w": "forward",
    "s": "back",
    "e": "right",
    "q": "left",
    "d": "turn right",
    "a": "turn left",
    "l": "turn right",
    "j": "turn left",
    "i": "look up",
    "k": "look down",
    ".": "nothing",
}
"""Key -> what it does while it is held."""

_TURNS = {
    "turn right": (3, 1),
    "turn left": (3, -1),
    "look up": (4, 1),
    "look down": (4, -1),
}


@dataclasses.dataclass(frozen=True)
class Segment:
    """Frames of one even motion.

    Attributes:
        frames: How many, at least 1.
        step: Per frame: forward, right, up (units), yaw to the right, pitch up
            (degrees).
        keys: What was held; "" for a written path.
    """

    frames: int
    step: tuple[float, float, float, float, float]
    keys: str = ""


def read_camera(text: str, fps: float) -> tuple[Segment, ...]:
    """A path such as "forward 2.0, yaw 30, wait 1".

    Args:
        text: Steps apart by commas: forward, back, left, right, up, down (units), yaw
            (degrees, to the right), pitch (degrees, up), wait (seconds).
        fps: Frames per second.

    Raises:
        ValueError: A step is malformed, or there is none.
    """
    segments = []
    for step in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        word, _, number = step.partition(" ")
        try:
            amount = float(number)
        except ValueError:
            amount = float("nan")
        if word not in (*VERBS, "wait") or not abs(amount) < 1e9:
            raise ValueError(
                f"camera step {step[:40]!r} must be one of {', '.join(VERBS)}, wait, "
                "and a number, as in 'forward 2.0'."
            )
        if word == "wait":
            motion, seconds = [0.0] * 5, amount
        else:
            which, sign = VERBS[word]
            seconds = abs(amount) / (TURN if which > 2 else SPEED)
            motion = [0.0] * 5
            motion[which] = sign * amount
        if seconds < 0:
            raise ValueError(f"camera step {step[:40]!r} must not wait backwards.")
        if frames := round(seconds * fps) or int(amount != 0):
            total = tuple(value / frames for value in motion)
            segments.append(Segment(frames, total))  # type: ignore[arg-type]
    if not segments:
        raise ValueError(
            f"camera {text[:40]!r} moves nowhere; try 'forward 2, yaw 30'."
        )
    return tuple(segments)


def read_controls(source: Source, fps: float, end: End = "stop") -> tuple[Segment, ...]:
    """Keys and for how many video frames, such as "w*24 wa*12 .*8".

    Args:
        source: See `fdjax.run.controls`.
        fps: Frames per second.
        end: What comes when they end; see `segments_of`.

    Raises:
        ValueError: An unknown key, a malformed count, or no frame at all.
    """
    return segments_of(controls.read_controls(source, KEYS, end=end), fps)


def segments_of(script: Controls, fps: float) -> tuple[Segment, ...]:
    """The path of keys that are held; where they are held on, its last part is endless.

    Args:
        script: What is held. To "repeat" it is up to `walk`.
        fps: Frames per second.
    """
    frames = np.diff(script.ends, prepend=0).tolist()
    if script.end == "hold":
        frames[-1] = FOREVER
    return tuple(
        Segment(count, step_of(held, fps), held)
        for held, count in zip(script.held, frames, strict=True)
    )


def num_frames(segments: Sequence[Segment]) -> int:
    """Video frames of a path, the first one, in which nothing has moved, included."""
    return 1 + sum(segment.frames for segment in segments)


def keys_at(segments: Sequence[Segment], frame: int, repeat: bool = False) -> str:
    """What is held on the way to a video frame."""
    last, period = 0, num_frames(segments) - 1
    if repeat and frame > 0 and period:
        frame = 1 + (frame - 1) % period
    for segment in segments:
        last += segment.frames
        if 0 < frame <= last:
            return segment.keys
    return ""


def walk(segments: Sequence[Segment], frames: int, repeat: bool = False) -> np.ndarray:
    """Where the camera is in each video frame; it rests when the path ends.

    It starts at the origin and looks along +z. In each frame it turns first, then
    walks the way that it faces.

    Args:
        segments: The path.
        frames: How many poses to make.
        repeat: When the path ends, walk it again from there.

    Returns:
        Camera-to-world; x right, y down, z forward.  float64[frames, 4, 4].
    """
    poses = np.tile(np.eye(4), (frames, 1, 1))
    place, steps = Place(), _steps(segments, repeat)
    for frame in range(1, frames):
        place = place.moved(next(steps))
        poses[frame] = place.pose
    return poses


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the camera is and looks; at first at the origin, along +z.

    Attributes:
        position: x right, y down, z forward.
        yaw: To the right, radians.
        pitch: Up, radians.
    """

    position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    yaw: float = 0.0
    pitch: float = 0.0

    def moved(self, step: Sequence[float]) -> "Place":
        """A frame later: it turns first, then walks the way that it faces.

        Args:
            step: As in a `Segment`.
        """
        forward, right, up, turn, look = step
        yaw = self.yaw + np.deg2rad(turn)
        limit = np.deg2rad(STEEPEST)
        pitch = float(np.clip(self.pitch + np.deg2rad(look), -limit, limit))
        sin, cos = np.sin(yaw), np.cos(yaw)
        way = (forward * sin + right * cos, -up, forward * cos - right * sin)
        x, y, z = (float(a + b) for a, b in zip(self.position, way, strict=True))
        return Place((x, y, z), float(yaw), pitch)

    @property
    def pose(self) -> np.ndarray:
        """Camera-to-world.  float64[4, 4]."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = _rotation(self.yaw, self.pitch), self.position
        return pose


def _steps(segments: Sequence[Segment], repeat: bool) -> Iterator[tuple[float, ...]]:
    for segment in itertools.cycle(segments) if repeat else segments:
        for _ in range(segment.frames):
            yield segment.step
    while True:
        yield (0.0,) * 5


def _rotation(yaw: float, pitch: float) -> np.ndarray:
    """Turned right by `yaw` about the vertical, then up by `pitch`, radians."""
    sin, cos = np.sin(yaw), np.cos(yaw)
    turned = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    sin, cos = np.sin(pitch), np.cos(pitch)
    return turned @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def step_of(held: str, fps: float) -> tuple[float, float, float, float, float]:
    """Motion per frame of keys held together; opposite ones cancel."""
    step = [0.0] * 5
    for key in held:
        action = KEYS[key]
        which, sign = _TURNS.get(action) or VERBS[action]
        step[which] += sign
    signs = np.clip(step, -1, 1)
    speeds = np.array([SPEED] * 3 + [TURN] * 2) / fps
    return tuple(float(value) for value in signs * speeds)  # type: ignore[return-value]
