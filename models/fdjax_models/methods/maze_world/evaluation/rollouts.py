"""Held-out walks: what the simulator shows, and what the pipeline makes of them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.config import derive_config
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax_models.methods.maze_world import config, rendering, simulator, text, walks
from fdjax_models.methods.maze_world.controls import controls_per_chunk

HELD_OUT_SEED = 1_000_003
"""Seeds from here on are never drawn in training, which folds its own seed in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walks:
    """A batch of walks in the simulator.

    Attributes:
        video: What the simulator shows.  float32[B, 1 + frames, H, W, 3] in [-1, 1].
        controls: (forward, turn left) per frame.  float32[B, frames, 2].
        styles: int32[B, 4].
    """

    video: np.ndarray
    controls: np.ndarray
    styles: np.ndarray

    @property
    def prompts(self) -> list[str]:
        """A prompt that names each style in full."""
        return [text.prompt_of_style(style) for style in self.styles]


def simulate(
    seeds: range,
    num_frames: int,
    controls: np.ndarray | None = None,
    styles: np.ndarray | None = None,
    every: int = 1,
) -> Walks:
    """Walks through one random maze per seed.

    Args:
        seeds: Numbers of the mazes, after `HELD_OUT_SEED`.
        num_frames: Frames to walk.
        controls: The same keys for all, float32[frames, 2]; None walks at random.
        styles: int32[B, 4], or None for random ones.
        every: Renders every n-th frame only.
    """

    @jax.jit
    def walk(key: jax.Array, style: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, 3)
        world = simulator.random_world(keys[0], style)
        start = simulator.random_pose(keys[1], world)
        if controls is None:
            held, poses = walks.random_walk(keys[2], world, start, num_frames)
        else:
            held = jnp.asarray(controls, jnp.float32)
            poses = simulator.walk(world, start, held)
        poses = jax.tree.map(
            lambda a, b: jnp.concatenate([a[None], b])[::every], start, poses
        )
        return held, rendering.render_walk(world, poses)

    keys = [jax.random.key(HELD_OUT_SEED + seed) for seed in seeds]
    if styles is None:
        styles = np.stack([simulator.random_style(key) for key in keys])
    made = [walk(key, style) for key, style in zip(keys, styles, strict=True)]
    held, video = (np.stack(part) for part in zip(*made, strict=True))
    return Walks(video=video, controls=held, styles=np.asarray(styles))


def pipeline_with(**changes: Any) -> StreamInferencePipeline:
    """Returns the shipped pipeline with changes to its diffusion model's config."""
    return derive_config(config.PIPELINE, diffusion_model=changes).setup()


def generate(
    pipeline: StreamInferencePipeline,
    params: Any,
    prompts: list[str],
    controls: np.ndarray,
    image: np.ndarray | None,
    seed: int = 0,
    keep: int = 1,
) -> np.ndarray:
    """Returns what the pipeline makes of a batch of prompts, keys and start images.

    Args:
        pipeline: From `pipeline_with`.
        params: Weights.
        prompts: One per rollout.
        controls: (forward, turn left) per frame.  float32[B, frames, 2].
        image: Start images, float32[B, H, W, 3], or None: from the prompts alone.
        seed: Of the noise.
        keep: Keeps every n-th frame of the video.

    Returns:
        float32[B, frames kept, H, W, 3] in [-1, 1]; frame 0 is the start.
    """
    num_chunks = 1 + controls.shape[1] // 4
    chunks = np.stack([controls_per_chunk(keys, num_chunks) for keys in controls])
    cache = pipeline.initialize_cache(
        params,
        text=prompts,
        image=None if image is None else jnp.asarray(image),
        pixel_height=rendering.HEIGHT,
        pixel_width=rendering.WIDTH,
        key=jax.random.key(seed),
    )
    frames: list[np.ndarray] = []
    for index in range(num_chunks):
        cache, video = pipeline.generate(
            params, cache, jnp.asarray(chunks[:, index]), donate=True
        )
        cache = pipeline.finalize(params, cache, donate=True)
        frames += list(np.asarray(video).swapaxes(0, 1))
    return np.stack(frames[::keep], axis=1)
