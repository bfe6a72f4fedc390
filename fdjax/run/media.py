"""Images and videos: read, resized, written.

Pixels are uint8 RGB in [0, 255], `[H, W, 3]` or `[T, H, W, 3]`; models see floating
point in [-1, 1].
"""

import itertools
import logging
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.checkpoint import fetch, files

_IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_log = logging.getLogger(__name__)


def read_image(path: str | pathlib.Path) -> np.ndarray:
    """An image file as uint8[H, W, 3]; of an animation the first frame.

    Transparent pixels are laid over white, with a warning in the log. The orientation
    in EXIF data is applied.

    Args:
        path: Any format that Pillow reads: the content decides, not the name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an image, or it is damaged.
    """
    path = fetch.fetch_file(path)
    image = _decode_image(path)
    if image is None:
        raise ValueError(
            f"image file {path} cannot be read: it is no image that Pillow knows "
            "(PNG, JPEG, WebP, TIFF, …)."
        )
    return image


def read_first_frame(path: str | pathlib.Path) -> np.ndarray:
    """An image, or the first frame of a video, uint8[H, W, 3].

    The content decides which of the two a file is, not its name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
    """
    image = _decode_image(fetch.fetch_file(path))
    return read_video(path, max_frames=1)[0] if image is None else image


def _decode_image(path: pathlib.Path) -> np.ndarray | None:
    """The image in a file, uint8[H, W, 3]; None if there is no image in it.

    Raises:
        ValueError: It is damaged, or too large to be meant.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), _open(path, "pillow") as file:
            if file is None:
                return None
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            deep = file.metadata(index=0)["mode"].startswith("I;16")
            image = file.read(index=0, mode=None if deep else "RGBA")
            # imageio's own rotation confuses the axes of gray images read as colour.
            orientation = file.metadata(index=0, exclude_applied=False).get(
                "Orientation"
            )
    except (OSError, SyntaxError, ValueError, Warning) as error:
        raise ValueError(
            f"image file {path} cannot be read: {error.__cause__ or error}. It must be "
            "a complete image."
        ) from None
    turns, mirrored = _ORIENTATIONS.get(orientation, (0, False))
    image = np.rot90(image, turns)
    image = image[:, ::-1] if mirrored else image
    if deep:
        return np.repeat((image >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    if image[..., 3].min() < 255:
        _log.warning("%s is partly transparent; it is laid over white.", path)
        white = Image.new("RGBA", (image.shape[1], image.shape[0]), "white")
        over = Image.fromarray(np.ascontiguousarray(image))
        image = np.asarray(Image.alpha_composite(white, over))
    return np.ascontiguousarray(image[..., :3])


@contextlib.contextmanager
def _open(path: pathlib.Path, plugin: str) -> Iterator[Any]:
    """A file, opened by a plugin of imageio; None if that knows no such format."""
    import imageio.v3 as iio
    from imageio.core.request import InitializationError

    # Not by its name, in which imageio looks for addresses, archives and formats.
    with path.open("rb") as file:
        is_mpeg = file.read(len(_MPEG_START)) == _MPEG_START
        file.seek(0)
        if is_mpeg and plugin == "pillow":
            yield None
            return
        try:
            opened = iio.imopen(file, "r", plugin=plugin)
        except OSError as error:
            if not isinstance(error.__cause__, InitializationError):
                raise
            opened = None
        with opened or contextlib.nullcontext():
            yield opened


def read_video(path: str | pathlib.Path, max_frames: int | None = None) -> np.ndarray:
    """The frames of a video file, uint8[T, H, W, 3].

    Args:
        path: Any format that ffmpeg reads: the content decides, not the name.
        max_frames: Stop after so many.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no frames that can be read.
    """
    import av

    path = fetch.fetch_file(path)
    # PyAV's own conversion to RGB halves the resolution of chroma with less care.
    to_rgb = [("scale", "flags=bicubic"), ("format", "pix_fmts=rgb24")]
    frames = []
    try:
        with _open(path, "pyav") as file:
            if file is not None:
                stream = file.iter(filter_sequence=to_rgb, thread_type="FRAME")
                frames = list(itertools.islice(stream, max_frames))
    except (OSError, ValueError, av.FFmpegError) as error:
        raise ValueError(
            f"video file {path} cannot be read: {error.__cause__ or error}."
        ) from None
    if not frames:
        raise ValueError(
            f"video file {path} cannot be read: ffmpeg finds no frames in it."
        )
    return np.stack(frames)


def check_video_encoder() -> None:
    """Checks that videos can be written.

    Raises:
        RuntimeError: PyAV has no H.264 encoder.
    """
    import av

    if "libx264" not in av.codecs_available:
        raise RuntimeError(
            "PyAV has no encoder libx264 to write videos with; install its wheel: "
            "pip install --force-reinstall av"
        )


def resize(
    image: np.ndarray, height: int, width: int, method: str = "bilinear"
) -> np.ndarray:
    """Images of another size: exact, no crop, no antialiasing.

    What OpenCV's `resize` does with INTER_LINEAR and INTER_CUBIC (Keys' kernel with
    a = -0.75): the published models were fed by it. Pixel centres are at half integers
    and the border is repeated. OpenCV's fixed-point arithmetic may differ by one level.

    Args:
        image: uint8[..., H, W, C].
        height: New number of rows.
        width: New number of columns.
        method: "bilinear" or "bicubic".

    Returns:
        uint8[..., height, width, C].
    """
    if method not in _KERNELS:
        raise ValueError(f"method must be one of {sorted(_KERNELS)}, got {method!r}.")
    if image.shape[-3:-1] == (height, width):
        return image
    out = image.astype(np.float32)
    for axis, size in ((-3, height), (-2, width)):
        index, weight = _taps(out.shape[axis], size, method)
        shape = (len(weight[0]),) + (1,) * (-1 - axis)
        out = sum(
            np.take(out, index[tap], axis) * weight[tap].reshape(shape)
            for tap in range(len(index))
        )
    # OpenCV rounds halves up in its fixed-point kernel, to even in the other one.
    out = np.floor(out + 0.5) if method == "bilinear" else np.rint(out)
    return np.clip(out, 0, 255).astype(np.uint8)


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distance, 0)


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


_KERNELS = {"bilinear": (_linear, 1), "bicubic": (_cubic, 2)}


def _taps(size: int, new_size: int, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Source index and weight of every tap of every output pixel.  [taps, new_size]."""
    kernel, radius = _KERNELS[method]
    centre = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    offset = np.arange(1 - radius, radius + 1)[:, None]
    index = np.floor(centre).astype(int) + offset
    weight = kernel(np.abs(index - centre))
    return np.clip(index, 0, size - 1), weight.astype(np.float32)


def from_uint8(pixels: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Pixels in [-1, 1], computed in `dtype`: published models were fed bfloat16."""
    return pixels.astype(dtype) / np.asarray(127.5, dtype) - np.asarray(1, dtype)


@jax.jit
def to_uint8(video: jax.Array) -> jax.Array:
    """Video in [-1, 1] as uint8, rounded to the nearest; runs where the video is."""
    levels = jnp.round((video.astype(jnp.float32) + 1) * 127.5)
    return jnp.clip(levels, 0, 255).astype(jnp.uint8)


def contact_sheet(frames: Sequence[np.ndarray], columns: int = 4) -> np.ndarray:
    """Frames side by side in reading order, uint8[H, W, 3]; gaps are black."""
    height, width, _ = frames[0].shape
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    sheet = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = frame
    return sheet


def write_png(path: pathlib.Path, image: np.ndarray) -> None:
    """Writes uint8[H, W, 3] as a PNG that appears whole or not at all."""
    import imageio.v3 as iio

    with files.atomic_output(path) as temporary:
        iio.imwrite(temporary, image, plugin="pillow", extension=".png")


class FrameSampler:
    """Keeps some frames of a stream of unknown length, evenly spaced.

    Attributes:
        count: How many frames `frames` gives at most.
    """

    def __init__(self, count: int = 12):
        self.count = count
        self._kept: list[np.ndarray] = []
        self._stride = 1
        self._seen = 0

    def add(self, frames: np.ndarray) -> None:
        """Takes the next frames, uint8[T, H, W, 3]."""
        for frame in frames:
            if self._seen % self._stride == 0:
                self._kept.append(frame.copy())
                if len(self._kept) >= 4 * self.count:
                    self._kept = self._kept[::2]
                    self._stride *= 2
            self._seen += 1

    def frames(self) -> list[np.ndarray]:
        """At most `count` frames, the first one included."""
        count = min(self.count, len(self._kept))
        order = np.linspace(0, len(self._kept) - 1, count).round().astype(int)
        return [self._kept[index] for index in order]
