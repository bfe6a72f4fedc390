"""Follows a run on the host: progress, stats, and the files beside the video."""

import dataclasses
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np

from fdjax import config as config_lib
from fdjax.checkpoint import files
from fdjax.run import media, plugins, signals, stats


@dataclasses.dataclass(frozen=True)
class OutputPaths:
    """Where the files of a run go."""

    folder: pathlib.Path
    name: str
    suffix: str

    @property
    def output(self) -> pathlib.Path:
        """The video, or the latents."""
        return self.folder / f"{self.name}{self.suffix}"

    @property
    def sheet(self) -> pathlib.Path:
        """The contact sheet."""
        return self.folder / f"{self.name}.png"

    @property
    def stats(self) -> pathlib.Path:
        """One JSON object per chunk."""
        return self.folder / f"stats_{self.name}.json"

    @property
    def config(self) -> pathlib.Path:
        """The config that repeats the run."""
        return self.folder / f"{self.name}.config.json"


class RunReport:
    """Follows a run: its progress bar, its stats, and the files beside the video.

    Attributes:
        num_chunks: How many the run is to make.
        num_frames: Frames that arrived on the host so far.
        stages: Stage times of each chunk, filled by a runner that profiles.
        paths: Where the files go.
    """

    def __init__(self, config: Any, num_chunks: int):
        self._config = config
        self.num_chunks = num_chunks
        self.num_frames = 0
        self.stages: list[dict[str, float]] = []
        self.paths = OutputPaths(
            pathlib.Path(os.path.expanduser(config.output_dir)),
            config.runner_name + ("-random-weights" if config.random_weights else ""),
            ".mp4" if config.pipeline.decoder is not None else ".npy",
        )
        self._arrivals: list[dict[str, float]] = []
        self._sampler = media.FrameSampler()
        self._bar: Any = None
        self._since = time.perf_counter()

    def __enter__(self) -> "RunReport":
        from tqdm import tqdm

        shown = self._config.progress
        if shown is None:
            shown = sys.stderr.isatty()
        self._bar = tqdm(total=self.num_chunks, unit="chunk", disable=not shown)
        self._since = time.perf_counter()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def arrived(self, chunk: np.ndarray) -> None:
        """Notes a chunk that is on the host; called on the writer's thread."""
        now = time.perf_counter()
        is_video = self._config.pipeline.decoder is not None
        frames = len(chunk) if is_video else chunk.shape[1]
        wall_ms = 1e3 * (now - self._since)
        self._arrivals.append(
            {"frames": frames, "wall_ms": wall_ms} | stats.memory_stats()
        )
        self._since = now
        self.num_frames += frames
        if is_video:
            self._sampler.add(chunk)
        self._bar.set_postfix_str(f"{1e3 * frames / wall_ms:.1f} frames/s", False)
        self._bar.update()

    def chunks(self) -> list[dict[str, Any]]:
        """Stats of every chunk that arrived.

        `wall_ms` is the time since the chunk before arrived on the host (for the first
        one, since the loop began: compilation included). Stage times are there with
        `profile` only.
        """
        chunks = []
        for index, arrival in enumerate(self._arrivals):
            stages = self.stages[index] if self.stages else {}
            chunk = {"autoregressive_index": index, **stages, **arrival}
            if self._config.random_weights:
                chunk["random_weights"] = True
            chunks.append(chunk)
        return chunks

    def metadata(self) -> dict[str, str]:
        """Tags of the video."""
        comment = f"fdjax config {config_lib.config_hash(self._config)}"
        if self._config.random_weights:
            comment = f"RANDOM WEIGHTS, untrained. {comment}"
        return {"title": self.paths.name, "comment": comment}

    def write(self) -> None:
        """Writes the contact sheet, the stats and the config.

        Raises:
            OSError: One of them cannot be written; says that the video is there.
        """
        with signals.held():
            try:
                self._write()
            except OSError as error:
                reason = error.strerror or str(error)
                message = f"{reason}; complete is {self.paths.output.absolute()}"
                raise OSError(error.errno, message) from error

    def _write(self) -> None:
        if frames := self._sampler.frames():
            media.write_png(self.paths.sheet, media.contact_sheet(frames))
        stats.write_stats(self.paths.stats, self.chunks())
        text = config_lib.to_json(self._config, classes=plugins.known_classes())
        files.write_text(self.paths.config, text + "\n")

    def outcome(self) -> str:
        """One line: what was made, and where it is."""
        if not self.num_frames:
            return "Nothing was made."
        summary = stats.summary(self.chunks())
        return f"Wrote {self.paths.output.absolute()}: {summary}."
