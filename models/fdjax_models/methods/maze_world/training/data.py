"""Clips from the simulator, cut into chunks as the network sees them."""

import flax.struct
import jax
import jax.numpy as jnp

from fdjax_models.methods.maze_world import rendering, simulator, text, walks
from fdjax_models.methods.maze_world.controls import FRAMES_PER_CHUNK


@flax.struct.dataclass(kw_only=True)
class Clip:
    """A walk as video, controls and prompt; without a batch axis unless vmapped.

    Attributes:
        video: RGB in [-1, 1].  float[1 + 4 (T - 1), H, W, 3], pixels; after encoding,
            latents [T, H, W, C] take its place.
        controls: (forward, turn left) of each frame; zeros for the first chunk, which
            is the start image.  float32[T, 4, 2].
        tokens: Tokens of the prompt.  int32[P].
    """

    video: jax.Array
    controls: jax.Array
    tokens: jax.Array


def make_clip(key: jax.Array, num_chunks: int, num_frames: int | None = None) -> Clip:
    """Returns a random walk through a random maze.

    Args:
        key: A PRNG key.
        num_chunks: Latent frames T, the start image included.
        num_frames: Frames to draw, from the start image on; None for all.
    """
    key_world, key_pose, key_walk = jax.random.split(key, 3)
    world = simulator.random_world(key_world)
    start = simulator.random_pose(key_pose, world)
    frames = (num_chunks - 1) * FRAMES_PER_CHUNK
    controls, poses = walks.random_walk(key_walk, world, start, frames)
    # The start, then a pose per frame.  [1 + 4 (T - 1), ...]
    poses = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, poses)
    seen = jax.tree.map(lambda x: x[:num_frames], poses)
    video = rendering.render_walk(world, seen)
    # [4 (T - 1), 2] -> [T - 1, 4, 2]
    controls = controls.reshape(num_chunks - 1, FRAMES_PER_CHUNK, 2)
    return Clip(
        video=video.astype(jnp.bfloat16),
        # [T, 4, 2]
        controls=jnp.concatenate([jnp.zeros((1, FRAMES_PER_CHUNK, 2)), controls]),
        tokens=text.tokens_of_style(world.style),
    )


def make_clips(
    key: jax.Array,
    count: int,
    num_chunks: int,
    num_frames: int | None = None,
    at_once: int = 8,
) -> Clip:
    """Returns `count` clips with a leading axis B, `at_once` drawn in parallel."""
    keys = jax.random.split(key, count)
    return jax.lax.map(
        lambda k: make_clip(k, num_chunks, num_frames),
        keys,
        batch_size=min(at_once, count),
    )
