"""Writes frames as an image."""

from pathlib import Path

import numpy as np


def write_png(path: Path, rows: list[np.ndarray]) -> None:
    """Writes rows of frames as one image.

    Args:
        path: A .png file.
        rows: Frames in [-1, 1], one row of the sheet each.  float[T, H, W, 3].
    """
    from PIL import Image

    # Rows of [T, H, W, 3] -> [H, T W, 3] each -> [rows H, T W, 3]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    pixels = np.clip((sheet.astype(np.float32) + 1) * 127.5, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
