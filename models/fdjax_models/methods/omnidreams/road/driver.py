"""Who drives: keys, or somebody who keeps to the lane."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array
from fdjax.run.controls import Controls
from fdjax_models.methods.omnidreams.road.vehicle import MAX_STEERING, Ego, advance
from fdjax_models.methods.omnidreams.road.world import (
    ALONG_V,
    LANE,
    World,
    tangent,
    to_streets,
)

KEYS = {"w": (0, 1), "s": (0, -1), "a": (1, 0), "d": (-1, 0)}
"""Key -> (steering, throttle)."""

ACTIONS = {
    "w": "accelerate",
    "s": "brake, then reverse",
    "a": "steer left",
    "d": "steer right",
    ".": "no key",
}
"""What each key does, in words."""

CRUISE = 11.0
"""Metres a second of somebody who keeps to the lane: 40 km/h."""


def held_controls(script: Controls, first: int, count: int) -> np.ndarray:
    """(steering, throttle) of `count` frames from `first` on.  float32[T, 2].

    Args:
        script: Keys, or an array of (steering, throttle); nothing behind its end.
        first: Frame of the session.
        count: Frames.
    """

    def held(frame: int) -> np.ndarray:
        if script.array is not None:
            clock = script.clock(frame)
            return np.zeros(2) if clock is None else script.array[clock]
        # Opposite keys cancel.
        return np.sum([(0, 0), *(KEYS[key] for key in script.keys_at(frame))], 0)

    frames = range(first, first + count)
    return np.array([held(frame) for frame in frames], np.float32)


@functools.partial(jax.jit, static_argnames="num_frames")
def keep_lane(world: World, ego: Ego, num_frames: int) -> tuple[Ego, Array]:
    """Somebody drives along the street in the right lane.

    Args:
        world: Where.
        ego: Before.  [B].
        num_frames: How long.

    Returns:
        The car after that, and the controls that took it there, for `vehicle.drive`,
        float32[B, num_frames, 2].
    """

    def step(ego: Ego, _: None) -> tuple[Ego, Array]:
        control = _lane_control(world, ego)
        return advance(ego, control), control

    ego, controls = jax.lax.scan(step, ego, None, length=num_frames)
    # [T, B, 2] -> [B, T, 2]
    return ego, jnp.moveaxis(controls, 0, 1)


def _lane_control(world: World, ego: Ego) -> Array:
    """(steering, throttle) towards the middle of the lane.  float32[B, 2].

    Steering by the errors of place and heading: G. Hoffmann et al., "Autonomous
    Automobile Trajectory Tracking for Off-Road Driving", 2007 (the Stanley controller).
    """
    u, _ = to_streets(world, ego.x, ego.y)
    error = u - LANE / 2
    turned = ego.heading - tangent(world, ego.x, ego.y, ALONG_V)
    turned = jnp.mod(turned + jnp.pi, 2 * jnp.pi) - jnp.pi
    speed = jnp.maximum(jnp.abs(ego.speed), 1.0)
    steering = jnp.arctan(0.8 * error / speed) - turned
    throttle = 0.5 * (CRUISE - ego.speed)
    control = jnp.stack([steering / MAX_STEERING, throttle], axis=-1)
    return jnp.clip(control, -1.0, 1.0)
