"""A camera's way through a run: from files or a written path to inputs per chunk."""

import dataclasses
import pathlib

import numpy as np

from fdjax.checkpoint import fetch
from fdjax.run.start_image import Fit, whole_size
from fdjax_models.networks.camera import poses as camera_poses
from fdjax_models.networks.camera.encoder import CameraInput, camera_input

LENS = (500.0, 500.0, 416.0, 240.0)
"""Intrinsics of a path without any, for 480x832: about those of the examples of
Robbyant/lingbot-world-v2 (80 degrees across)."""

CAPTURED = (480, 832)
"""Height and width that intrinsics are for, unless said otherwise."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Where the camera is in each video frame.

    Attributes:
        poses: Camera-to-world; x right, y down, z forward.  float64[F, 4, 4].
        intrinsics: In pixels of the video.  float64[F, 4].
        world_scale: Length, in the poses' unit, that the network calls 1.
    """

    poses: np.ndarray
    intrinsics: np.ndarray
    world_scale: float

    def num_chunks(self, len_t: int) -> int:
        """Whole chunks of `len_t` latent frames that the poses cover."""
        latents = (len(self.poses) - 1) // 4 + 1
        return latents // len_t

    def chunk(self, index: int, len_t: int) -> CameraInput:
        """The input of one chunk, for one session."""
        first = camera_poses.frames_of(index * len_t) if index else 0
        frames = slice(first, camera_poses.frames_of((index + 1) * len_t))
        return camera_input(
            self.poses[frames], self.intrinsics[frames], self.world_scale
        )

    def extended(self, frames: int, repeat: bool) -> "Trajectory":
        """As many frames, and no fewer than there are.

        Args:
            frames: Of the video.
            repeat: Move on as from the beginning, from where the path ends; if not,
                the camera stays there.
        """
        missing = max(0, frames - len(self.poses))
        moves = np.tile(np.eye(4), (missing, 1, 1))
        if repeat and len(self.poses) > 1:
            laps, frame = np.divmod(np.arange(missing), len(self.poses) - 1)
            # From the first pose, where every lap begins: [T, 4, 4] -> [missing, 4, 4]
            path = np.linalg.inv(self.poses[0]) @ self.poses
            moves = path[1 + frame]
            for lap in range(1, 1 + int(laps.max(initial=0))):
                moves[laps == lap] = (
                    np.linalg.matrix_power(path[-1], lap) @ moves[laps == lap]
                )
        last = np.repeat(self.intrinsics[-1:], missing, axis=0)
        return dataclasses.replace(
            self,
            poses=np.concatenate([self.poses, self.poses[-1] @ moves]),
            intrinsics=np.concatenate([self.intrinsics, last]),
        )


def recorded(
    poses: str | pathlib.Path | np.ndarray,
    intrinsics: str | pathlib.Path,
    *,
    len_t: int,
    size: tuple[int, int],
    captured: tuple[int, int] = CAPTURED,
    fit: Fit = "stretch",
    opengl: bool = False,
    world_scale: float | None = None,
) -> Trajectory:
    """A trajectory from `.npy` files, prepared as LingBot-World's examples are.

    Args:
        poses: Camera-to-world poses, one per video frame, or their file.  [T, 4, 4].
        intrinsics: File of (fx, fy, cx, cy) in pixels, [T, 4] or [T, 3, 3]; "" for
            `LENS`.
        len_t: Latent frames of a chunk.
        size: Height and width of the video.
        captured: Height and width that the intrinsics are for.
        fit: How the picture was brought to the size of the video.
        opengl: The camera of the poses looks along -z with y up.
        world_scale: Length that the network calls 1; None: the longest step.

    Raises:
        ValueError: A file is no array, or not what it must be.
        FileNotFoundError: A file is missing.
    """
    name = "poses" if isinstance(poses, np.ndarray) else str(poses)
    given = camera_poses.check_poses(_load(poses), name)
    if opengl:
        given = camera_poses.from_opengl(given)
    lens = _lens(intrinsics, len(given), size, captured, fit)
    fitted = camera_poses.fit_to_chunks(given, len_t)
    scale = camera_poses.world_scale(fitted) if world_scale is None else world_scale
    return Trajectory(fitted, lens[: len(fitted)], scale)


def written(
    poses: np.ndarray,
    intrinsics: str | pathlib.Path,
    *,
    size: tuple[int, int],
    captured: tuple[int, int] = CAPTURED,
    fit: Fit = "stretch",
    world_scale: float | None = None,
) -> Trajectory:
    """A trajectory from poses that were made here; arguments as in `recorded`."""
    lens = _lens(intrinsics, len(poses), size, captured, fit)
    return Trajectory(poses, lens, 1.0 if world_scale is None else world_scale)


def _lens(
    path: str | pathlib.Path,
    num_poses: int,
    size: tuple[int, int],
    captured: tuple[int, int],
    fit: Fit,
) -> np.ndarray:
    """Intrinsics of each pose, for the video's size.  float64[T, 4]."""
    given = _load(path) if str(path) else np.array(LENS)
    name = str(path) or "intrinsics"
    lens = camera_poses.check_intrinsics(given, num_poses, name)
    height, width = captured if str(path) else CAPTURED
    if not str(path) and fit != "stretch":
        fit = "crop"  # no picture's own lens, but one of square pixels
    centre = lens[:, 2:]
    if (centre <= 0).any() or (centre >= [width, height]).any():
        raise ValueError(
            f"{name} must be for {height}x{width} pixels, whose middle it should be "
            f"near, got the centre {lens[0, 2:].tolist()}; set capture_height and "
            "capture_width to the size of the recording."
        )
    whole = whole_size((height, width), size, fit)
    return camera_poses.transform_intrinsics(lens, (height, width), whole, size)


def _load(path: str | pathlib.Path | np.ndarray) -> np.ndarray:
    if isinstance(path, np.ndarray):
        return path
    local = fetch.fetch(str(path)) if "://" in str(path) else pathlib.Path(path)
    local = pathlib.Path(local).expanduser()
    if not local.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        array = np.load(local, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} must be a .npy array: {error}.") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} must be one .npy array, not an .npz archive.")
    return array
