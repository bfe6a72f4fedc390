"""What stands and moves on the streets: boxes near a point, at a time."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array
from fdjax_models.methods.omnidreams.road import colours
from fdjax_models.methods.omnidreams.road.world import (
    ALONG_U,
    ALONG_V,
    BLOCK,
    LANE,
    World,
    chance,
    half_width,
    nearest_street,
    num_lanes,
    tangent,
    to_map,
    to_streets,
)

_GAP = 19.0  # metres from one place for a vehicle to the next
_BEHIND, _AHEAD = 2, 5  # such places that are looked at
_STEP = 13.0  # the same for people
_CLEAR = 9.0  # metres around the driver without traffic
_FAR = 1e4  # metres; where boxes that are not there are

# Half of length, width and height in metres.
_SIZES = {
    "car": (2.3, 0.95, 0.8),
    "truck": (4.2, 1.25, 1.7),
    "cyclist": (0.9, 0.35, 0.9),
    "pedestrian": (0.3, 0.3, 0.88),
    "pole": (0.09, 0.09, 3.0),
    "light": (0.2, 0.2, 0.5),
    "sign": (0.06, 0.4, 0.4),
}


class Boxes(NamedTuple):
    """Boxes on the map, each [K].

    Attributes:
        x: Of the middle, metres to the east.
        y: Metres to the north.
        z: Metres above the ground.
        heading: Radians from east to north.
        half: Half of length, width and height, metres.  float32[K, 3].
        kind: Number of the class in `colours.NAMES`.  int32[K].
    """

    x: Array
    y: Array
    z: Array
    heading: Array
    half: Array
    kind: Array


def around(world: World, x: Array, y: Array, time: Array) -> Boxes:
    """All boxes near a point; those that are not there are far away.

    Args:
        world: Whose.
        x: Metres to the east.  float32[].
        y: Metres to the north.  float32[].
        time: Seconds.  float32[].

    Returns:
        The same number of boxes wherever that is.
    """
    u, v = to_streets(world, x, y)
    street, row = nearest_street(u), nearest_street(v)
    parts = [
        *_traffic(world, ALONG_V, street, (u, v), time, lanes=2),
        *_people(world, ALONG_V, street, v, time),
    ]
    for near in (row, row + 1, row - 1):
        parts += _traffic(world, ALONG_U, near, (v, u), time, lanes=1)
        parts += _corner(world, street, near)
    parts += _people(world, ALONG_U, row, u, time)
    return Boxes(*(jnp.concatenate(column) for column in zip(*parts, strict=True)))


def _traffic(
    world: World,
    kind: int,
    street: Array,
    point: tuple[Array, Array],
    time: Array,
    lanes: int,
) -> list[Boxes]:
    """Vehicles of one street; `point` is the driver's, across it and along it."""
    boxes = []
    for direction in (1, -1):
        for lane in range(lanes):
            salt = 31 + 8 * kind + 2 * lane + (direction > 0)
            speed = direction * (8.0 + 3.0 * lane)
            places = jnp.arange(-_BEHIND, _AHEAD + 1)
            # Whoever looks back sees the same places.
            places = places + jnp.floor((point[1] - speed * time) / _GAP).astype(int)
            number = places + 1009 * street
            jitter = chance(world.seed, number, salt) * 0.5 * _GAP
            along = places * _GAP + jitter + speed * time
            right = direction if kind == ALONG_V else -direction
            across = street * BLOCK + right * (lane + 0.5) * LANE
            there = chance(world.seed, number, salt + 64) < 0.55
            there &= lane < num_lanes(world, street, kind)
            clear = jnp.hypot(along - point[1], across - point[0]) > _CLEAR
            which = chance(world.seed, number, salt + 128)
            names = ["car", "truck", "cyclist"]
            type_ = (which > 0.72).astype(int) + (which > 0.88)
            boxes.append(
                _place(
                    world,
                    kind,
                    (across, along),
                    direction,
                    names,
                    type_,
                    there & clear,
                )
            )
    return boxes


def _people(
    world: World, kind: int, street: Array, along: Array, time: Array
) -> list[Boxes]:
    """Pedestrians on both pavements of a street."""
    boxes = []
    for side in (1, -1):
        salt = 301 + 2 * kind + (side > 0)
        speed = 1.3 * side
        places = jnp.arange(-1, 4)
        places = places + jnp.floor((along - speed * time) / _STEP).astype(int)
        number = places + 2003 * street
        at = places * _STEP + chance(world.seed, number, salt) * 0.8 * _STEP
        at += speed * time
        beside = half_width(world, street, kind) + 1.0
        beside += 1.5 * chance(world.seed, number, salt + 8)
        there = chance(world.seed, number, salt + 16) < 0.6
        across = street * BLOCK + side * beside
        names, type_ = ["pedestrian"], jnp.zeros_like(places)
        boxes.append(_place(world, kind, (across, at), side, names, type_, there))
    return boxes


def _corner(world: World, street: Array, row: Array) -> list[Boxes]:
    """Poles, traffic lights and signs at the four corners of a crossing."""
    sides = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])
    wide = half_width(world, street, ALONG_V) + 1.0
    long = half_width(world, row, ALONG_U) + 1.0
    across = street * BLOCK + sides[:, 0] * wide
    along = row * BLOCK + sides[:, 1] * long
    point, zero = (across, along), jnp.zeros(4, int)
    there = jnp.ones(4, bool)
    signs = (across, along + 0.4 * sides[:, 1])
    lit = chance(world.seed, street * 517 + row, 401) < 0.75
    return [
        _place(world, ALONG_V, point, 1, ["pole"], zero, there),
        _place(world, ALONG_V, point, 1, ["light"], zero, there & lit, 5.6),
        _place(world, ALONG_V, signs, 1, ["sign"], zero, there & ~lit, 2.6),
    ]


def _place(
    world: World,
    kind: int,
    point: tuple[Array, Array],
    direction: int,
    names: list[str],
    which: Array,
    there: Array,
    height: float = 0.0,
) -> Boxes:
    """Boxes across and along a street; `height` is that above the ground, 0: on it."""
    shape = there.shape
    across, along = (jnp.broadcast_to(jnp.float32(1) * part, shape) for part in point)
    u, v = (across, along) if kind == ALONG_V else (along, across)
    x, y = to_map(world, u, v)
    heading = tangent(world, x, y, kind) + (0.0 if direction > 0 else np.pi)
    sizes = jnp.array([_SIZES[name] for name in names], jnp.float32)
    numbers = jnp.array([colours.NAMES.index(name) for name in names])
    half = sizes[which]
    return Boxes(
        x=jnp.where(there, x, _FAR),
        y=jnp.where(there, y, _FAR),
        z=jnp.full(shape, height) if height else half[:, 2],
        heading=heading,
        half=half,
        kind=numbers[which],
    )
