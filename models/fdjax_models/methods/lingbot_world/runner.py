"""Runs LingBot-World: an image, a prompt and a camera's path in, a video out."""

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np

from fdjax import checkpoint
from fdjax.run.inputs import LazySequence, RunnerInputs
from fdjax.run.keys import controls_text
from fdjax_models.methods.lingbot_world import paths, plot, trajectory
from fdjax_models.methods.wan21 import tiny
from fdjax_models.methods.wan21.base_runner import WanRunner, WanStartRunnerConfig
from fdjax_models.networks.camera.poses import frames_of

# Owner and name of a published repository, in an address or a cache's folder; another
# layout of the same weights ends in -diffusers.
_REPOSITORY = re.compile(r"robbyant(?:/|--)([\w.-]+?)(?:-diffusers)?(?=[/@]|$)")


class LingBotRunner(WanRunner):
    """Starts from an image and walks along a recorded or written path."""

    config: "LingBotRunnerConfig"

    def read_inputs(self) -> RunnerInputs:
        """The prompt, the first frame, and the camera of every chunk.

        Raises:
            ValueError: The size, the image or the path is wrong.
            FileNotFoundError: A file is missing.
        """
        self._check_size()
        self._check_origin()
        text = self.read_text()
        segments = self._segments()
        camera = self._trajectory(segments)
        len_t = self._len_t
        needed = camera.num_chunks(len_t)
        if segments is None and needed < self.config.total_blocks:
            self._say(
                "The poses cover %d chunks, %d video frames.",
                needed,
                frames_of(needed * len_t),
            )

        def label(chunk: int, frame: int) -> str:
            before = frames_of(chunk * len_t) if chunk else 0
            return paths.keys_at(segments or (), before + frame)

        ready = self.config.embeddings_path is not None  # and hold the first frame
        return RunnerInputs(
            text=text,
            image=None if ready else self._read_start(),
            controls=LazySequence(needed, lambda index: camera.chunk(index, len_t)),
            label=label,
            pictures={"camera": plot.draw(camera.poses, self.config.fps)},
        )

    def _check_origin(self) -> None:
        """Refuses weights that were converted from those of another version."""
        source = self.pipeline.components["transformer"].checkpoint_path
        if source is not None and not self.config.random_weights:
            self.config.check_version(checkpoint.origin(source))

    @property
    def _len_t(self) -> int:
        transformer: Any = self.config.pipeline.diffusion_model.transformer
        return int(transformer.len_t)

    def _read_start(self) -> np.ndarray:
        """The image, resized as the model was fed: bicubic, proportions not kept."""
        path = self.config.image
        if not str(path) and self.config.random_weights:
            path = tiny.STAND_IN
        if not str(path):
            raise ValueError(
                f"{self.config.runner_name} starts from an image: set image to a file "
                "or a URL."
            )
        return self.read_image(path, "bicubic")

    def _segments(self) -> tuple[paths.Segment, ...] | None:
        """The written path; None where a recorded one is given."""
        config = self.config
        given = {"poses": config.poses, "camera": config.camera}
        named = [name for name, value in given.items() if str(value)]
        if len(named) > 1:
            raise ValueError(f"Give one of {' and '.join(named)}: each is a path.")
        if named == ["poses"]:
            return None
        if named == ["camera"]:
            return paths.read_camera(config.camera, config.fps)
        return paths.read_controls(controls_text(config.controls), config.fps)

    def _trajectory(
        self, segments: tuple[paths.Segment, ...] | None
    ) -> trajectory.Trajectory:
        config = self.config
        size = config.pixel_height, config.pixel_width
        captured = config.capture_height, config.capture_width
        scale = config.world_scale
        if segments is None:
            return trajectory.recorded(
                config.poses,
                config.intrinsics,
                len_t=self._len_t,
                size=size,
                captured=captured,
                opengl=config.opengl,
                world_scale=scale,
            )
        if config.opengl:
            raise ValueError("opengl says how poses are meant; give poses with it.")
        # The chunk in which the path ends is walked whole; then the camera rests.
        latents = -(-(paths.num_frames(segments) - 1) // 4) + 1
        chunks = min(-(-latents // self._len_t), config.total_blocks)
        poses = paths.walk(segments, frames_of(chunks * self._len_t))
        return trajectory.written(
            poses, config.intrinsics, size=size, captured=captured, world_scale=scale
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LingBotRunnerConfig(WanStartRunnerConfig):
    """Config of `LingBotRunner`.

    The path is `poses`, or `camera`, or `controls`, in this order.
    """

    _target: type = LingBotRunner

    weights: str = ""
    """Name of the repository of robbyant that this method is for, if one: weights from
    another one of theirs are refused, since versions have the same keys and shapes."""

    poses: str | pathlib.Path = ""
    """A recorded path: .npy of camera-to-world poses, one per video frame, [T, 4, 4];
    x right, y down, z forward, as OpenCV and COLMAP have them (invert COLMAP's
    world-to-camera first)."""

    intrinsics: str | pathlib.Path = ""
    """Its lens: .npy of (fx, fy, cx, cy) in pixels, [T, 4] or one row; empty: a lens of
    80 degrees across."""

    camera: str = ""
    """A written path: "forward 2.0, yaw 30, wait 1"; forward, back, left, right, up,
    down in units at 0.8 a second, yaw (to the right) and pitch (up) in degrees at 32 a
    second, wait in seconds."""

    controls: str | pathlib.Path = "w*40 d*24 w*40"
    """Keys and for how many video frames: w, s walk, q, e sidestep, a, d turn, i, k
    look up and down, . nothing; at the speeds of `camera`. Or a .txt file that says
    so."""

    opengl: bool = False
    """The camera of `poses` looks along -z with y up (OpenGL, Blender, NeRF)."""

    capture_height: int = trajectory.CAPTURED[0]
    """Rows of the picture that `intrinsics` are for."""

    capture_width: int = trajectory.CAPTURED[1]
    """Columns of the picture that `intrinsics` are for."""

    world_scale: float | None = None
    """Length, in the poses' unit, that the network calls 1; None: the longest step
    between latent frames of `poses`, 1 for a written path."""

    total_blocks: int = 20
    """At most this many chunks; the run ends with the path."""

    pixel_height: int = 464
    """Rows of the video."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.world_scale is not None and not 0 < self.world_scale < float("inf"):
            raise ValueError(
                f"world_scale must be above 0 and finite, got {self.world_scale}."
            )
        for name in ("capture_height", "capture_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1.")
        transformer: Any = self.resolved_pipeline.diffusion_model.transformer
        self.check_version(str(transformer.checkpoint_path or ""))

    def check_version(self, source: str) -> None:
        """Refuses an address that names weights of another version.

        Raises:
            ValueError: With both names.
        """
        found = _REPOSITORY.search(source)
        if self.weights and found and found[1] != self.weights:
            raise ValueError(
                f"checkpoint_path must hold weights of robbyant/{self.weights} for "
                f"{self.runner_name}, got {found[0]}; run the method of those weights, "
                'or set weights to "".'
            )
