"""Keyboard controls of maze-world: what is typed, and what the network is given."""

import bisect
import dataclasses
import itertools

import numpy as np

from fdjax.run.keys import read_runs

KEYS: dict[str, tuple[int, int]] = {
    "w": (1, 0),
    "s": (-1, 0),
    "a": (0, 1),
    "d": (0, -1),
    ".": (0, 0),
}
"""Key -> (forward, turn left), each in {-1, 0, 1}; "." is no key."""

ACTIONS = {
    "w": "forward",
    "s": "back",
    "a": "turn left",
    "d": "turn right",
    ".": "no key",
}
"""What each key does, in words."""

FRAMES_PER_CHUNK = 4
_MOST_FRAMES = 12 * 86400  # in an array: a day


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

    Args:
        text: For example "w*24 a*8 w*24"; see `fdjax.run.keys.read_runs`.

    Returns:
        The keys of at least one frame.

    Raises:
        ValueError: An unknown key, a malformed count, or no frames at all.
    """
    runs = read_runs(text, ACTIONS)
    # Opposite keys cancel.
    motions = tuple(
        (sum(KEYS[key][0] for key in held), sum(KEYS[key][1] for key in held))
        for held, _ in runs
    )
    return HeldKeys(motions, tuple(itertools.accumulate(count for _, count in runs)))


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
