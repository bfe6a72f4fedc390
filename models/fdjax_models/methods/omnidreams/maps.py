"""HD-map videos and first frames of a run: read from files, or drawn."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from fdjax.run import media
from fdjax.run.start_image import Fit, read_start_pixels
from fdjax_models.methods.omnidreams.road import driver, vehicle
from fdjax_models.methods.omnidreams.road.rendering import render, render_frames
from fdjax_models.methods.omnidreams.road.world import World, start
from fdjax_models.networks.hdmap.video import num_frames

_SAME_RATE = 0.005  # relative; 29.97 is 30
_STRETCH = 0.02  # of proportions, from rounding to a network's patches
_log = logging.getLogger(__name__)


def frames_of(chunk: int, len_t: int) -> slice:
    """Video frames of a chunk, counted from the start of the session."""
    first = num_frames(chunk * len_t, first=True) if chunk else 0
    return slice(first, num_frames((chunk + 1) * len_t, first=True))


@dataclasses.dataclass(frozen=True)
class RecordedMaps:
    """HD maps from files.

    Attributes:
        pixels: uint8[V, T, H, W, 3].
        len_t: Latent frames of a chunk.
    """

    pixels: np.ndarray
    len_t: int

    @property
    def num_chunks(self) -> int:
        """Whole chunks that they cover."""
        latents = (self.pixels.shape[1] + 3) // 4
        return latents // self.len_t

    def chunk(self, index: int) -> np.ndarray:
        """The maps of a chunk, float32[1, V, T, H, W, 3] in [-1, 1].

        Rounded to bfloat16, in which the reference reads them.
        """
        return _in_range(self.pixels[None, :, frames_of(index, self.len_t)])

    def start(self) -> np.ndarray:
        """The maps at the start, float32[1, V, H, W, 3] in [-1, 1]."""
        return _in_range(self.pixels[None, :, 0])


@dataclasses.dataclass(frozen=True)
class DrawnMaps:
    """HD maps of a drive through a procedural world, drawn when they are asked for.

    Attributes:
        world: Which.
        states: The car in every frame.  [T].
        cameras: One per view.
        size: Height and width in pixels.
        len_t: Latent frames of a chunk.
    """

    world: World
    states: vehicle.Ego
    cameras: tuple[str, ...]
    size: tuple[int, int]
    len_t: int

    @property
    def num_chunks(self) -> int:
        """Whole chunks that they cover."""
        return (len(self.states.x) + 3) // 4 // self.len_t

    def chunk(self, index: int) -> jax.Array:
        """The maps of a chunk, float32[1, V, T, H, W, 3] in [-1, 1]."""
        frames = frames_of(index, self.len_t)
        states = jax.tree.map(lambda leaf: leaf[frames], self.states)
        height, width = self.size
        maps = render_frames(
            self.world, states, cameras=self.cameras, height=height, width=width
        )
        return maps[None]

    def start(self) -> np.ndarray:
        """The maps at the start, float32[1, V, H, W, 3] in [-1, 1]."""
        first = jax.tree.map(lambda leaf: leaf[0], self.states)
        size = {"height": self.size[0], "width": self.size[1]}
        views = [
            render(self.world, first, camera=name, **size) for name in self.cameras
        ]
        return np.stack([np.asarray(view) for view in views])[None]


def _in_range(pixels: np.ndarray) -> np.ndarray:
    """Bytes as float32 in [-1, 1], rounded as the reference rounds them."""
    return media.from_uint8(pixels, ml_dtypes.bfloat16).astype(np.float32)


def drawn(
    world: World,
    controls: np.ndarray | None,
    *,
    cameras: tuple[str, ...],
    size: tuple[int, int],
    len_t: int,
    num_chunks: int,
) -> DrawnMaps:
    """The maps of a drive from the world's start.

    Args:
        world: Which.
        controls: (steering, throttle) of each frame, float32[T, 2]; None: somebody
            keeps to the lane.
        cameras: One per view.
        size: Height and width in pixels.
        len_t: Latent frames of a chunk.
        num_chunks: How long the drive is.
    """
    ego, length = start(world, 1), num_frames(num_chunks * len_t, first=True)
    if controls is None:
        _, given = driver.keep_lane(world, ego, length)
    else:
        given = jnp.asarray(controls[None, :length])
    _, states = jax.jit(vehicle.drive)(ego, given)
    states = jax.tree.map(lambda leaf: leaf[0], states)
    return DrawnMaps(world, states, cameras, size, len_t)


def recorded(
    paths: Sequence[str | pathlib.Path],
    *,
    size: tuple[int, int],
    fps: int,
    len_t: int,
    num_chunks: int,
    resample: bool = False,
) -> RecordedMaps:
    """The maps of video files, one per view.

    Args:
        paths: Videos.
        size: Height and width that they must have.
        fps: Frames per second that they must have.
        len_t: Latent frames of a chunk.
        num_chunks: How many are wanted; no more is read.
        resample: Bring other sizes and rates to what is wanted: bilinear, and the
            frame that is shown at each time.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is no video, of another size or rate, or too short for one
            chunk.
    """
    wanted = num_frames(num_chunks * len_t, first=True)
    videos = [_video(path, size, fps, wanted, resample) for path in paths]
    lengths = [len(video) for video in videos]
    first = num_frames(len_t, first=True)
    shortest = int(np.argmin(lengths))
    if lengths[shortest] < first:
        raise ValueError(
            f"hdmap {paths[shortest]} covers 0 chunks: the first one needs {first} "
            f"frames, it has {lengths[shortest]}."
        )
    video = np.stack([video[: min(lengths)] for video in videos])
    maps = RecordedMaps(video, len_t)
    if maps.num_chunks < num_chunks:
        _log.warning(
            "hdmap %s has %d frames, which cover %d of %d chunks: the run ends there.",
            paths[shortest],
            lengths[shortest],
            maps.num_chunks,
            num_chunks,
        )
    return maps


def _video(
    path: str | pathlib.Path,
    size: tuple[int, int],
    fps: int,
    num_wanted: int,
    resample: bool,
) -> np.ndarray:
    """At most `num_wanted` frames at the size and rate wanted.  uint8[T, H, W, 3]."""
    rate = media.read_frame_rate(path)
    same_rate = abs(rate / fps - 1) < _SAME_RATE
    if not same_rate and not resample:
        raise ValueError(
            f"hdmap {path} must have {fps} frames a second, it has {rate:g}; set fps "
            "to that, or resample_hdmap to repeat or drop frames."
        )
    step = 1.0 if same_rate else rate / fps
    frames = media.read_video(path, max_frames=math.ceil(num_wanted * step))
    found = frames.shape[1:3]
    if found != size and not resample:
        raise ValueError(
            f"hdmap {path} must be {size[0]} x {size[1]} pixels (height x width), it "
            f"is {found[0]} x {found[1]}; set pixel_height and pixel_width to that, or "
            "resample_hdmap to resize it."
        )
    if not same_rate:
        # The frame that is shown at each time; round-off must not take the one before.
        shown = np.floor(np.arange(round(len(frames) / step)) * step + 1e-6)
        frames = frames[np.minimum(shown.astype(int), len(frames) - 1)]
    return media.resize(frames[:num_wanted], *size)


def first_frames(
    paths: Sequence[str | pathlib.Path], size: tuple[int, int], fit: Fit | None
) -> np.ndarray:
    """First frames of the views, float32[1, V, H, W, 3] in [-1, 1].

    Args:
        paths: Images or videos, one per view.
        size: Height and width of the run.
        fit: What is done with pictures of other proportions; None: they are refused.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is no picture, or of other proportions than the run.
    """
    if fit is None:
        for path in paths:
            _check_proportions(path, size)
    pictures = [read_start_pixels(path, size, fit=fit or "stretch") for path in paths]
    return np.stack([_in_range(picture) for picture in pictures])[None]


def _check_proportions(path: str | pathlib.Path, size: tuple[int, int]) -> None:
    height, width = media.read_first_frame(path).shape[:2]
    if abs(math.log((size[0] * width) / (size[1] * height))) > _STRETCH:
        raise ValueError(
            f"The first frame {path} must have the proportions of {size[0]} x "
            f"{size[1]} pixels (height x width) as the HD map, it is {height} x "
            f"{width}; set fit to crop, pad or stretch."
        )


def stand_in(hdmap: np.ndarray) -> np.ndarray:
    """A first frame for whoever has none: the map over a grey road and a pale sky.

    Args:
        hdmap: In [-1, 1].  float32[..., H, W, 3].

    Returns:
        In [-1, 1].  float32[..., H, W, 3].
    """
    height = hdmap.shape[-3]
    row = (np.arange(height) + 0.5)[:, None, None] / height
    sky = np.array([-0.1, 0.15, 0.4]) + 0.9 * row
    road = np.array([-0.45, -0.45, -0.42]) - 0.15 * row
    # The front camera looks down by 4 degrees: its horizon is above the middle.
    place = np.where(row < 0.45, sky, road)
    is_empty = (hdmap <= -1).all(-1, keepdims=True)
    mixed = 0.4 * hdmap + 0.6 * place
    return np.where(is_empty, place, mixed).astype(np.float32)
