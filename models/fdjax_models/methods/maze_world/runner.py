"""Runs maze-world from files to files: a prompt, keys and a start in, a video out."""

import dataclasses
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.config import Seed, derive_config
from fdjax.run.controls import FOREVER
from fdjax.run.inputs import LazySequence, RunnerInputs
from fdjax.run.runner import Runner, RunnerConfig
from fdjax.run.start_image import Fit, StartImage
from fdjax.run.steering import Steering
from fdjax_models.methods.maze_world import controls, rendering, simulator, text

_log = logging.getLogger(__name__)


class MazeRunner(Runner):
    """Starts from an image, from a maze of the simulator, or from the prompt alone."""

    config: "MazeRunnerConfig"

    def read_inputs(self) -> RunnerInputs:
        """The prompt, the keys held in every chunk, and the start image.

        Raises:
            ValueError: The size is not the one the weights are for, a key is unknown,
                or two starts are given.
            FileNotFoundError: A file is missing.
        """
        config = self.config
        size = config.pixel_height, config.pixel_width
        if size != (rendering.HEIGHT, rendering.WIDTH):
            raise ValueError(
                f"pixel_height and pixel_width must be {rendering.HEIGHT} and "
                f"{rendering.WIDTH}, for which maze-world was trained, got {size}."
            )
        if str(config.image) and config.maze_seed is not None:
            raise ValueError(
                f"Give image ({config.image}) or maze_seed ({config.maze_seed}), not "
                "both: each one says where to start."
            )
        prompt = self.read_text()
        image = None
        ready = self.has_embeddings  # and hold the start
        if str(config.image) and not ready:
            image = self.read_image(config.image, fit=config.fit)
        elif config.maze_seed is not None and config.resume is None and not ready:
            tokens = text.tokenize_prompt(prompt[0] if prompt else "")
            image = start_image(config.maze_seed, tokens)
        script = self.read_controls(controls.ACTIONS, takes_array=True)
        assert script is not None  # as there are keys
        keys = controls.held_keys(script)
        num_chunks = controls.num_chunks_for(keys)
        if config.total_blocks < num_chunks < FOREVER // 8:
            _log.info(
                "controls last %d chunks, total_blocks stops after %d.",
                num_chunks,
                config.total_blocks,
            )

        def label(chunk: int, frame: int) -> str:
            # Keys count from the second chunk: the first one is the start.
            first = (chunk - 1) * controls.FRAMES_PER_CHUNK
            return controls.names_of(keys.at(first + frame)) if chunk else ""

        return RunnerInputs(
            text=prompt,
            image=image,
            # One session: [4, 2] -> [1, 4, 2]
            controls=LazySequence(
                num_chunks, lambda chunk: controls.chunk_controls(keys, chunk)[None]
            ),
            script=script,
            label=label,
        )

    def steering(self, inputs: RunnerInputs) -> Steering:
        """Walks and turns while keys are held."""
        del inputs
        return Steering(
            actions=controls.ACTIONS,
            control=lambda state, keys: (state, controls.chunk_of(keys)),
        )


def start_image(seed: int, tokens: np.ndarray) -> np.ndarray:
    """Renders the first view of a random maze, as the prompt describes it.

    Args:
        seed: Names the maze, and what the prompt leaves open.
        tokens: From `text.tokenize_prompt`.  int32[4].

    Returns:
        float32[1, 96, 160, 3] in [-1, 1].
    """
    # [H, W, 3] -> [1, H, W, 3]
    return np.asarray(_first_view(jax.random.key(seed), jnp.asarray(tokens)))[None]


# One program, which is compiled once and kept: step by step it is eighty small ones,
# too quick to be kept, that take 5 s in every process.
@jax.jit
def _first_view(key: jax.Array, tokens: jax.Array) -> jax.Array:
    """The first view of a maze.  float32[96, 160, 3]."""
    world_key, pose_key = jax.random.split(key)
    world = simulator.random_world(world_key)
    said = tokens != np.array(text.UNSAID_IDS)
    # What the prompt leaves open is the maze's own.  int32[4]
    style = jnp.where(said, tokens - np.array(text.UNSAID_IDS) - 1, world.style)
    world = dataclasses.replace(world, style=style)
    pose = simulator.random_pose(pose_key, world)
    return rendering.render(world, pose)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MazeRunnerConfig(RunnerConfig, StartImage):
    """Config of `MazeRunner`."""

    _target: type = MazeRunner

    prompt: str | pathlib.Path = "red brick maze at dusk"
    """Colour, material, light and air of the maze, in any order; or a .txt file."""

    controls: str | pathlib.Path = "w*24 a*24 d*24 w*24"
    """Keys and for how many frames: w forward, s back, a turn left, d turn right,
    . none; "wa*8" holds two. Or events, [{"frame": 0, "keys": "w"}, {"frame": 48,
    "prompt": "blue"}], in a .json file or as they stand; or a .npy of (forward, turn
    left) in [-1, 1], [frames, 2]."""

    fit: Fit = "stretch"
    """An image of other proportions than 96 x 160: "stretch" changes them, "crop" cuts
    its middle out, "pad" puts black bars beside it. It has one size: no "keep"."""

    maze_seed: Seed | None = None
    """Start from this maze of the simulator, in the prompt's style; None: do not."""

    total_blocks: int = 1500
    """At most this many chunks of 4 frames; the run ends with the controls."""

    fps: int = simulator.FRAMES_PER_SECOND
    """Frames per second of the video file."""

    pixel_height: int = rendering.HEIGHT
    """Rows of the video."""

    pixel_width: int = rendering.WIDTH
    """Columns of the video."""

    conditions_cache: bool = False
    """Keep encoded prompts and images on disk; here encoding them takes no time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit == "keep":
            raise ValueError(
                "fit must be stretch, crop or pad: the video of maze-world has one "
                "size, 96 x 160, got keep."
            )

    def tiny(self) -> RunnerConfig:
        """The same path through a network of two narrow layers."""
        network = {"dim": 64, "ffn_dim": 128, "num_heads": 2, "num_layers": 2}
        model = {"transformer": {"network": network}}
        return derive_config(super().tiny(), pipeline={"diffusion_model": model})
