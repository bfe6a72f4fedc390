"""The driver's own car: a kinematic bicycle.

Wheel base, steering and speeds: NVIDIA/flashdreams, the interactive drive of
integrations_v2/omnidreams. Model: R. Rajamani, "Vehicle Dynamics and Control", 2012,
chapter 2.2, about the rear axle and without slip.
"""

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Array

WHEEL_BASE = 2.8  # m
MAX_STEERING = 0.5  # rad, of the front wheels
MAX_SPEED = 18.0  # m/s
MAX_REVERSE = 6.0  # m/s
FRAMES_PER_SECOND = 30

# Ours: a hand on the wheel is not a switch, and neither are the brakes.
_STEERING_RATE = 0.8  # rad/s
_ACCELERATION, _BRAKING, _ROLLING = 4.0, 8.0, 0.4  # m/s^2


@flax.struct.dataclass(kw_only=True)
class Ego:
    """Where the car is, and how it moves.

    Attributes:
        x: Of the rear axle, metres to the east.  float32[B].
        y: Metres to the north.  float32[B].
        heading: Radians from east to north.  float32[B].
        speed: Metres a second, below 0 backwards.  float32[B].
        steering: Of the front wheels, radians to the left.  float32[B].
        frame: Video frames since the start.  int32[B].
    """

    x: Array
    y: Array
    heading: Array
    speed: Array
    steering: Array
    frame: Array

    @property
    def time(self) -> Array:
        """Seconds since the start.  float32[B]."""
        return self.frame.astype(jnp.float32) / FRAMES_PER_SECOND


def advance(ego: Ego, control: Array) -> Ego:
    """The car one frame later.

    Args:
        ego: Before.
        control: (steering, throttle), clipped to [-1, 1]: to the left, and ahead; a
            throttle against the motion brakes.  float[B, 2].
    """
    control = jnp.clip(control, -1.0, 1.0).astype(jnp.float32)
    step = 1.0 / FRAMES_PER_SECOND
    turned = control[:, 0] * MAX_STEERING - ego.steering
    limit = _STEERING_RATE * step
    steering = ego.steering + jnp.clip(turned, -limit, limit)
    speed = _next_speed(ego.speed, control[:, 1], step)
    heading = ego.heading + speed / WHEEL_BASE * jnp.tan(steering) * step
    # The direction half way through the frame: second order in its length.
    middle = (ego.heading + heading) / 2
    return Ego(
        x=ego.x + speed * jnp.cos(middle) * step,
        y=ego.y + speed * jnp.sin(middle) * step,
        heading=heading,
        speed=speed,
        steering=steering,
        frame=ego.frame + 1,
    )


def drive(ego: Ego, controls: Array) -> tuple[Ego, Ego]:
    """The car after all frames of a chunk, and in each of them.

    Args:
        ego: Before.
        controls: See `advance`.  float[B, T, 2].

    Returns:
        The last state [B], and the states after each frame [B, T].
    """

    def step(ego: Ego, control: Array) -> tuple[Ego, Ego]:
        ego = advance(ego, control)
        return ego, ego

    # [B, T, 2] -> [T, B, 2]
    last, states = jax.lax.scan(step, ego, jnp.moveaxis(jnp.asarray(controls), 1, 0))
    # [T, B] -> [B, T]
    return last, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), states)


def _next_speed(speed: Array, throttle: Array, step: float) -> Array:
    """Speed after `step` seconds.  float32[B]."""
    braking = throttle * speed < 0
    rate = throttle * jnp.where(braking, _BRAKING, _ACCELERATION)
    driven = speed + rate * step
    # Brakes end at a stop, and so does a car that rolls out.
    driven = jnp.where(braking & (driven * speed < 0), 0.0, driven)
    rolling = jnp.sign(speed) * jnp.maximum(jnp.abs(speed) - _ROLLING * step, 0.0)
    speed = jnp.where(throttle == 0, rolling, driven)
    return jnp.clip(speed, -MAX_REVERSE, MAX_SPEED)
