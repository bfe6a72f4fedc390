"""A picture of a camera's path: from above, its heading, and its height."""

from typing import Any

import numpy as np

_SIZE = 320  # of a panel, pixels
_MARGIN = 44
_INK, _PATH, _MARK = (40, 40, 40), (30, 90, 200), (210, 60, 40)
_GRID = (225, 225, 225)


def draw(poses: np.ndarray, fps: float) -> np.ndarray:
    """Three panels side by side: top view, heading and height over time.

    Args:
        poses: One per video frame.  float[F, 4, 4].
        fps: Frames per second.

    Returns:
        uint8[H, W, 3].
    """
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (3 * _SIZE, _SIZE), "white")
    ink = ImageDraw.Draw(picture)
    seconds = np.arange(len(poses)) / fps
    position, ahead = poses[:, :3, 3], poses[:, :3, 2]
    heading = np.rad2deg(np.unwrap(np.arctan2(ahead[:, 0], ahead[:, 2])))
    above = _Panel(ink, 0, "from above: x, z", position[:, [0, 2]], square=True)
    above.line(position[:, [0, 2]])
    for frame in np.linspace(0, len(poses) - 1, 12).astype(int):
        above.arrow(position[frame, [0, 2]], ahead[frame, [0, 2]])
    above.dot(position[0, [0, 2]])
    for number, (title, values) in enumerate(
        {
            "heading, degrees over seconds": heading,
            "height over seconds": -position[:, 1],
        }.items(),
        start=1,
    ):
        points = np.stack([seconds, values], axis=1)
        panel = _Panel(ink, number * _SIZE, title, points)
        panel.line(points)
        panel.dot(points[0])
    return np.asarray(picture)


class _Panel:
    """Axes, and lines in the unit of the data."""

    def __init__(
        self, ink: Any, left: int, title: str, points: np.ndarray, square: bool = False
    ):
        self._ink, self._left = ink, left
        low, high = points.min(0), points.max(0)
        middle, span = (low + high) / 2, np.maximum(high - low, 0.1)
        if square:
            span = np.full(2, span.max())
        self._low, self._span = middle - span / 2, span
        self._frame(title)

    def _frame(self, title: str) -> None:
        ink, inner = self._ink, _SIZE - 2 * _MARGIN
        for part in (0.0, 0.5, 1.0):
            x, y = self._left + _MARGIN + part * inner, _SIZE - _MARGIN - part * inner
            bottom, left = _SIZE - _MARGIN, self._left + _MARGIN
            ink.line([(x, _MARGIN), (x, bottom)], fill=_GRID)
            ink.line([(left, y), (left + inner, y)], fill=_GRID)
            value = self._low + part * self._span
            ink.text((x, bottom + 6), f"{value[0]:.3g}", fill=_INK, anchor="mt")
            ink.text((left - 4, y), f"{value[1]:.3g}", fill=_INK, anchor="rm")
        ink.text((self._left + _SIZE / 2, 14), title, fill=_INK, anchor="mt")

    def _at(self, point: np.ndarray) -> tuple[float, float]:
        x, y = (np.asarray(point) - self._low) / self._span
        inner = _SIZE - 2 * _MARGIN
        return self._left + _MARGIN + float(x) * inner, _SIZE - _MARGIN - float(
            y
        ) * inner

    def line(self, points: np.ndarray) -> None:
        kept = points[:: max(len(points) // 2000, 1)]
        self._ink.line([self._at(point) for point in kept], fill=_PATH, width=2)

    def arrow(self, point: np.ndarray, ahead: np.ndarray) -> None:
        tip = point + ahead / (np.linalg.norm(ahead) or 1) * self._span / 14
        self._ink.line([self._at(point), self._at(tip)], fill=_MARK, width=1)

    def dot(self, point: np.ndarray) -> None:
        x, y = self._at(point)
        self._ink.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_MARK)
