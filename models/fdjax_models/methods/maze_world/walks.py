"""Random walks through a maze, as a player might make them; training data.

A walk is a list of segments of random length: run ahead, turn, walk a curve, look away
and back, step back, rest. Half of the walkers look where they go and turn away from a
wall; the others also run into it and keep pushing.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from fdjax_models.methods.maze_world import simulator
from fdjax_models.methods.maze_world.simulator import Pose, World

# Columns: share, forward, turn left (times a random sign), fewest and most frames, and
# whether the segment is then undone by the opposite turn.
_SEGMENTS = jnp.array(
    [
        [0.32, 1, 0, 8, 36, 0],
        [0.16, 1, 1, 4, 20, 0],
        [0.22, 0, 1, 4, 30, 0],
        [0.16, 0, 1, 8, 26, 1],
        [0.05, -1, 0, 4, 14, 0],
        [0.03, -1, 1, 4, 12, 0],
        [0.06, 0, 0, 2, 8, 0],
    ]
)
_CAREFUL_SHARE = 0.5
_NEAR_WALL = 0.75
"""Free distance in cells under which a careful walker turns."""


@flax.struct.dataclass(kw_only=True)
class _Walker:
    """State of a walk: pose, and the segment being walked."""

    pose: Pose
    control: jax.Array
    frames_left: jax.Array
    frames_to_undo: jax.Array


@flax.struct.dataclass(kw_only=True)
class _Draw:
    """Random numbers for one frame, used if a segment ends there."""

    kind: jax.Array
    sign: jax.Array
    length: jax.Array


def random_walk(
    key: jax.Array, world: World, pose: Pose, num_frames: int
) -> tuple[jax.Array, Pose]:
    """Walks at random.

    Args:
        key: A PRNG key.
        world: The maze.
        pose: Where to start.
        num_frames: Frames to walk, T.

    Returns:
        The controls, float32[T, 2], and the poses after each, stacked along T.
    """
    key_kind, key_sign, key_length, key_careful = jax.random.split(key, 4)
    shape = (num_frames,)
    # [T] each, drawn at once, so that the scan's body holds no key.
    draws = _Draw(
        kind=jax.random.categorical(key_kind, jnp.log(_SEGMENTS[:, 0]), shape=shape),
        sign=jax.random.rademacher(key_sign, shape, jnp.float32),
        length=jax.random.uniform(key_length, shape),
    )
    careful = jax.random.bernoulli(key_careful, _CAREFUL_SHARE)
    nothing = jnp.int32(0)
    walker = _Walker(
        pose=pose, control=jnp.zeros(2), frames_left=nothing, frames_to_undo=nothing
    )

    def step(walker: _Walker, draw: _Draw) -> tuple[_Walker, tuple[jax.Array, Pose]]:
        walker = _next_segment(walker, draw)
        walker = _avoid_wall(walker, draw, world, careful)
        pose = simulator.move(world, walker.pose, walker.control)
        walker = dataclasses.replace(
            walker, pose=pose, frames_left=walker.frames_left - 1
        )
        return walker, (walker.control, pose)

    return jax.lax.scan(step, walker, draws)[1]


def _next_segment(walker: _Walker, draw: _Draw) -> _Walker:
    """Starts the next segment, or the undoing of the last one, if that has ended."""
    _, forward, turn, fewest, most, is_undone = _SEGMENTS[draw.kind]
    # Fewest to most frames, both included.
    length = jnp.floor(fewest + draw.length * (most + 1 - fewest)).astype(jnp.int32)
    undo = walker.frames_to_undo
    # The same way forward, the opposite turn.  [2]
    back = jnp.array([1.0, -1.0]) * walker.control
    fresh = jnp.stack([forward, turn * draw.sign])
    ended = walker.frames_left == 0
    undone = jnp.where(is_undone > 0, length, 0)
    return dataclasses.replace(
        walker,
        control=jnp.where(ended, jnp.where(undo > 0, back, fresh), walker.control),
        frames_left=jnp.where(
            ended, jnp.where(undo > 0, undo, length), walker.frames_left
        ),
        frames_to_undo=jnp.where(ended, jnp.where(undo > 0, 0, undone), undo),
    )


def _avoid_wall(
    walker: _Walker, draw: _Draw, world: World, careful: jax.Array
) -> _Walker:
    """Turns a careful walker that walks up to a wall, to its more open side."""
    pose = walker.pose
    ahead = simulator.clearance(world, pose, jnp.float32(0.0))
    left = simulator.clearance(world, pose, jnp.float32(jnp.pi / 2))
    right = simulator.clearance(world, pose, jnp.float32(-jnp.pi / 2))
    # Left and right alike, as in a dead end: by lot.
    side = jnp.where(left == right, draw.sign, jnp.sign(left - right))
    turning = careful & (walker.control[0] > 0) & (ahead < _NEAR_WALL)
    # 10 to 25 frames: 37.5 to 94 degrees.
    length = (10 + draw.length * 16).astype(jnp.int32)
    return dataclasses.replace(
        walker,
        control=jnp.where(turning, jnp.stack([0.0, side]), walker.control),
        frames_left=jnp.where(turning, length, walker.frames_left),
        frames_to_undo=jnp.where(turning, 0, walker.frames_to_undo),
    )
