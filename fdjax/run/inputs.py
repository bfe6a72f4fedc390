"""What a run starts from, and what it gives back."""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from fdjax.axes import PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.run.controls import Controls


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnerInputs:
    """What a rollout starts from, read and checked.

    Attributes:
        text: One prompt, or None.
        image: First frame in [-1, 1], float[1, H, W, 3], or None.
        conditions: What `embeddings_path` holds, in place of text and image, or None.
        controls: One input per chunk of the session for the pipeline's encoder, or
            None. The rollout ends where they end; `LazySequence` makes them one by one.
        script: What the config's `controls` say, of which the run takes the prompts and
            the length; from `Runner.read_controls`.
        label: What the contact sheet says of a frame besides its number, such as the
            keys that were held: `label(chunk, frame)`, both in the session's count.
        pictures: More pictures for the folder, uint8[H, W, 3], by what they show: the
            file is `<name>.<what>.png`.
        above: What the video follows, such as its HD map: `above(chunk)`, in the
            session's count, gives one float[B, T, H, W, 3] in [-1, 1] per view, and
            `<name>.comparison.mp4` shows it above the video.
        extra: Whatever else the method's `encode_conditions` needs.
    """

    text: tuple[str, ...] | None = None
    image: ArrayLike | None = None
    conditions: Conditions | None = None
    controls: Sequence[PyTree] | None = None
    script: Controls | None = None
    label: Callable[[int, int], str] | None = None
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    above: Callable[[int], Sequence[ArrayLike]] | None = None
    extra: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnerResult:
    """What a run made.

    Attributes:
        output: The video, or `.npy` of latents without a decoder; the first of
            `outputs`.
        files: All files that the run wrote.
        outputs: One file per session and view, or one for all: `arrangement`.
        num_frames: Frames in it.
        stats: One entry per chunk, as in the stats file.
        chunk_hashes: Of the chunks of `output`, as in the replay file.
    """

    output: pathlib.Path
    outputs: tuple[pathlib.Path, ...]
    files: tuple[pathlib.Path, ...]
    num_frames: int
    stats: list[dict[str, Any]]
    chunk_hashes: tuple[str, ...] = ()


class LazySequence(Sequence[Any]):
    """A sequence whose items are made when they are asked for.

    Args:
        length: How many there are; more than a machine can hold if need be.
        make: Makes the item of an index in [0, length).
    """

    def __init__(self, length: int, make: Callable[[int], Any]):
        self._length, self._make = min(length, sys.maxsize), make

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._make(index % self._length)
