"""Runs OmniDreams: an HD map, a first frame and a prompt in, a driving video out."""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

import jax
import numpy as np

from fdjax.axes import Params, PyTree
from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions
from fdjax.engine.pipeline import StreamInferencePipeline, StreamInferencePipelineConfig
from fdjax.run.controls import Controls, check_rows
from fdjax.run.inputs import LazySequence, RunnerInputs
from fdjax.run.runner import Runner, RunnerConfig
from fdjax_models.methods.cosmos.runner import check_prompts
from fdjax_models.methods.omnidreams import maps, tiny
from fdjax_models.methods.omnidreams.road import driver
from fdjax_models.methods.omnidreams.road.camera import CAMERAS, FRONT
from fdjax_models.methods.omnidreams.road.world import make_world
from fdjax_models.networks.hdmap.video import PIXELS_PER_LATENT

_LONGEST_DRIVE = 1000  # chunks that are planned at most: five minutes


class OmniDreamsRunner(Runner):
    """Follows recorded HD maps, or those of a drive through a procedural world."""

    config: "OmniDreamsRunnerConfig"

    @functools.cached_property
    def pipeline(self) -> StreamInferencePipeline:
        """The pipeline, without checkpoints where weights are random."""
        return self.config.resolved_pipeline.setup()

    def read_inputs(self) -> RunnerInputs:
        """The prompts, the first frames, and the HD maps of every chunk.

        Raises:
            ValueError: A size, a name, a number of files or a file is wrong, or none
                or several sources of maps are given.
            FileNotFoundError: A file is missing.
        """
        config = self.config
        self._check_size()
        text = self.read_text()
        if config.view_prompts:
            text = tuple(config.view_prompts)
        script = self._script()
        driven = script if script is not None and script.steers else None
        found = self._maps(driven)

        def view_maps(chunk: int) -> list[Any]:
            views = found.chunk(chunk)
            return [views[:, view] for view in range(views.shape[1])]

        def label(chunk: int, frame: int) -> str:
            first = maps.frames_of(chunk, self._len_t).start
            return "" if driven is None else driven.keys_at(first + frame)

        return RunnerInputs(
            text=text,
            image=self._first_frames(found),
            controls=LazySequence(found.num_chunks, found.chunk),
            script=script,
            label=label,
            above=view_maps,
        )

    def _script(self) -> Controls | None:
        """The keys that drive, and the prompts that change; None: neither is given."""
        if not str(self.config.controls).strip():
            return None
        script = self.read_controls(driver.ACTIONS, takes_array=True)
        assert script is not None  # as there are keys
        check_rows(script, "steering", "throttle")
        return script

    @property
    def _len_t(self) -> int:
        transformer: Any = self.config.pipeline.diffusion_model.transformer
        return int(transformer.len_t)

    def _maps(self, script: Controls | None) -> "maps.RecordedMaps | maps.DrawnMaps":
        config, len_t = self.config, self._len_t
        given = {
            "hdmap": bool(config.hdmap),
            "controls": script is not None,
            "example": config.example,
        }
        named = [name for name, there in given.items() if there]
        if len(named) != 1:
            raise ValueError(
                f"{config.runner_name} follows one HD map: give hdmap (videos), "
                "controls (keys that drive through a made-up world) or example; got "
                f"{' and '.join(named) or 'none'}."
            )
        size, cameras = (config.pixel_height, config.pixel_width), config.cameras
        num_chunks = self.first_chunk + config.total_blocks
        if config.hdmap:
            _check_count("hdmap", config.hdmap, cameras)
            return maps.recorded(
                config.hdmap,
                size=size,
                fps=config.fps,
                len_t=len_t,
                num_chunks=num_chunks,
                resample=config.resample_hdmap,
            )
        controls = None
        if script is not None:
            if script.end == "stop":
                # The chunk in which they end is driven whole, hands off behind them.
                latents = -(-(script.num_frames - 1) // 4) + 1
                num_chunks = min(num_chunks, -(-latents // len_t))
            num_chunks = min(num_chunks, _LONGEST_DRIVE)
            frames = maps.frames_of(num_chunks - 1, len_t).stop
            controls = driver.held_controls(script, 0, frames)
        return maps.drawn(
            make_world(config.world_seed),
            controls,
            cameras=cameras,
            size=size,
            len_t=len_t,
            num_chunks=min(num_chunks, _LONGEST_DRIVE),
        )

    def _first_frames(
        self, found: "maps.RecordedMaps | maps.DrawnMaps"
    ) -> np.ndarray | None:
        """First frames of the views, float32[1, V, H, W, 3].

        None where ready embeddings hold them.
        """
        if self.has_embeddings:
            return None
        config = self.config
        size = config.pixel_height, config.pixel_width
        if config.image:
            _check_count("image", config.image, config.cameras)
            return maps.first_frames(config.image, size, config.fit)
        if config.hdmap and not config.random_weights:
            raise ValueError(
                f"{config.runner_name} starts from a first frame: set image to a file "
                "or a URL for each camera."
            )
        return maps.stand_in(found.start())

    def new_cache(self, params: Params, conditions: Conditions) -> PyTree:
        """The cache of a new session, whose views lie side by side."""
        config = self.config
        return self.pipeline.initialize_cache(
            params,
            conditions=conditions,
            pixel_height=config.pixel_height,
            # Views lie side by side.
            pixel_width=config.pixel_width * len(config.cameras),
            key=None if config.seed is None else jax.random.key(config.seed),
        )

    def _check_size(self) -> None:
        transformer: Any = self.config.pipeline.diffusion_model.transformer
        _, *patch = transformer.network.patch_size
        for name, side in zip(("pixel_height", "pixel_width"), patch, strict=True):
            multiple, value = PIXELS_PER_LATENT * side, getattr(self.config, name)
            if value % multiple:
                raise ValueError(
                    f"{name} must be a multiple of {multiple}, got {value}."
                )


def _check_count(name: str, given: tuple[Any, ...], cameras: tuple[str, ...]) -> None:
    if len(given) != len(cameras):
        raise ValueError(
            f"{name} must name one file for each of the cameras {', '.join(cameras)}, "
            f"separated by commas; got {len(given)}."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OmniDreamsRunnerConfig(RunnerConfig):
    """Config of `OmniDreamsRunner`.

    The HD map is `hdmap`, or `controls`, or `example`.
    """

    _target: type = OmniDreamsRunner

    hdmap: tuple[str, ...] = ()
    """HD-map videos, one per camera."""

    image: tuple[str, ...] = ()
    """First frames, one per camera: images, videos or URLs. A drive through the made-up
    world has a painted one for whoever gives none."""

    fit: Literal["stretch", "crop", "pad"] | None = None
    """First frames of other proportions than the map: "stretch" changes them, "crop"
    cuts their middle out, "pad" puts black bars beside them; None refuses them."""

    controls: str | pathlib.Path = ""
    """Drive through a made-up world by keys, and for how many frames: "w*60 wa*20":
    w accelerate, s brake, then reverse, a and d steer, . none. Or events, [{"frame": 0,
    "keys": "w"}, {"frame": 48, "prompt": "rain"}], in a .json file or as they stand; or
    a .npy of (steering, throttle) in [-1, 1], [frames, 2]. Prompts alone go with any
    map."""

    example: bool = False
    """Drive through a made-up world along its streets."""

    world_seed: int = 0
    """Which made-up world."""

    cameras: tuple[str, ...] = (FRONT,)
    """Names of the cameras, one per view."""

    view_prompts: tuple[str, ...] = ()
    """One prompt per camera, in place of `prompt` for all."""

    resample_hdmap: bool = False
    """Bring HD maps of other sizes, proportions and frame rates to those of the run."""

    total_blocks: int = 60
    """At most this many chunks; the run ends with the map."""

    fps: int = 30
    """Frames per second of the map and of the video."""

    pixel_height: int = 704
    """Rows of the video."""

    pixel_width: int = 1280
    """Columns of the video."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompts(self.pipeline)
        transformer: Any = self.pipeline.diffusion_model.transformer
        views = len(transformer.cameras)
        if unknown := [name for name in self.cameras if name not in CAMERAS]:
            raise ValueError(
                f"cameras must be some of {', '.join(CAMERAS)}; got "
                f"{', '.join(unknown)}."
            )
        if len(self.cameras) != views or len(set(self.cameras)) != views:
            raise ValueError(
                f"cameras must name {views} different cameras, one per view of the "
                f"pipeline, got {', '.join(self.cameras) or 'none'}."
            )
        names = tuple(map(list(CAMERAS).index, self.cameras))
        if views > 1 and names != transformer.cameras:
            raise ValueError(
                f"cameras are {', '.join(self.cameras)}, numbers {names} of the "
                "network's vocabulary, but the pipeline's transformer has "
                f"{transformer.cameras}; `with_cameras` makes a pipeline of others."
            )
        if len(self.view_prompts) not in (0, views):
            raise ValueError(
                f"view_prompts must hold {views} prompts, one per camera, got "
                f"{len(self.view_prompts)}."
            )

    def tiny(self) -> RunnerConfig:
        """The same path through small networks, along the example's street."""
        return derive_config(
            super().tiny(),
            pipeline=tiny.changes(self.pipeline),
            pixel_height=tiny.HEIGHT,
            pixel_width=tiny.WIDTH,
            hdmap=(),
            controls="",
            example=True,
        )

    @property
    def resolved_pipeline(self) -> StreamInferencePipelineConfig:
        """The pipeline that runs; random weights come without a vocabulary."""
        if not self.random_weights:
            return self.pipeline
        unknown = {"checkpoint_path": None, "tokenizer_path": None}
        return derive_config(self.pipeline, conditioner={"text_encoder": unknown})
