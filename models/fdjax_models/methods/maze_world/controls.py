"""Keyboard controls of maze-world: what is typed, and what the network is given."""

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
_TOKEN = re.compile(r"(?P<keys>[^*\s]+?)(?:\*(?P<count>\d+))?")


def parse_controls(text: str) -> np.ndarray:
    """Returns the controls per frame that a control string stands for.

    A string is a list of groups separated by white space; a group is one or more keys
    held together and, after "*", for how many frames (1 if not given). "w*24 wa*8 .*4"
    walks for 24 frames, walks a left turn for 8, and rests for 4.

    Args:
        text: The control string, for example "w*24 a*8 w*24".

    Returns:
        (forward, turn left) per frame, each in {-1, 0, 1}.  int8[frames, 2].

    Raises:
        ValueError: An unknown key, a malformed count, or no frames at all.
    """
    frames: list[np.ndarray] = []
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
        held = np.sum([KEYS[key] for key in set(match["keys"].lower())], axis=0)
        count = int(match["count"] or 1)
        frames.append(np.tile(held.astype(np.int8), (count, 1)))
    controls = np.concatenate(frames) if frames else np.zeros((0, 2), np.int8)
    if not len(controls):
        raise ValueError(f"controls {text!r} hold no frame; try 'w*24 a*8 w*24'")
    return controls


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
    padded[FRAMES_PER_CHUNK : FRAMES_PER_CHUNK + len(kept)] = kept
    return padded.reshape(num_chunks, FRAMES_PER_CHUNK, 2)


def num_chunks_for(controls: np.ndarray) -> int:
    """Returns how many chunks show all of `controls`, the start image included."""
    return 1 + -(-len(controls) // FRAMES_PER_CHUNK)
