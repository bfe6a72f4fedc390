"""The world: a grid of bent streets without an end, made of nothing but a seed.

Streets are straight in street coordinates (u, v), which are the map's (x, y), bent by
gentle waves. Everything else of a street follows from its number by hashing, so that
no part of the world has to be stored. Traffic keeps to the right.
"""

import flax.struct
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array
from fdjax_models.methods.omnidreams.road.vehicle import Ego

BLOCK = 84.0
"""Metres from one crossing to the next."""

LANE = 3.5
"""Width of a lane in metres."""

SHOULDER = 0.8
"""Metres between the last lane and the boundary of the road."""

ALONG_V, ALONG_U = 0, 1
"""Kinds of street: of constant u, to the north; of constant v, to the east."""

_BEND, _WAVE = 5.0, 70.0  # metres; a slope of 1 in 14
_INVERSE_STEPS = 4  # each makes the error 14 times smaller


@flax.struct.dataclass(kw_only=True)
class World:
    """One world.

    Attributes:
        seed: Names it.  uint32[].
        phase: Of the waves that bend the streets, radians.  float32[2].
    """

    seed: Array
    phase: Array


def make_world(seed: Array | int) -> World:
    """The world of a seed.  uint32[]."""
    seed = jnp.asarray(seed).astype(jnp.uint32)
    salts = jnp.array([101, 102], jnp.int32)
    return World(seed=seed, phase=2 * np.pi * chance(seed, salts, 0))


def start(world: World, batch: int) -> Ego:
    """Cars at rest in the right lane of the street northwards, before a crossing."""
    u, v = jnp.float32(LANE / 2), jnp.float32(-0.72 * BLOCK)
    x, y = to_map(world, u, v)

    def every(value: Array) -> Array:
        return jnp.full((batch,), value, jnp.float32)

    return Ego(
        x=every(x),
        y=every(y),
        heading=every(tangent(world, x, y, ALONG_V)),
        speed=every(jnp.float32(8.0)),
        steering=every(jnp.float32(0)),
        frame=jnp.zeros((batch,), jnp.int32),
    )


def chance(seed: Array, number: Array, salt: int) -> Array:
    """A number in [0, 1) for every integer: the murmur3 finaliser of all three.

    Args:
        seed: uint32[].
        number: int32[...].
        salt: Tells questions about one number apart.
    """
    bits = number.astype(jnp.uint32) * np.uint32(0x9E3779B1)
    bits = bits ^ (seed * np.uint32(0x85EBCA77) + np.uint32(salt * 0xC2B2AE3D % 2**32))
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    bits = bits ^ (bits >> 16)
    return (bits >> 8).astype(jnp.float32) / 2**24


def to_streets(world: World, x: Array, y: Array) -> tuple[Array, Array]:
    """Street coordinates (u, v) of points of the map, metres."""
    u = x + _BEND * jnp.sin(y / _WAVE + world.phase[0])
    v = y + _BEND * jnp.sin(x / _WAVE + world.phase[1])
    return u, v


def to_map(world: World, u: Array, v: Array) -> tuple[Array, Array]:
    """The inverse of `to_streets`, to a millimetre."""
    x, y = u, v
    for _ in range(_INVERSE_STEPS):
        x, y = (
            u - _BEND * jnp.sin(y / _WAVE + world.phase[0]),
            v - _BEND * jnp.sin(x / _WAVE + world.phase[1]),
        )
    return x, y


def tangent(world: World, x: Array, y: Array, kind: int) -> Array:
    """Heading of a street at points of the map, radians."""
    slope = _BEND / _WAVE
    if kind == ALONG_V:
        sideways = -slope * jnp.cos(y / _WAVE + world.phase[0])
        return jnp.arctan2(jnp.ones_like(sideways), sideways)
    sideways = -slope * jnp.cos(x / _WAVE + world.phase[1])
    return jnp.arctan2(sideways, jnp.ones_like(sideways))


def nearest_street(coordinate: Array) -> Array:
    """Number of the street nearest to u, or to v.  int32[...]."""
    return jnp.round(coordinate / BLOCK).astype(jnp.int32)


def num_lanes(world: World, street: Array, kind: int) -> Array:
    """Lanes of each direction, 1 or 2.  int32[...]."""
    wide = chance(world.seed, street, 11 + kind) < (0.7 if kind == ALONG_V else 0.4)
    return jnp.where(wide, 2, 1)


def half_width(world: World, street: Array, kind: int) -> Array:
    """Metres from the middle of a street to its boundary."""
    return num_lanes(world, street, kind) * LANE + SHOULDER
