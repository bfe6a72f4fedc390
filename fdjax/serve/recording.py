"""What a player records, as an mp4 in memory."""

import pathlib
import tempfile

import numpy as np

from fdjax.run.writer import VideoWriter

_MOST_SECONDS = 20 * 60


class Recording:
    """Frames of a session while they are made, encoded on a thread of their own.

    The file is the server's own, in a folder for temporary files, and is removed.
    """

    def __init__(self, name: str, fps: float) -> None:
        """Begins without a frame."""
        self._folder = tempfile.TemporaryDirectory(prefix="fdjax-serve-")
        self._path = pathlib.Path(self._folder.name) / "recording.mp4"
        self._writer = VideoWriter(self._path, fps=fps, metadata={"title": name})
        self._left = int(_MOST_SECONDS * fps)
        self._is_empty = True

    def add(self, video: np.ndarray) -> bool:
        """Takes the next frames, uint8[T, H, W, 3]; whether there is room for more."""
        self._writer.write(video)
        self._writer.wait()
        self._left -= len(video)
        self._is_empty = False
        return self._left > 0

    def finish(self) -> bytes:
        """The mp4.

        Raises:
            ValueError: It has no frame.
        """
        if self._is_empty:
            self.abort()
            raise ValueError("Nothing was recorded: no frame came meanwhile.")
        try:
            self._writer.close()
            return self._path.read_bytes()
        finally:
            self._folder.cleanup()

    def abort(self) -> None:
        """Drops it."""
        self._writer.abort()
        self._folder.cleanup()
