"""Keyboard controls of maze-world: what is typed, and what the network is given."""

import bisect
import dataclasses
import re

import numpy as np

KEYS: dict[str, tuple[int, int]] = {
    "w": (1, 0),
    "s": (-1, 0),
    "a": (0, 1),
    "d": (0, -1),
    ".": (0, 0),
}
"""Key -> (forward, turn left), each in {-1, 0, 1}; "." is no key."""

FRAMES_PER_CHUNK = 4
_MOST_DIGITS = 15  # of a count of frames: more than two million years
_MOST_FRAMES = 12 * 86400  # in an array: a day
_TOKEN = re.compile(r"(?P<keys>[^*\s]+?)(?:\*(?P<count>\d+))?")


@dataclasses.dataclass(frozen=True)
class HeldKeys:
    """Which keys are held in each frame, as runs of equal frames.

    However long a rest or a walk is, it is one run.

    Attributes:
        runs: (forward, turn left), each in {-1, 0, 1}, of each run.
        ends: The frame behind each run, ascending.
    """

    runs: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]

    @property
    def num_frames(self) -> int:
        """Frames in all."""
        return self.ends[-1]

    def at(self, frame: int) -> tuple[int, int]:
        """What is held in a frame; nothing before the first and behind the last."""
        if not 0 <= frame < self.num_frames:
            return 0, 0
        return self.runs[bisect.bisect_right(self.ends, frame)]


def read_keys(text: str) -> HeldKeys:
    """Returns the keys per frame that a control string stands for.

    A string is a list of groups separated by white space; a group is one or more keys
    held together and, after "*", for how many frames (1 if not given). "w*24 wa*8 .*4"
    walks for 24 frames, walks a left turn for 8, and rests for 4.

    Args:
        text: The control string, for example "w*24 a*8 w*24".

    Returns:
        The keys of at least one frame.

    Raises:
        ValueError: An unknown key, a malformed count, or no frames at all.
    """
    runs: list[tuple[int, int]] = []
    ends: list[int] = []
    for group in text.split():
        match = _TOKEN.fullmatch(group)
        if match is None:
            raise ValueError(
                f"control group {group!r} must be keys, or keys*frames as in 'w*24'"
            )
        unknown = sorted(set(match["keys"].lower()) - KEYS.keys())
        if unknown:
            raise ValueError(
                f"control group {group!r} has unknown key(s) "
                f"{', '.join(map(repr, unknown))}; the keys are {describe_keys()}"
            )
        if len(match["count"] or "") > _MOST_DIGITS:
            raise ValueError(
                f"control group {group[:20]!r}... must count frames in at most "
                f"{_MOST_DIGITS} digits"
            )
        if count := int(match["count"] or 1):
            # A key named twice in a group is held once; opposite keys cancel.
            held = [KEYS[key] for key in set(match["keys"].lower())]
            runs.append((sum(key[0] for key in held), sum(key[1] for key in held)))
            ends.append((ends[-1] if ends else 0) + count)
    if not ends:
        raise ValueError(f"controls {text!r} hold no frame; try 'w*24 a*8 w*24'")
    return HeldKeys(tuple(runs), tuple(ends))


def parse_controls(text: str) -> np.ndarray:
    """Returns the controls per frame that a control string stands for, as an array.

    Args:
        text: See `read_keys`.

    Returns:
        (forward, turn left) per frame, each in {-1, 0, 1}.  int8[frames, 2].

    Raises:
        ValueError: See `read_keys`; or there are more frames than a day has.
    """
    keys = read_keys(text)
    if keys.num_frames > _MOST_FRAMES:
        raise ValueError(
            f"controls of {keys.num_frames} frames make too large an array, the most "
            f"are {_MOST_FRAMES}; read_keys holds any number."
        )
    # Frames of each run; [runs, 2] -> [frames, 2]
    counts = np.diff(keys.ends, prepend=0)
    return np.repeat(np.array(keys.runs, np.int8), counts, axis=0)


def describe_keys() -> str:
    """Returns one line that lists the keys."""
    return "w (forward), s (back), a (turn left), d (turn right), . (no key)"


def controls_per_chunk(controls: np.ndarray, num_chunks: int) -> np.ndarray:
    """Cuts per-frame controls into chunks, padded with "no key".

    The first chunk shows the start image and takes no control.

    Args:
        controls: (forward, turn left) per frame.  int[frames, 2].
        num_chunks: Chunks to make, the first one included.

    Returns:
        Controls.  float32[num_chunks, 4, 2].
    """
    wanted = (num_chunks - 1) * FRAMES_PER_CHUNK
    kept = controls[:wanted]
    padded = np.zeros((num_chunks * FRAMES_PER_CHUNK, 2), np.float32)
    # The first chunk's rows stay zero.  [num_chunks * 4, 2] -> [num_chunks, 4, 2]
    padded[FRAMES_PER_CHUNK : FRAMES_PER_CHUNK + len(kept)] = kept
    return padded.reshape(num_chunks, FRAMES_PER_CHUNK, 2)


def chunk_controls(keys: HeldKeys, chunk: int) -> np.ndarray:
    """Returns one chunk of `controls_per_chunk`.

    Args:
        keys: The keys per frame, from the second chunk on.
        chunk: Index of the chunk, from 0.

    Returns:
        (forward, turn left) per frame.  float32[4, 2].
    """
    # Below 0 in the first chunk, where `at` answers that nothing is held.
    first = (chunk - 1) * FRAMES_PER_CHUNK
    frames = range(first, first + FRAMES_PER_CHUNK)
    return np.array([keys.at(frame) for frame in frames], np.float32)


def num_chunks_for(keys: HeldKeys | np.ndarray) -> int:
    """Returns how many chunks show all of `keys`, the start image included."""
    frames = keys.num_frames if isinstance(keys, HeldKeys) else len(keys)
    return 1 + -(-frames // FRAMES_PER_CHUNK)


def names_of(held: tuple[int, int]) -> str:
    """Returns the keys that stand for (forward, turn left): "wa"; "" if none does."""
    forward, left = held
    return {1: "w", 0: "", -1: "s"}[forward] + {1: "a", 0: "", -1: "d"}[left]
