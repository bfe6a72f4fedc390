"""Runs a method from files to files: prompt and controls in, video and reports out.

`Runner.run` checks every input first, then loads weights, then streams: the device
makes a chunk while the host encodes the one before. A method overrides `read_inputs`,
and `encode_conditions` if its conditions are special.
"""

import dataclasses
import functools
import logging
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from fdjax import config as config_lib
from fdjax.axes import Params, PyTree
from fdjax.checkpoint import address, files
from fdjax.config import Component, InstantiateConfig, Seed
from fdjax.contract.conditioner import Conditions
from fdjax.engine.pipeline import StreamInferencePipeline, StreamInferencePipelineConfig
from fdjax.run import conditions_store, media, plugins, stats
from fdjax.run.outputs import Arrangement, OutputWriter
from fdjax.run.report import RunReport
from fdjax.run.writer import ChunkWriter, NullWriter

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnerInputs:
    """What a rollout starts from, read and checked.

    Attributes:
        text: One prompt, or None.
        image: First frame in [-1, 1], float[1, H, W, 3], or None.
        controls: One input per chunk for the pipeline's encoder, or None. The rollout
            ends where they end.
        extra: Whatever else the method's `encode_conditions` needs.
    """

    text: tuple[str, ...] | None = None
    image: ArrayLike | None = None
    controls: Sequence[PyTree] | None = None
    extra: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnerResult:
    """What a run made.

    Attributes:
        output: The video, or `.npy` of latents without a decoder; the first of
            `outputs`.
        outputs: One file per session and view, or one for all: `arrangement`.
        num_frames: Frames in it.
        stats: One entry per chunk, as in the stats file.
    """

    output: pathlib.Path
    outputs: tuple[pathlib.Path, ...]
    num_frames: int
    stats: list[dict[str, Any]]


class Runner(Component):
    """Makes one video and its reports."""

    config: "RunnerConfig"

    @functools.cached_property
    def pipeline(self) -> StreamInferencePipeline:
        """The pipeline that the config describes."""
        return self.config.pipeline.setup()

    # What methods override

    def read_inputs(self) -> RunnerInputs:
        """Reads and checks what the config names; runs before any weight is read.

        Raises:
            ValueError, FileNotFoundError: An input is wrong or missing.
        """
        return RunnerInputs(text=self.read_text())

    def encode_conditions(self, params: Params, inputs: RunnerInputs) -> Conditions:
        """What the rollout is conditioned on.

        Args:
            params: Weights of the conditioner's parts, loaded when they are used.
            inputs: From `read_inputs`.
        """
        conditioner = self.pipeline.conditioner
        keep = self.config.conditions_cache and not self.config.random_weights
        if conditioner is None or not keep:
            return self.pipeline.encode_conditions(
                params, text=inputs.text, image=inputs.image
            )
        return conditions_store.cached(conditioner).encode(
            params, text=inputs.text, image=inputs.image
        )

    # Helpers for methods

    def read_text(self) -> tuple[str, ...] | None:
        """The prompt, from the text or the file that the config gives.

        Raises:
            ValueError: It is empty, or this pipeline takes no prompt.
            FileNotFoundError: The prompt file is missing.
        """
        conditioner = self.pipeline.conditioner
        if conditioner is not None and conditioner.takes_text:
            return (files.read_prompt(self.config.prompt),)
        if str(self.config.prompt):
            raise ValueError(
                f"{self.config.runner_name} takes no prompt: its pipeline has no text "
                f"encoder; got prompt {str(self.config.prompt)!r}."
            )
        return None

    def read_image(
        self, path: str | pathlib.Path, method: str = "bilinear"
    ) -> np.ndarray:
        """An image or a video's first frame at the size of the run, in [-1, 1].

        Args:
            path: A file or an http(s) URL.
            method: See `fdjax.run.media.resize`.

        Returns:
            float32[1, H, W, 3].
        """
        image = media.read_first_frame(path)
        size = self.config.pixel_height, self.config.pixel_width
        if image.shape[:2] != size:
            _log.info(
                "%s is %d x %d, resized to %d x %d.", path, *image.shape[:2], *size
            )
        return media.from_uint8(media.resize(image, *size, method))[None]

    # The run

    def run(self) -> RunnerResult:
        """Checks, loads, streams, writes.

        Files in `output_dir`, each of which appears whole or not at all: the video
        `<name>.mp4` (of several views or sessions `<name>.<view>.session<n>.mp4`; an
        array that is no video `<name>.<key>.npy`), a contact sheet `<name>.png`,
        `stats_<name>.json`, and `<name>.config.json`, from which the run can be
        repeated. With random weights the name says so.

        Raises:
            ValueError, FileNotFoundError, PermissionError: Before anything expensive.
            KeyboardInterrupt: After the files of an interrupted run were written.
        """
        inputs = self.prepare()
        conditioner = self.pipeline.conditioner
        one_shot = [] if conditioner is None else list(conditioner.parts)
        weights = conditions_store.WeightsOnDemand(self._weights, one_shot)
        conditions = self.encode_conditions(weights, inputs)
        del weights  # text encoders are large: freed before the rest is loaded
        streaming = [name for name in self.pipeline.components if name not in one_shot]
        # A size or a condition that does not fit shows in the shapes alone.
        parts = self.pipeline.components
        shapes = {name: parts[name].param_shapes() for name in streaming}
        initialize = functools.partial(self._initialize_cache, conditions=conditions)
        jax.eval_shape(initialize, shapes)
        params = self._weights(streaming)
        cache = initialize(params)
        report = RunReport(self.config, self.num_chunks(inputs))
        writer = self._writer(report)
        interrupted = False
        try:
            with report, writer:
                self._stream(params, cache, inputs, writer, report)
        except KeyboardInterrupt:
            interrupted = True
        if jax.process_index() == 0 and report.num_frames:
            report.write()
        if interrupted:
            raise KeyboardInterrupt(report.outcome())
        _log.info("%s", report.outcome())
        return RunnerResult(
            output=writer.paths[0] if writer.paths else report.paths.output,
            outputs=tuple(writer.paths),
            num_frames=report.num_frames,
            stats=report.chunks(),
        )

    def prepare(self) -> RunnerInputs:
        """Everything that can be checked before a weight is read; returns the inputs.

        Raises:
            ValueError, FileNotFoundError, PermissionError: With what to do about it.
        """
        config = self.config
        config_lib.check_config(config)
        _ = self.pipeline.components
        self.pipeline.latent_size(config.pixel_height, config.pixel_width)
        inputs = self.read_inputs()
        if self.num_chunks(inputs) < 1:
            raise ValueError("The controls must span at least one chunk, got none.")
        files.check_output_dir(config.output_dir)
        config_lib.to_json(config, classes=plugins.known_classes())
        if self.pipeline.decoder is not None:
            media.check_video_encoder()
        if config.random_weights:
            _log.warning(
                "RANDOM WEIGHTS: %s runs untrained; its output means nothing.",
                config.runner_name,
            )
        else:
            self._check_checkpoints()
        return inputs

    def num_chunks(self, inputs: RunnerInputs) -> int:
        """Chunks that a run makes: `total_blocks`, or fewer if the controls end."""
        if inputs.controls is None:
            return self.config.total_blocks
        return min(self.config.total_blocks, len(inputs.controls))

    def _initialize_cache(self, params: Params, *, conditions: Conditions) -> PyTree:
        seed = self.config.seed
        return self.pipeline.initialize_cache(
            params,
            conditions=conditions,
            pixel_height=self.config.pixel_height,
            pixel_width=self.config.pixel_width,
            key=None if seed is None else jax.random.key(seed),
        )

    def _check_checkpoints(self) -> None:
        """Finds missing files before the first one is read."""
        for part in self.pipeline.components.values():
            source = part.checkpoint_path
            path = None if source is None else address.local_path(source)
            if path is not None and not path.exists():
                raise FileNotFoundError(
                    f"There is no checkpoint at {source} "
                    f"({type(part.params_owner.config).__name__}.checkpoint_path)."
                )

    def _weights(self, only: Sequence[str]) -> Params:
        if not self.config.random_weights:
            return self.pipeline.load_params(only=only)
        return self.pipeline.init_params(jax.random.key(0), only=only)

    def _writer(self, report: RunReport) -> "NullWriter | OutputWriter":
        if jax.process_index() != 0:
            return NullWriter()
        return OutputWriter(
            report.paths.output,
            arrangement=self.config.arrangement,
            decoded=self.pipeline.decoder is not None,
            fps=self.config.fps,
            metadata=report.metadata(),
            on_chunk=report.arrived,
        )

    def _stream(
        self,
        params: Params,
        cache: PyTree,
        inputs: RunnerInputs,
        writer: ChunkWriter,
        report: RunReport,
    ) -> None:
        """The autoregressive loop. Nothing in it waits for the device unless asked.

        A chunk is handed over before its commit is begun: whoever watches waits for
        the video alone, and the commit runs while the next input is awaited.
        """
        profiler = stats.Profiler() if self.config.profile else None
        for index in range(report.num_chunks):
            control = inputs.controls[index] if inputs.controls is not None else None
            if profiler is not None:
                profiler.start()
            cache, output = self.pipeline.generate(
                params, cache, control, donate=True, profiler=profiler
            )
            writer.write(output)
            if profiler is not None:
                profiler.skip()
            cache = self.pipeline.finalize(
                params, cache, donate=True, profiler=profiler
            )
            # Not before the commit was begun: the device works while the host waits.
            writer.wait()
            if profiler is not None:
                report.stages.append(profiler.stats())


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunnerConfig(InstantiateConfig[Runner]):
    """Config of `Runner`: a method, and how to run it from files to files.

    A subclass that validates more calls `super().__post_init__()`.
    """

    _target: type = Runner

    runner_name: str
    """Slug of the method, and name of its output files."""

    description: str = ""
    """One line for the list of methods."""

    pipeline: StreamInferencePipelineConfig
    """The pipeline that runs."""

    prompt: str | pathlib.Path = ""
    """Text, or path of a .txt file whose first line that is not empty is the prompt."""

    output_dir: str | pathlib.Path = "outputs"
    """Directory for the video and its reports; made if it is missing."""

    total_blocks: int = 20
    """Chunks to make, at least 1."""

    fps: int = 16
    """Frames per second of the video file."""

    pixel_height: int = 480
    """Rows of the video."""

    pixel_width: int = 832
    """Columns of the video."""

    seed: Seed | None = None
    """Seed of the noise; None: that of the diffusion model, or 0."""

    random_weights: bool = False
    """Run with random weights and without checkpoints: for tests and timings only."""

    profile: bool = False
    """Measure every stage; waits for the device after each, which costs speed."""

    arrangement: Arrangement = "separate"
    """Several sessions or views of video: "separate" files, or "tiled" in one."""

    progress: bool | None = None
    """Show a progress bar; None: if standard error is a terminal."""

    conditions_cache: bool = True
    """Keep encoded prompts and images in FDJAX_CACHE_DIR (~/.cache/fdjax), so that
    large encoders load only once."""

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.runner_name):
            raise ValueError(
                "runner_name must be letters, digits, '.', '_' and '-', as it names "
                f"files and is typed in a shell; got {self.runner_name!r}."
            )
        for name in ("total_blocks", "fps", "pixel_height", "pixel_width"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
