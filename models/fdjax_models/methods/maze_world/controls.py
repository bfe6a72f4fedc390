"""Keyboard controls of maze-world: what is typed, and what the network is given."""

import dataclasses

import numpy as np

from fdjax.run.controls import Controls, End, Source, check_rows, read_controls

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
    """What is held in each frame.

    Attributes:
        script: Keys by frame, or an array [frames, 2] of (forward, turn left).
    """

    script: Controls

    @property
    def num_frames(self) -> int:
        """Frames that were given."""
        return self.script.num_frames

    def at(self, frame: int) -> tuple[float, float]:
        """(forward, turn left) in a frame; nothing before the first."""
        if self.script.array is None:
            # Opposite keys cancel.
            held = [KEYS[key] for key in self.script.keys_at(frame)]
            return sum(key[0] for key in held), sum(key[1] for key in held)
        clock = self.script.clock(frame)
        forward, left = (0, 0) if clock is None else self.script.array[clock]
        return float(forward), float(left)


def read_keys(source: Source, end: End = "stop") -> HeldKeys:
    """Returns what is held in each frame.

    Args:
        source: For example "w*24 a*8 w*24"; see `fdjax.run.controls`. An array is
            (forward, turn left) in [-1, 1], [frames, 2].
        end: What comes when they end.

    Raises:
        ValueError: An unknown key, a malformed count, or no frames at all.
    """
    return held_keys(read_controls(source, ACTIONS, end=end, takes_array=True))


def held_keys(script: Controls) -> HeldKeys:
    """Returns what a script has held, its array checked.

    Raises:
        ValueError: The array has another shape, or leaves [-1, 1].
    """
    check_rows(script, "forward", "turn left")
    return HeldKeys(script)


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
    return np.array([keys.at(frame) for frame in range(keys.num_frames)], np.int8)


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
    frames = keys.script.length if isinstance(keys, HeldKeys) else len(keys)
    return 1 + -(-frames // FRAMES_PER_CHUNK)


def names_of(held: tuple[float, float]) -> str:
    """Returns the keys that stand for (forward, turn left): "wa"; "" if none does."""
    forward, left = np.sign(held)
    return {1: "w", 0: "", -1: "s"}[forward] + {1: "a", 0: "", -1: "d"}[left]


def chunk_of(keys: str) -> np.ndarray:
    """Returns the controls of a chunk in which the same keys are held throughout.

    Args:
        keys: Such as "wa"; opposite ones cancel.

    Returns:
        (forward, turn left) per frame, for one session.  float32[1, 4, 2].
    """
    motion = np.sum([KEYS[key] for key in keys or "."], axis=0)
    # [2] -> [1, 4, 2]
    return np.tile(motion.astype(np.float32), (1, FRAMES_PER_CHUNK, 1))
