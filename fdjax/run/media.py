"""Images and videos: read, resized, written.

Pixels are uint8 RGB in [0, 255], `[H, W, 3]` or `[T, H, W, 3]`; models see floating
point in [-1, 1].
"""

import logging
import pathlib
import re
import subprocess
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.checkpoint import fetch, files

_IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
_PPM_HEADER = re.compile(rb"P6\s(\d+)\s(\d+)\s255\s")
_log = logging.getLogger(__name__)


def read_image(path: str | pathlib.Path) -> np.ndarray:
    """An image file as uint8[H, W, 3].

    Transparent pixels are laid over white, with a warning in the log. The orientation
    in EXIF data is applied.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an image, or it is damaged.
    """
    from PIL import Image, ImageOps

    path = fetch.fetch_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                file.load()
                image = ImageOps.exif_transpose(file)
    except (
        OSError,
        SyntaxError,
        ValueError,
        Warning,
        Image.DecompressionBombError,
    ) as e:
        raise ValueError(
            f"image file {path} cannot be read: {e}. It must be a complete image "
            f"({', '.join(suffix[1:] for suffix in _IMAGE_SUFFIXES)})."
        ) from None
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            _log.warning("%s is partly transparent; it is laid over white.", path)
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def read_video(path: str | pathlib.Path, max_frames: int | None = None) -> np.ndarray:
    """The frames of a video file, uint8[T, H, W, 3].

    Args:
        path: Any format that ffmpeg reads.
        max_frames: Stop after so many.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no frames that can be read.
    """
    path = fetch.fetch_file(path)
    command = [
        *(ffmpeg_executable(), "-loglevel", "error", "-i", str(path)),
        *(() if max_frames is None else ("-frames:v", str(max_frames))),
        *("-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-"),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    frames = _split_ppm(done.stdout)
    if done.returncode or not frames:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(
            f"video file {path} cannot be read: {reason or 'it has no frames'}."
        )
    return np.stack(frames)


def _split_ppm(data: bytes) -> list[np.ndarray]:
    """The images of a stream of binary PPM, each `P6 width height 255` and pixels."""
    frames, start = [], 0
    while match := _PPM_HEADER.match(data, start):
        width, height = map(int, match.groups())
        size = width * height * 3
        pixels = np.frombuffer(data, np.uint8, size, match.end())
        frames.append(pixels.reshape(height, width, 3))
        start = match.end() + size
    return frames


def ffmpeg_executable() -> str:
    """Path of the ffmpeg that imageio-ffmpeg ships.

    Raises:
        RuntimeError: There is none for this platform.
    """
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise RuntimeError(
            f"No ffmpeg to read and write videos with ({error}); install one and point "
            "the environment variable IMAGEIO_FFMPEG_EXE to it."
        ) from None


def read_first_frame(path: str | pathlib.Path) -> np.ndarray:
    """An image, or the first frame of a video, uint8[H, W, 3].

    A file that has no image suffix is a video, as in NVIDIA/flashdreams.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
    """
    if pathlib.Path(path).suffix.lower() in _IMAGE_SUFFIXES:
        return read_image(path)
    return read_video(path, max_frames=1)[0]


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
    from PIL import Image

    with files.atomic_output(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


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
