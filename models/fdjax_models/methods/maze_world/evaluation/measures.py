"""Simple measures of frames, in plain numpy."""

import itertools

import numpy as np

from fdjax_models.methods.maze_world import rendering

_MAX_SHIFT = 26
_FOCAL = rendering.WIDTH / 2 / rendering.HALF_WIDTH_TANGENT
"""Pixels per radian at the centre of the image."""


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the PSNR in dB of each pair of frames in [-1, 1].  [..., H, W, 3]."""
    error = np.square(a.astype(np.float64) - b).mean((-3, -2, -1))
    return 10 * np.log10(4.0 / np.maximum(error, 1e-10))


def yaw_rates(video: np.ndarray) -> np.ndarray:
    """Returns how far the camera turned left before each frame, from the image alone.

    The image is first drawn on a cylinder, where turning is a shift; the shift is the
    one under which the columns of two neighbouring frames differ least, to a fraction
    of a pixel.

    Args:
        video: float[T, H, W, 3].

    Returns:
        Radians.  float64[T - 1].
    """
    height, width = video.shape[1:3]
    half = np.arctan(rendering.HALF_WIDTH_TANGENT)
    tangents = np.tan(np.linspace(-half, half, width))
    columns = (tangents / rendering.HALF_WIDTH_TANGENT + 1) / 2 * (width - 1)
    low = np.clip(np.floor(columns).astype(int), 0, width - 2)
    part = (columns - low)[:, None]
    # Rows far from the horizon move with every step forward.
    band = video[:, height // 4 : -height // 4].astype(np.float64)
    flat = band[:, :, low] * (1 - part) + band[:, :, low + 1] * part
    step = 2 * half / (width - 1)
    return np.array([_shift(a, b) * step for a, b in itertools.pairwise(flat)])


def _shift(before: np.ndarray, after: np.ndarray) -> float:
    """Columns by which the content has moved to the right."""
    width = before.shape[1]
    shifts = np.arange(-_MAX_SHIFT, _MAX_SHIFT + 1)
    costs = np.array(
        [
            np.abs(
                after[:, max(s, 0) : width + min(s, 0)]
                - before[:, max(-s, 0) : width + min(-s, 0)]
            ).mean()
            for s in shifts
        ]
    )
    best = int(costs.argmin())
    if 0 < best < len(costs) - 1:
        left, here, right = costs[best - 1 : best + 2]
        curvature = left - 2 * here + right
        if curvature > 0:
            return float(shifts[best] + 0.5 * (left - right) / curvature)
    return float(shifts[best])


def statistics(video: np.ndarray) -> dict[str, float]:
    """Returns mean, contrast and sharpness of frames in [-1, 1].

    The mean is of the brightness in [0, 1], contrast the mean standard deviation within
    a frame, sharpness the mean difference between neighbouring pixels.
    """
    video = (video.astype(np.float64) + 1) / 2
    across = np.abs(np.diff(video, axis=-2)).mean()
    down = np.abs(np.diff(video, axis=-3)).mean()
    return {
        "mean": float(video.mean()),
        "contrast": float(video.std((-3, -2)).mean()),
        "sharpness": float((across + down) / 2),
    }
