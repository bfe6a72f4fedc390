"""The contact sheet: some frames of a run, each under its number."""

from collections.abc import Sequence

import numpy as np

from fdjax.run import media

_NARROWEST = 48  # pixels; below, a label has no room


def labelled(frames: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Frames side by side in reading order, each with a line of text above it.

    Args:
        frames: Of one size, uint8[H, W, 3]; those narrower than 48 pixels get no text.
        labels: One per frame.

    Returns:
        uint8[H', W', 3].
    """
    if frames[0].shape[1] >= _NARROWEST:
        frames = [
            np.concatenate([_line(label, frame.shape), frame])
            for frame, label in zip(frames, labels, strict=True)
        ]
    return media.contact_sheet(frames)


def _line(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """White text on black, as wide as a frame and as high as its size asks for."""
    from PIL import Image, ImageDraw, ImageFont

    height, width, _ = shape
    size = max(10, height // 20)
    strip = Image.new("RGB", (width, size + 4))
    ImageDraw.Draw(strip).text(
        (2, 1), text, fill="white", font=ImageFont.load_default(size)
    )
    return np.asarray(strip)
