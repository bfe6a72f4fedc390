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

# JPEG includes MPO. No EPS, which Pillow reads by running Ghostscript; no MPEG, which
# is video.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Major brands of ISO 23008-12; AVIF has its own, and is read."""

_ORIENTATIONS = {
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}
"""EXIF orientation: quarter turns to the left, then mirrored from left to right."""

_log = logging.getLogger(__name__)


def read_image(path: str | pathlib.Path) -> np.ndarray:
    """An image file as uint8[H, W, 3]: of an animated one, the first picture.

    Of 16 bits a channel the upper 8 count. Transparent pixels are laid over white, with
    a warning in the log. The orientation in EXIF data is applied. Pillow's limit on the
    number of pixels holds, 178,956,970: a file of a few kilobytes can ask for all
    memory.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an image, or it is damaged.
    """
    import imageio.v3 as iio
    from PIL import Image

    path = fetch.fetch_file(path, what="image").absolute()
    if not _is_image(path):
        raise ValueError(
            f"image file {path} cannot be read: it is none of {', '.join(_FORMATS)}, "
            "or damaged."
        )
    try:
        with warnings.catch_warnings():
            # Said from half the limit on: cameras and scanners make such pictures.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with iio.imopen(path, "r", plugin="pillow") as file:
                deep = _is_deep(file.metadata(index=0)["mode"], path)
                # 16 bits are cut to 8 below: Pillow would clip them.
                mode = None if deep else "RGBA"
                reader: Any = file
                pixels = np.asarray(reader.read(index=0, mode=mode))
                # imageio's own rotation takes the wrong axis of gray ones read as RGBA.
                stored = file.metadata(index=0, exclude_applied=False)
    except MemoryError:
        raise ValueError(
            f"image file {path} needs more memory than there is; make it smaller."
        ) from None
    except (OSError, SyntaxError, ValueError) as e:
        raise ValueError(
            f"image file {path} cannot be read: {e}. It must be a complete image "
            f"({', '.join(_FORMATS)})."
        ) from None
    turns, mirrored = _ORIENTATIONS.get(stored.get("Orientation", 1), (0, False))
    # [H, W, channels], or [H, W] of 16 bits
    pixels = np.rot90(pixels, turns)
    pixels = pixels[:, ::-1] if mirrored else pixels
    if deep:
        # [H, W] -> uint8[H, W, 3]
        return np.repeat((pixels >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(colours)
    _log.warning("%s is partly transparent; it is laid over white.", path)
    for row, opacity in zip(pixels, alpha, strict=True):  # by rows, which need no room
        share = opacity / np.float32(255)
        row[:, :3] = np.rint(row[:, :3] * share + 255 * (1 - share))
    return np.ascontiguousarray(colours)


def _is_deep(mode: str, path: pathlib.Path) -> bool:
    """Whether Pillow's mode of an image is gray of 16 bits.

    Raises:
        ValueError: It has numbers of which nobody says what white is.
    """
    with path.open("rb") as file:
        is_pgm = file.read(1) == b"P"  # which is of 16 bits then
    if mode in ("I", "F") and not is_pgm:
        raise ValueError("it holds 32-bit numbers; save it with 8 or 16 bits")
    return mode.startswith("I")


def _is_image(path: pathlib.Path) -> bool:
    """Whether the beginning of a file is that of an image; its name does not matter.

    Raises:
        ValueError: It says that it has more pixels than are read, or it is of HEIF.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS):
                return True
    except UnidentifiedImageError:
        _refuse_heif(path)
        return False
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(
            f"image file {path} must have at most {limit:,} pixels, and says that it "
            "has more; make it smaller."
        ) from None


def _refuse_heif(path: pathlib.Path) -> None:
    """Says what to do with a telephone's picture, which Pillow does not read.

    Raises:
        ValueError: The file's first box, `ftyp` of ISO 14496-12, has a brand of HEIF.
    """
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF:
        raise ValueError(
            f"image file {path} is HEIC, which is not read; save it as JPEG or PNG "
            "(on a Mac: sips -s format jpeg FILE --out FILE.jpg)."
        )


def read_video(path: str | pathlib.Path, max_frames: int | None = None) -> np.ndarray:
    """The frames of a video file as they are shown, uint8[T, H, W, 3].

    A camera that was held upright stores frames that lie on their side, and a matrix
    that turns them; it is applied.

    Args:
        path: Any format that FFmpeg's libraries read.
        max_frames: Stop after so many.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no frames that can be read.
    """
    import av

    # Absolute: what stands before a colon would be taken for a protocol.
    path = fetch.fetch_file(path, what="video").absolute()
    frames: list[np.ndarray] = []
    matrix = None
    try:
        with av.open(str(path)) as file:
            for frame in itertools.islice(file.decode(video=0), max_frames):
                if not frames:
                    matrix = _display_matrix(frame)
                frames.append(frame.to_ndarray(format="rgb24"))
    except (OSError, ValueError, IndexError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it has no frames"
        raise ValueError(f"video file {path} cannot be read: {reason}.") from None
    if not frames:
        raise ValueError(f"video file {path} cannot be read: it has no frames.")
    try:
        # [T, H, W, 3]
        video = np.stack(frames)
    except ValueError:
        sizes = sorted({frame.shape[:2] for frame in frames})
        raise ValueError(
            f"video file {path} cannot be read: its frames have several sizes, {sizes}."
        ) from None
    return video if matrix is None else _shown(video, matrix)


def read_frame_rate(path: str | pathlib.Path) -> float:
    """Frames per second of a video file, as it says itself.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no video that can be read, or does not say.
    """
    import av

    path = fetch.fetch_file(path, what="video").absolute()
    try:
        with av.open(str(path)) as file:
            rate = file.streams.video[0].average_rate
    except (OSError, ValueError, IndexError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it has no frames"
        raise ValueError(f"video file {path} cannot be read: {reason}.") from None
    if not rate:
        raise ValueError(f"video file {path} does not say its frame rate.")
    return float(rate)


def _display_matrix(frame: Any) -> bytes | None:
    """How a frame is to be turned when it is shown; None: not at all."""
    try:
        return bytes(frame.side_data["DISPLAYMATRIX"])
    except KeyError:
        return None


def _shown(video: np.ndarray, matrix: bytes) -> np.ndarray:
    """Applies an ISO 14496-12 matrix [[a, b, .], [c, d, .], .] of quarter turns.

    Column x and row y of what is stored appear at (a x + c y, b x + d y).
    """
    # int32 of the machine, as FFmpeg's libraries give it.
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32)
    if abs(b) > abs(a):
        # [T, H, W, 3] -> [T, W, H, 3]
        video, a, d = video.swapaxes(1, 2), c, b
    video = video[:, ::-1] if d < 0 else video
    video = video[:, :, ::-1] if a < 0 else video
    return np.ascontiguousarray(video)


def check_video_encoder() -> None:
    """Checks that videos can be written.

    Raises:
        RuntimeError: PyAV was built without the encoder.
    """
    import av

    try:
        av.codec.Codec("libx264", "w")
    except ValueError:
        raise RuntimeError(
            "PyAV has no encoder libx264 to write videos with; install the wheel of "
            "the package av in place of your own build."
        ) from None


def read_first_frame(path: str | pathlib.Path) -> np.ndarray:
    """An image, or the first frame of a video, uint8[H, W, 3].

    The content decides which of the two a file is, and not its name: one without an
    ending, or a URL with a query, may be either.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
    """
    path = fetch.fetch_file(path, what="image").absolute()
    if _is_image(path):
        return read_image(path)
    try:
        return read_video(path, max_frames=1)[0]
    except ValueError as error:
        raise ValueError(
            f"{path} is neither a whole image nor a video: {error}"
        ) from None


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
        # [new size, 1, ...]: along its axis, alike for all that follows
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
    # R. Keys, "Cubic convolution interpolation for digital image processing",
    # 1981; a is OpenCV's.
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


_KERNELS = {"bilinear": (_linear, 1), "bicubic": (_cubic, 2)}


def _taps(size: int, new_size: int, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Source index and weight of every tap of every output pixel.  [taps, new_size]."""
    kernel, radius = _KERNELS[method]
    # Pixel centres are at half integers, of the source and of the result.
    centre = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
    offset = np.arange(1 - radius, radius + 1)[:, None]
    # [taps, new_size]
    index = np.floor(centre).astype(int) + offset
    weight = kernel(np.abs(index - centre))
    # What lies outside is the border's pixel.
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
        self._kept: list[tuple[int, np.ndarray]] = []
        self._stride = 1
        self._seen = 0

    def add(self, frames: np.ndarray) -> None:
        """Takes the next frames, uint8[T, H, W, 3]."""
        for frame in frames:
            if self._seen % self._stride == 0:
                # A copy, as a view would hold the whole chunk.
                self._kept.append((self._seen, frame.copy()))
                if len(self._kept) >= 4 * self.count:
                    # Every other one goes: memory is bounded, the spacing stays even.
                    self._kept = self._kept[::2]
                    self._stride *= 2
            self._seen += 1

    def frames(self) -> list[np.ndarray]:
        """At most `count` frames, the first one included."""
        return [frame for _, frame in self.numbered()]

    def numbered(self) -> list[tuple[int, np.ndarray]]:
        """As `frames`, each behind its number in the stream."""
        count = min(self.count, len(self._kept))
        order = np.linspace(0, len(self._kept) - 1, count).round().astype(int)
        return [self._kept[index] for index in order]
