"""Follows a run on the host: progress, stats, and the files beside the video."""

import dataclasses
import logging
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np

from fdjax import config as config_lib
from fdjax.checkpoint import files
from fdjax.run import media, plugins, replay, sheet, signals, stats
from fdjax.run.inputs import RunnerInputs

_log = logging.getLogger(__name__)


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

    def picture(self, what: str) -> pathlib.Path:
        """A picture of the method's own."""
        return self.folder / f"{self.name}.{what}.png"

    @property
    def stats(self) -> pathlib.Path:
        """One JSON object per chunk."""
        return self.folder / f"stats_{self.name}.json"

    @property
    def config(self) -> pathlib.Path:
        """The config that repeats the run."""
        return self.folder / f"{self.name}.config.json"

    @property
    def replay(self) -> pathlib.Path:
        """What the run was made from, and hashes of what came out."""
        return self.folder / f"{self.name}.replay.json"

    @property
    def session(self) -> pathlib.Path:
        """The session, from which the run can be extended."""
        return self.folder / f"{self.name}.session"


class RunReport:
    """Follows a run: its progress bar, its stats, and the files beside the video.

    Attributes:
        num_chunks: How many the run is to make.
        first: Index of its first chunk in the session.
        num_frames: Frames that arrived on the host so far.
        stages: Stage times of each chunk, filled by a runner that profiles.
        nonfinite: The stage at fault, by chunk of the run, of chunks that are NaN or
            infinite.
        outputs: The videos and arrays that were written.
        has_session: Whether the session was written.
        hashes: Of the chunks that arrived; see `fdjax.run.replay`.
        weights: Hashes of the weights, if they are known.
        paths: Where the files go.

    Args:
        config: Of the run.
        num_chunks: How many it is to make.
        inputs: Of the run: its labels and pictures.
        name: Name of its files.
        first: Index of its first chunk in the session.
    """

    def __init__(
        self,
        config: Any,
        num_chunks: int,
        inputs: RunnerInputs,
        *,
        name: str,
        first: int = 0,
    ):
        self._config, self.first, self._label = config, first, inputs.label
        self._pictures = dict(inputs.pictures)
        self.num_chunks = num_chunks
        self.num_frames = 0
        self.stages: list[dict[str, float]] = []
        self.nonfinite: dict[int, str] = {}
        self.outputs: list[pathlib.Path] = []
        self.has_session = False
        self.hashes: list[str] = []
        self.weights: dict[str, str] | None = None
        self._has_sheet = False
        self.paths = OutputPaths(
            pathlib.Path(os.path.expanduser(config.output_dir)),
            name,
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
        self._say("Compiling for the first chunk, unless an earlier run kept it ...")
        self._bar = tqdm(total=self.num_chunks, unit="chunk", disable=not shown)
        self._since = time.perf_counter()
        return self

    def dispatched(self) -> None:
        """Notes that the first chunk was compiled and is on its way."""
        if self._bar.disable:
            seconds = time.perf_counter() - self._since
            self._say("... first chunk under way after %.1f s.", seconds)

    def _say(self, text: str, *values: Any) -> None:
        if self._config.progress is not False:
            _log.info(text, *values)

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
        self.hashes.append(replay.chunk_hash(chunk))
        if is_video:
            self._sampler.add(chunk)
        self._bar.set_postfix_str(f"{1e3 * frames / wall_ms:.1f} frames/s", False)
        self._bar.update()

    def chunks(self) -> list[dict[str, Any]]:
        """Stats of every chunk that arrived.

        `wall_ms` is the time since the chunk before arrived on the host (for the first
        one, since the loop began: compilation included). Stage times are there with
        `profile` only. A chunk that is NaN or infinite names the stage as `nonfinite`;
        one that ended the run is the last entry, with no frames.
        """
        chunks = []
        for index, arrival in enumerate(self._arrivals):
            stages = self.stages[index] if self.stages else {}
            chunks.append(self._chunk(index, stages | arrival))
        if self.nonfinite and not self._config.allow_nonfinite:
            chunks.append(
                self._chunk(min(self.nonfinite), {"frames": 0, "wall_ms": 0.0})
            )
        return chunks

    def _chunk(self, index: int, values: dict[str, Any]) -> dict[str, Any]:
        chunk = {"autoregressive_index": self.first + index, **values}
        if index in self.nonfinite:
            chunk["nonfinite"] = self.nonfinite[index]
        if self._config.random_weights:
            chunk["random_weights"] = True
        return chunk

    def _frame_label(self, number: int) -> str:
        """Number of a frame in the run's video, and what was held then."""
        rest = number
        for index, arrival in enumerate(self._arrivals):
            if rest < arrival["frames"] and self._label is not None:
                held = self._label(self.first + index, int(rest))
                return f"{number} {held}".rstrip()
            rest -= int(arrival["frames"])
        return str(number)

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
        if frames := self._sampler.numbered():
            labels = [self._frame_label(number) for number, _ in frames]
            pictures = [frame for _, frame in frames]
            media.write_png(self.paths.sheet, sheet.labelled(pictures, labels))
            self._has_sheet = True
        for what, picture in self._pictures.items():
            media.write_png(self.paths.picture(what), picture)
        stats.write_stats(self.paths.stats, self.chunks())
        classes = plugins.known_classes()
        text = config_lib.to_json(self._config, classes=classes)
        files.write_text(self.paths.config, text + "\n")
        made = replay.of_run(self._config, self.hashes, self.weights)
        made.write(self.paths.replay, classes)

    def written(self) -> list[pathlib.Path]:
        """All files of the run."""
        paths = self.paths
        beside = [paths.stats, paths.config, paths.replay]
        beside += [paths.sheet] if self._has_sheet else []
        beside += [paths.picture(what) for what in self._pictures]
        beside += [paths.session] if self.has_session else []
        return [*self.outputs, *beside]

    def nonfinite_text(self) -> str:
        """What is wrong with the first chunk that is not finite."""
        index = min(self.nonfinite)
        return (
            f"chunk {self.first + index} is NaN or infinite, and the first stage that "
            f"gave it is {self.nonfinite[index]!r}. Check weights and dtypes; "
            f"--allow_nonfinite goes on. {self.outcome()}"
        )

    def outcome(self) -> str:
        """One line: what was made, and which files it is."""
        files = [path.absolute() for path in self.written()]
        if not self.num_frames:
            return (
                f"Nothing was made, see {files[0]}."
                if self.nonfinite
                else ("Nothing was made.")
            )
        shown = ", ".join(map(str, files[: len(self.outputs)]))
        beside = ", ".join(path.name for path in files[len(self.outputs) :])
        bad = len(self.nonfinite) if self._config.allow_nonfinite else 0
        warning = f", {bad} chunks of them NaN or infinite" if bad else ""
        summary = stats.summary(self.chunks())
        return f"Wrote {shown}: {summary}{warning}; beside it {beside}."
