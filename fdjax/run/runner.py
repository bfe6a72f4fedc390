"""Runs a method from files to files: prompt and controls in, video and reports out.

`Runner.run` checks every input first, then loads weights, then streams: the device
makes a chunk while the host encodes the one before. A method overrides `read_inputs`,
and `encode_conditions` where that is special.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Sequence

import jax

from fdjax import config as config_lib
from fdjax.axes import Params, PyTree
from fdjax.checkpoint import files
from fdjax.config import InstantiateConfig, Seed
from fdjax.contract.component import ParametricComponent, leaves
from fdjax.contract.conditioner import Conditions
from fdjax.engine import homes
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.engine.programs import Programs
from fdjax.run import (
    ahead,
    conditions_store,
    downloads,
    embeddings,
    finite,
    media,
    memory,
    naming,
    needs,
    plugins,
    replay,
    stats,
    stream,
    weights,
)
from fdjax.run.controls import End
from fdjax.run.fields import check_fields
from fdjax.run.inputs import RunnerInputs, RunnerResult
from fdjax.run.outputs import Arrangement, OutputWriter
from fdjax.run.prompts import encode_prompts
from fdjax.run.reading import InputReader
from fdjax.run.report import RunReport
from fdjax.run.writer import NullWriter
from fdjax.sharding import Placement

_log = logging.getLogger(__name__)


class Runner(InputReader):
    """Makes one video and its reports."""

    config: "RunnerConfig"

    # What methods override

    def read_inputs(self) -> RunnerInputs:
        """Reads and checks what the config names; runs before any weight is read.

        Raises:
            ValueError, FileNotFoundError: An input is wrong or missing.
        """
        return RunnerInputs(text=self.read_text(), script=self.read_controls())

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

    def weights_placement(self) -> Placement | None:
        """Where the weights live, as `StreamInferencePipeline.init_params` takes it.

        Raises:
            ValueError: There is no such place here.
        """
        return self.devices.placement(needs.streaming(self.pipeline))

    # The run

    def run(self, expected: replay.Replay | None = None) -> RunnerResult:
        """Checks, loads, streams, writes.

        Files in `output_dir`, each of which appears whole or not at all: the video
        `<name>.mp4` (of several views or sessions `<name>.<view>.session<n>.mp4`; an
        array that is no video `<name>.<key>.npy`; what it follows, above it, is
        `<name>.comparison.mp4`), a contact sheet `<name>.png`,
        `stats_<name>.json`, `<name>.config.json`, from which the run can be repeated,
        `<name>.replay.json`, with which a repetition is compared, and with
        `save_session` `<name>.session`, from which it can be extended. The second run
        in a directory is `<name>-2`, and so on. With random weights the name says so.
        With `save_embeddings_path` that file alone.

        Args:
            expected: A run whose weights these must be.

        Raises:
            ValueError, FileNotFoundError, PermissionError: Before anything expensive.
            NonFiniteError: A chunk was NaN or infinite; the chunks before it were
                written.
            KeyboardInterrupt: After the files of an interrupted run were written.
        """
        config = self.config
        inputs = self.prepare()
        if config.save_embeddings_path is not None:
            conditions = self._encode(self.encoder_weights(), inputs)
            return embeddings.keep(config, self.pipeline.conditioner, conditions)
        session = None
        if config.resume is not None:
            session = stream.resume(config.resume, self.pipeline, self.devices)
        first = 0 if session is None else session.first
        if (num_chunks := self.num_chunks(inputs, first)) < 1:
            raise ValueError(
                f"The controls must go beyond chunk {first}, where the session is, "
                f"they end after {len(inputs.controls or ())} chunks in all."
                if first
                else "The controls must span at least one chunk, got none."
            )
        self.tell_end(inputs, first + num_chunks)
        compiling = ahead.compile_ahead(
            self,
            inputs,
            None if session else self._condition_shapes(inputs),
            session.cache if session else None,
            first,
        )
        if config.compile_only:
            return ahead.compile_only(compiling, told=config.progress is not False)
        params, session = self._begin(inputs, session, num_chunks, compiling)
        hashes = replay.WeightHashes(params)
        hashes.check(expected, config.resume)
        folder = pathlib.Path(os.path.expanduser(config.output_dir))
        with contextlib.ExitStack() as stack:
            name = config.output_name
            if jax.process_index() == 0:
                name = stack.enter_context(
                    naming.reserved(folder, name, overwrite=config.overwrite)
                )
            report = RunReport(config, num_chunks, inputs, name=name, first=first)
            return self._stream(params, session, inputs, report, hashes)

    def prepare(self) -> RunnerInputs:
        """Everything that can be checked before a weight is read; returns the inputs.

        Raises:
            ValueError, FileNotFoundError, PermissionError: With what to do about it.
        """
        config = self.config
        config_lib.check_config(config)
        memory.check_device()
        _ = self.pipeline.components
        if str(self.devices):
            self.say("On %s.", self.devices)
        self.pipeline.latent_size(config.pixel_height, config.pixel_width)
        ready = embeddings.prepare(config, self.pipeline.conditioner)
        inputs = dataclasses.replace(self.read_inputs(), conditions=ready)
        if str(config.controls) and inputs.script is None:
            raise ValueError(f"{config.runner_name} takes no controls.")
        if inputs.controls is not None and not len(inputs.controls):
            raise ValueError("The controls must span at least one chunk, got none.")
        if config.save_embeddings_path is None:
            files.check_output_dir(config.output_dir)
        config_lib.to_json(config, classes=plugins.known_classes())
        if self.pipeline.decoder is not None:
            media.check_video_encoder()
        if config.random_weights:
            _log.warning(
                "RANDOM WEIGHTS: %s runs untrained; its output is noise and means "
                "nothing.",
                config.runner_name,
            )
        else:
            weights.check(self.pipeline, self._parts_read(inputs))
        self._check_memory(inputs)
        return inputs

    def _begin(
        self,
        inputs: RunnerInputs,
        session: stream.Session | None,
        num_chunks: int,
        compiling: Programs,
    ) -> tuple[Params, stream.Session]:
        """The weights that stream, on the device, and the session's beginning."""
        streaming = list(needs.streaming(self.pipeline))
        first = 0 if session is None else session.first
        conditions, switches = encode_prompts(
            functools.partial(self._encode, self.encoder_weights()),
            inputs,
            self.frames_before,
            range(first, first + num_chunks),
        )
        # The text encoders, which are large, are freed before the rest is loaded.
        if session is not None:
            _log.info("Resumed at chunk %d; prompt, image and seed are its own.", first)
            params = self.load_weights(streaming)
            session.cache = homes.placed(params, session.cache)
            session.switches, session.compiling = switches, compiling
            return params, session
        assert conditions is not None
        # A size or a condition that does not fit shows in the shapes alone.
        self._needs(conditions).of(streaming).check()
        params = self.load_weights(streaming)
        compiling.wait(0)
        cache = self.new_cache(params, conditions)
        session = stream.Session(
            self.pipeline, cache, switches=switches, compiling=compiling
        )
        return params, session

    def encoder_weights(self) -> conditions_store.WeightsOnDemand:
        """Weights of the encoders of conditions, loaded when they are used."""
        return conditions_store.WeightsOnDemand(
            self.load_weights, list(needs.one_shot(self.pipeline))
        )

    def _encode(self, params: Params, inputs: RunnerInputs) -> Conditions:
        """The conditions that are ready, or `encode_conditions`, looked at."""
        if inputs.conditions is not None:
            return inputs.conditions
        conditions = self.encode_conditions(params, inputs)
        if not self.config.allow_nonfinite:
            finite.check_conditions(conditions)
        return conditions

    def _parts_read(self, inputs: RunnerInputs) -> dict[str, ParametricComponent]:
        """The parts whose weights the run reads."""
        if self.config.compile_only:
            return {}
        if self.config.save_embeddings_path is not None:
            return needs.one_shot(self.pipeline)
        ready = inputs.conditions is not None
        return needs.streaming(self.pipeline) if ready else self.pipeline.components

    def _stream(
        self,
        params: Params,
        session: stream.Session,
        inputs: RunnerInputs,
        report: RunReport,
        hashes: replay.WeightHashes,
    ) -> RunnerResult:
        """Streams, and writes what there is however that ends."""
        config = self.config
        writer = self._writer(report, inputs)
        watch = finite.FiniteWatch(stats.Profiler() if config.profile else None)
        interrupted = False
        try:
            with report, writer:
                stream.stream(
                    session,
                    params,
                    inputs.controls,
                    writer,
                    report,
                    watch,
                    keep_nonfinite=config.allow_nonfinite,
                    keep_whole=config.save_session,
                )
        except KeyboardInterrupt:
            interrupted = True
        if not interrupted:
            watch.wait()
        report.weights = hashes.get(wait=not interrupted)
        report.nonfinite = dict(watch.bad)
        report.outputs = list(writer.paths) if report.num_frames else []
        if jax.process_index() == 0 and (report.num_frames or report.nonfinite):
            report.write()
            if config.save_session and not report.nonfinite:
                path, name = report.paths.session, config.runner_name
                report.has_session = session.save(path, params, name)
            if config.overwrite:
                written = {path.name for path in report.written()}
                naming.remove_leftovers(report.paths.folder, report.paths.name, written)
        if interrupted:
            raise KeyboardInterrupt(report.outcome())
        if report.nonfinite and not config.allow_nonfinite:
            raise finite.NonFiniteError(report.nonfinite_text())
        _log.info("%s", report.outcome())
        return RunnerResult(
            output=writer.paths[0] if writer.paths else report.paths.output,
            outputs=tuple(writer.paths),
            files=tuple(report.written()),
            num_frames=report.num_frames,
            stats=report.chunks(),
            chunk_hashes=tuple(report.hashes),
        )

    def new_cache(self, params: Params, conditions: Conditions) -> PyTree:
        """The cache of a new session of this size and seed."""
        seed = self.config.seed
        # Of an image its own size counts: a method may choose it by the picture.
        sized = conditions.image is not None
        return self.pipeline.initialize_cache(
            params,
            conditions=conditions,
            pixel_height=None if sized else self.config.pixel_height,
            pixel_width=None if sized else self.config.pixel_width,
            key=None if seed is None else jax.random.key(seed),
        )

    def _check_memory(self, inputs: RunnerInputs) -> None:
        """Tells what the run needs if that is much, and refuses what cannot fit."""
        told = self.config.progress is not False
        if told and not self.config.random_weights:
            parts = leaves(self._parts_read(inputs)).values()
            paths = (part.checkpoint_path for part in parts)
            downloads.announce(filter(None, paths))
        shapes = self._condition_shapes(inputs)
        if shapes is None:
            return
        needed = self._needs(shapes).of(self._parts_read(inputs))
        needed.check()
        if told:
            needed.announce(self.config.runner_name)

    def _condition_shapes(self, inputs: RunnerInputs) -> Conditions | None:
        """Shapes of the conditions, or those that are ready; None: unknown."""
        if inputs.conditions is not None:
            return inputs.conditions
        if type(self).encode_conditions is Runner.encode_conditions:
            encode = functools.partial(
                self.pipeline.encode_conditions, text=inputs.text, image=inputs.image
            )
        else:
            encode = functools.partial(self.encode_conditions, inputs=inputs)
        return needs.condition_shapes(self.pipeline, encode)

    def _needs(self, conditions: Conditions) -> needs.Needs:
        size = self.config.pixel_height, self.config.pixel_width
        where = self.weights_placement()
        return needs.of_rollout(
            self.pipeline, self.new_cache, conditions, size, self.devices, where
        )

    def load_weights(self, only: Sequence[str]) -> Params:
        """Weights of these components; random ones if the config says so."""
        where, random = self.weights_placement(), self.config.random_weights
        return weights.make(self.pipeline, only, where, random=random, say=self.say)

    def _writer(
        self, report: RunReport, inputs: RunnerInputs
    ) -> "NullWriter | OutputWriter":
        if jax.process_index() != 0:
            return NullWriter()
        return OutputWriter(
            report.paths.output,
            arrangement=self.config.arrangement,
            decoded=self.pipeline.decoder is not None,
            fps=self.config.fps,
            metadata=report.metadata(),
            on_chunk=report.arrived,
            above=inputs.above,
            first=report.first,
        )


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

    controls: str | pathlib.Path = ""
    """Prompts that change: [{"frame": 48, "prompt": "at night"}], in a .json file or as
    it stands. A prompt comes with the chunk that holds its frame."""

    controls_end: End = "stop"
    """When the controls end: "stop" the run with the chunk, "hold" the last of them, or
    "repeat" them, until `total_blocks`."""

    fps: int = 16
    """Frames per second of the video file."""

    pixel_height: int = 480
    """Rows of the video."""

    pixel_width: int = 832
    """Columns of the video."""

    seed: Seed | None = None
    """Seed of the noise; None: that of the diffusion model, or 0."""

    overwrite: bool = False
    """Write over the files of an earlier run; else each run in a directory gets a
    number of its own: NAME, NAME-2, NAME-3."""

    save_session: bool = False
    """Write NAME.session, from which --resume goes on; when interrupted, too."""

    resume: str | pathlib.Path | None = None
    """Go on from a .session file: `total_blocks` more chunks, in files of their own.
    Prompt, image, size and seed are the session's; controls are counted from its
    beginning, and go on where it stands."""

    allow_nonfinite: bool = False
    """Go on after a chunk that is NaN or infinite; else the run ends before it."""

    random_weights: bool = False
    """Run with random weights and without checkpoints: for tests and timings only."""

    mesh: str | None = None
    """Run on several devices: the axes of a mesh and their sizes, such as sequence=2
    or guidance=2,sequence=4; `docs/several_gpus.md` says what each axis cuts."""

    place: str | None = None
    """Parts and the numbers of devices to put them on, such as decoder=1."""
    compile_only: bool = False
    """Compile the programs of this size into the compilation cache, without weights,
    and stop."""

    profile: bool = False
    """Measure every stage; waits for the device after each, which costs speed."""

    arrangement: Arrangement = "separate"
    """Several sessions or views of video: "separate" files, or "tiled" in one."""

    progress: bool | None = None
    """Show a progress bar; None: if standard error is a terminal. False also leaves
    out the lines that say what is loading and compiling."""

    conditions_cache: bool = True
    """Keep encoded prompts and images in FDJAX_CACHE_DIR (~/.cache/fdjax), so that
    large encoders load only once."""

    save_embeddings_path: str | pathlib.Path | None = None
    """Encode prompt and image into this file, and stop: nothing else is loaded."""

    embeddings_path: str | pathlib.Path | None = None
    """Take prompt and image from such a file; their encoders are neither downloaded nor
    loaded. `prompt` and `image` are not read."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def output_name(self) -> str:
        """Name of the output files, before they are numbered."""
        return self.runner_name + ("-random-weights" if self.random_weights else "")

    def tiny(self) -> "RunnerConfig":
        """The same path with random weights, in less than half a minute on a CPU.

        A method with large networks overrides it to make them small.
        """
        blocks = min(self.total_blocks, 2)
        return dataclasses.replace(self, random_weights=True, total_blocks=blocks)
