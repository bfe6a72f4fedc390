"""Frames as they travel: pixels once, encoded when they are sent."""

import io
import threading

import numpy as np

_QUALITY = {"jpeg": 92, "webp": 88}
_THUMBNAIL = 96  # pixels of the longer side


class Picture:
    """One picture, encoded at most once for each format.

    A frame that is dropped before it is sent is never encoded.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        """Keeps the pixels, uint8[H, W, 3]."""
        self.pixels = pixels
        self._encoded: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def encoded(self, image: str) -> bytes:
        """The bytes of a "jpeg" or "webp" file."""
        with self._lock:
            if image not in self._encoded:
                self._encoded[image] = encode(self.pixels, image)
            return self._encoded[image]

    def thumbnail(self) -> bytes:
        """A small JPEG."""
        stride = -(-max(self.pixels.shape[:2]) // _THUMBNAIL)
        return encode(self.pixels[::stride, ::stride], "jpeg")


def encode(pixels: np.ndarray, image: str) -> bytes:
    """A picture file.

    Args:
        pixels: uint8[H, W, 3].
        image: "jpeg" or "webp".
    """
    from PIL import Image

    file = io.BytesIO()
    # Without `method` WebP takes four times as long; JPEG's subsampling blurs edges.
    options = {"method": 0} if image == "webp" else {"subsampling": 0}
    Image.fromarray(pixels).save(
        file, image.upper(), quality=_QUALITY[image], **options
    )
    return file.getvalue()
