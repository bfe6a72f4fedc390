"""The picture that a run starts from, brought to the size of the video."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from fdjax.run import media

Fit = Literal["stretch", "crop", "pad", "keep"]
"""What is done with a picture of other proportions than the video's."""

_SEEN = 0.05  # of proportions or of the picture; rounding to patches changes less
_ROUND_OFF = 1e-9  # of a root, relative to a side
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartImage:
    """What the config of a run that starts from a picture has besides."""

    image: str | pathlib.Path = ""
    """The first frame: an image, a video or a URL."""

    fit: Fit = "stretch"
    """An image of other proportions: "stretch" changes them, "crop" cuts its middle
    out, "pad" puts black bars beside it, and "keep" gives the video the proportions of
    the image, with about as many pixels as pixel_height x pixel_width."""


def read_start_image(
    path: str | pathlib.Path,
    size: tuple[int, int],
    *,
    fit: Fit = "stretch",
    method: str = "bilinear",
    multiples: tuple[int, int] = (1, 1),
) -> np.ndarray:
    """An image or a video's first frame for a run, in [-1, 1].

    Args:
        path: A file or an http(s) URL.
        size: Height and width of the run.
        fit: What is done with other proportions; "keep" gives another size than `size`,
            of about as many pixels.
        method: See `fdjax.run.media.resize`.
        multiples: Of which the height and the width of "keep" must be.

    Returns:
        float32[1, H, W, 3].

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
    """
    pixels = read_start_pixels(path, size, fit=fit, method=method, multiples=multiples)
    # [H, W, 3] -> [1, H, W, 3]
    return media.from_uint8(pixels)[None]


def read_start_pixels(
    path: str | pathlib.Path,
    size: tuple[int, int],
    *,
    fit: Fit = "stretch",
    method: str = "bilinear",
    multiples: tuple[int, int] = (1, 1),
) -> np.ndarray:
    """As `read_start_image`, in bytes.  uint8[H, W, 3]."""
    image = media.read_first_frame(path)
    if fit == "keep":
        height, width, _ = image.shape
        size = size_of_area(math.prod(size), height / width, multiples)
    _tell(path, image.shape[:2], size, fit)
    return fit_image(image, size, fit, method)


def fit_image(
    image: np.ndarray,
    size: tuple[int, int],
    fit: Fit = "stretch",
    method: str = "bilinear",
) -> np.ndarray:
    """An image of another size: the whole of it, its middle, or with black bars.

    Args:
        image: uint8[H, W, 3].
        size: New height and width, pixels.
        fit: "keep" is as "stretch": whoever chose the size kept the proportions.
        method: See `fdjax.run.media.resize`.

    Returns:
        uint8[height, width, 3].
    """
    given = image.shape[:2]
    if fit == "crop":
        # Cut first: of a ribbon, the whole at the new scale would be gigabytes.
        rows, columns = _middle(given, _inside(size, given))
        return media.resize(image[rows, columns], *size, method)
    if fit == "pad":
        inner = _inside(given, size)
        rows, columns = _middle(size, inner)
        padded = np.zeros((*size, 3), np.uint8)
        padded[rows, columns] = media.resize(image, *inner, method)
        return padded
    return media.resize(image, *size, method)


def whole_size(
    given: Sequence[int], size: tuple[int, int], fit: Fit
) -> tuple[float, float]:
    """Height and width of the whole picture at the scale in which the video shows it.

    More than `size` where it is cut, less where it has bars: with these a camera's
    intrinsics follow the picture. Not rounded.

    Args:
        given: Height and width of the picture.
        size: Height and width of the video.
        fit: How the one became the other.
    """
    scales = size[0] / given[0], size[1] / given[1]
    if fit in ("stretch", "keep"):
        return size
    scale = max(scales) if fit == "crop" else min(scales)
    return given[0] * scale, given[1] * scale


def size_of_area(
    area: int, aspect: float, multiples: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of a picture of about this area and these proportions.

    As Wan-Video/Wan2.1, wan/image2video.py, has it: each side is rounded down to what
    the network's patches divide. There round-off takes 16 rows from a picture of
    480 x 832; here a picture of just this size keeps it.

    Args:
        area: Pixels.
        aspect: Height divided by width.
        multiples: Of which height and width must be.
    """
    sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
    height, width = (
        max(1, int(side / multiple + _ROUND_OFF)) * multiple
        for side, multiple in zip(sides, multiples, strict=True)
    )
    return height, width


def _inside(shape: Sequence[int], frame: Sequence[int]) -> tuple[int, int]:
    """The largest height and width in a frame with the proportions of a shape."""
    scale = min(frame[0] / shape[0], frame[1] / shape[1])
    height, width = (max(1, round(side * scale)) for side in shape)
    return min(height, frame[0]), min(width, frame[1])


def _middle(whole: Sequence[int], part: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of a part in the middle of a picture."""
    top, left = ((a - b) // 2 for a, b in zip(whole, part, strict=True))
    return slice(top, top + part[0]), slice(left, left + part[1])


def _tell(
    path: str | pathlib.Path, given: Sequence[int], size: tuple[int, int], fit: Fit
) -> None:
    """Says what becomes of a picture; as a warning where it is easily seen."""
    if tuple(given) == size:
        return
    stretch = (size[0] * given[1]) / (size[1] * given[0])
    change = abs(math.log(stretch))
    left_out = 1 - min(stretch, 1 / stretch)
    notes = {
        "stretch": f": its proportions change by {math.expm1(change):.0%}; --fit crop "
        "and --fit pad keep them",
        "crop": f", and {left_out:.0%} of it cut off",
        "pad": f", of which {left_out:.0%} are black bars",
        "keep": f": its proportions change by {math.expm1(change):.0%}, for whole "
        "patches of the network",
    }
    _log.log(
        logging.WARNING if change > _SEEN else logging.INFO,
        "%s is %d x %d, resized to %d x %d%s.",
        *(path, *given, *size),
        notes[fit] if change > _SEEN else "",
    )
