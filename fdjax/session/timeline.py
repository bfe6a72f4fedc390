"""What a session holds besides its cache: chunks that were made, and events."""

import dataclasses
import enum

import jax
import numpy as np

from fdjax.axes import Array, PyTree
from fdjax.contract.conditioner import Conditions

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

    @property
    def cure(self) -> str:
        """What to do where a session must be active."""
        return {
            SessionState.FAILED: "reset() it",
            SessionState.RESETTING: "wait for reset() to return",
        }.get(self, "begin a new one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What a session begins with, as `initialize_cache` takes it.

    Attributes:
        conditions: From `encode_conditions`.
        pixel_height: Rows; the image's by default.
        pixel_width: Columns.
        key: Of the noise; the config's seed by default.
    """

    conditions: Conditions
    pixel_height: int | None = None
    pixel_width: int | None = None
    key: jax.Array | None = None

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Rows and columns of the video."""
        if self.conditions.image is None:
            return self.pixel_height or 0, self.pixel_width or 0
        _, height, width, _ = self.conditions.image.shape
        return height, width


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


def owned(control: PyTree) -> PyTree:
    """The control, which its owner cannot change any more."""
    return jax.tree.map(
        lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, control
    )


def small(output: PyTree) -> Array | None:
    """The last frame of a video with every n-th pixel; None of anything else."""
    if not isinstance(output, jax.Array) or output.ndim != 5 or output.shape[-1] != 3:
        return None
    stride = -(-max(output.shape[2:4]) // _THUMBNAIL)
    # [B, T, H, W, 3] -> [B, H', W', 3]
    return output[:, -1, ::stride, ::stride]
