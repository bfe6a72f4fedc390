"""Runs LingBot-World: an image, a prompt and a camera's path in, a video out."""

import dataclasses
import pathlib
import re
from typing import Any

import numpy as np

from fdjax import checkpoint
from fdjax.run.controls import Controls, End
from fdjax.run.inputs import LazySequence, RunnerInputs
from fdjax.run.steering import Steering
from fdjax_models.methods.lingbot_world import paths, plot, trajectory
from fdjax_models.methods.wan21 import tiny
from fdjax_models.methods.wan21.base_runner import WanRunner, WanStartRunnerConfig
from fdjax_models.networks.camera.encoder import CameraInput
from fdjax_models.networks.camera.poses import frames_of

# Owner and name of a published repository, in an address or a cache's folder; another
# layout of the same weights ends in -diffusers.
_REPOSITORY = re.compile(r"robbyant(?:/|--)([\w.-]+?)(?:-diffusers)?(?=[/@]|$)")


class LingBotRunner(WanRunner):
    """Starts from an image and walks along a recorded or written path."""

    config: "LingBotRunnerConfig"
    resampling = "bicubic"  # as the model was fed

    def read_inputs(self) -> RunnerInputs:
        """The prompt, the first frame, and the camera of every chunk.

        Raises:
            ValueError: The size, the image or the path is wrong.
            FileNotFoundError: A file is missing.
        """
        self._check_size()
        self._check_origin()
        text = self.read_text()
        script = self.read_controls(paths.KEYS, takes_array=True)
        assert script is not None  # as there are keys
        segments = self._segments(script)
        image, size = None, (self.config.pixel_height, self.config.pixel_width)
        if not self.has_embeddings:
            image = self._read_start()
            assert image is not None  # as there is an encoder
            size = image.shape[1:3]
        elif self.config.fit == "keep":
            raise ValueError(
                "fit keep takes the size of the video from the image, which "
                "embeddings_path does not read; set pixel_height and pixel_width to "
                "that size, and fit to stretch."
            )
        camera = self._trajectory(segments, script, size)
        len_t, has_path = (
            self._len_t,
            bool(str(self.config.poses) or self.config.camera),
        )
        needed = camera.num_chunks(len_t)
        if segments is None and needed < self.config.total_blocks:
            self.say(
                "The poses cover %d chunks, %d video frames; --controls_end hold and "
                "--controls_end repeat go on.",
                needed,
                frames_of(needed * len_t),
            )

        def label(chunk: int, frame: int) -> str:
            number = self.frames_before(chunk) + frame
            return paths.keys_at(segments or (), number, script.end == "repeat")

        return RunnerInputs(
            text=text,
            image=image,
            controls=LazySequence(needed, lambda index: camera.chunk(index, len_t)),
            # The keys of the default are not what steers beside another path.
            script=Controls() if has_path and script.steers else script,
            label=label,
            pictures={"camera": plot.draw(camera.poses, self.config.fps)},
        )

    def steering(self, inputs: RunnerInputs) -> Steering:
        """The camera walks and turns while keys are held, or follows a path.

        It follows `poses` and `camera`, where one of them is given.
        """
        config = self.config
        if str(config.poses) or config.camera or not inputs.controls:
            return super().steering(inputs)
        first = inputs.controls[0]

        def control(state: Any, keys: str) -> tuple[Any, CameraInput]:
            index, place = state
            step, poses = paths.step_of(keys, config.fps), []
            for frame in range(
                self.frames_before(index), self.frames_before(index + 1)
            ):
                place = place.moved(step) if frame else place
                poses.append(place.pose)
            # The lens of the first frame is that of all.  [1, F, 4]
            lens = np.tile(first.intrinsics[:, :1], (1, len(poses), 1))
            moved = np.stack(poses)[None].astype(np.float32)
            given = dataclasses.replace(first, poses=moved, intrinsics=lens)
            return (index + 1, place), given

        return Steering(actions=paths.KEYS, control=control, start=(0, paths.Place()))

    def _check_origin(self) -> None:
        """Refuses weights that were converted from those of another version."""
        source = self.pipeline.components["transformer"].checkpoint_path
        if source is not None and not self.config.random_weights:
            self.config.check_version(checkpoint.origin(source))

    @property
    def _len_t(self) -> int:
        transformer: Any = self.config.pipeline.diffusion_model.transformer
        return int(transformer.len_t)

    def _stand_in(self) -> str:
        """A ramp for random weights, which show nothing of a picture."""
        return tiny.STAND_IN if self.config.random_weights else ""

    def _segments(self, script: Controls) -> tuple[paths.Segment, ...] | None:
        """The written path; None where a recorded one is given.

        The keys of `controls` are the path where no other is given; its prompts hold
        beside any.
        """
        config = self.config
        given = {
            "poses": bool(str(config.poses)),
            "camera": bool(config.camera),
            "controls": script.array is not None
            or (script.steers and config.controls != _default_controls(config)),
        }
        named = [name for name, is_given in given.items() if is_given]
        if len(named) > 1:
            raise ValueError(f"Give one of {' and '.join(named)}: each is a path.")
        if "poses" in named or script.array is not None:
            return None
        if "camera" in named:
            return paths.read_camera(config.camera, config.fps)
        return paths.segments_of(script, config.fps)

    def _trajectory(
        self,
        segments: tuple[paths.Segment, ...] | None,
        script: Controls,
        size: tuple[int, int],
    ) -> trajectory.Trajectory:
        config = self.config
        captured = config.capture_height, config.capture_width
        scale, repeat = config.world_scale, script.end == "repeat"
        frames = self.frames_before(self.first_chunk + config.total_blocks)
        if segments is None:
            found = trajectory.recorded(
                config.poses if script.array is None else script.array,
                config.intrinsics,
                len_t=self._len_t,
                size=size,
                captured=captured,
                fit=config.fit,
                opengl=config.opengl,
                world_scale=scale,
            )
            if script.end == "stop":
                return found
            return found.extended(_check_length(frames), repeat)
        if config.opengl:
            raise ValueError("opengl says how poses are meant; give poses with it.")
        if script.end == "stop":
            # The chunk in which the path ends is walked whole; then the camera rests.
            latents = -(-(paths.num_frames(segments) - 1) // 4) + 1
            frames = min(frames, self.frames_before(-(-latents // self._len_t)))
        return trajectory.written(
            paths.walk(segments, _check_length(frames), repeat),
            config.intrinsics,
            size=size,
            captured=captured,
            fit=config.fit,
            world_scale=scale,
        )


_MOST_FRAMES = 10**6  # 17 hours; their poses take 128 MB


def _check_length(frames: int) -> int:
    if frames > _MOST_FRAMES:
        raise ValueError(
            f"a path must be of at most {_MOST_FRAMES} video frames, got {frames}; "
            "make total_blocks smaller."
        )
    return frames


def _default_controls(config: Any) -> Any:
    """What `controls` are where nobody says so."""
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    return fields["controls"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LingBotRunnerConfig(WanStartRunnerConfig):
    """Config of `LingBotRunner`.

    The path is `poses`, or `camera`, or the keys of `controls`; the prompts of
    `controls` hold beside any.
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
    look up and down, . nothing; at the speeds of `camera`. Or events, [{"frame": 0,
    "keys": "w"}, {"frame": 48, "prompt": "night"}], in a .json file or as they stand;
    or a .npy of poses."""

    opengl: bool = False
    """The camera of `poses` looks along -z with y up (OpenGL, Blender, NeRF)."""

    capture_height: int = trajectory.CAPTURED[0]
    """Rows of the picture that `intrinsics` are for."""

    capture_width: int = trajectory.CAPTURED[1]
    """Columns of the picture that `intrinsics` are for."""

    world_scale: float | None = None
    """Length, in the poses' unit, that the network calls 1; None: the longest step
    between latent frames of `poses`, 1 for a written path."""

    controls_end: End = "stop"
    """When the path ends: "stop" with the chunk; "hold" the last keys, or stay where a
    recorded or written path ends; or "repeat" its motion from there."""

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
