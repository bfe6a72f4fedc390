"""What is painted on the ground: lanes, crossings and the boundary of the road."""

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
    to_streets,
)

_LINE = 0.12  # half the width of a line, metres
_BOUNDARY = 0.2
_LEAST = 0.7  # half the width of a line that is far, pixels
_CORNER = 5.0  # radius by which the boundary cuts corners, metres
_CROSSWALK = (1.5, 5.0)  # from and to, metres behind the crossing
_WAIT_LINE = 6.0
_LANES_END = 7.0
_DASH, _DASHES = 3.0, 9.0  # length and period, metres


class Footprint(NamedTuple):
    """Metres that a pixel spans on the ground, across u and across v.  [H, W]."""

    u: Array
    v: Array


class _Street(NamedTuple):
    """One kind of street, seen from every pixel; each [H, W].

    Attributes:
        kind: `ALONG_V` or `ALONG_U`.
        offset: Metres across, from the middle of the nearest street.
        beside: Metres along, behind the edge of the nearest crossing street.
        along: Metres along.
        toward: Below 0 where traffic on this side of the street runs to the crossing.
        lanes: Of each direction.
        half: Half its width.
        number: Which street.
        across: Footprint across.
        length: Footprint along.
    """

    kind: int
    offset: Array
    beside: Array
    along: Array
    toward: Array
    lanes: Array
    half: Array
    number: Array
    across: Array
    length: Array


def paint(world: World, x: Array, y: Array, footprint: Footprint) -> Array:
    """Colours of points of the ground.

    Args:
        world: Whose.
        x: Metres to the east.  float32[H, W].
        y: Metres to the north.  float32[H, W].
        footprint: Of the pixels, by which lines are smoothed.

    Returns:
        float32[H, W, 3] in [0, 255].
    """
    u, v = to_streets(world, x, y)
    streets = [
        _street(world, ALONG_V, u, v, footprint),
        _street(world, ALONG_U, v, u, footprint._replace(u=footprint.v, v=footprint.u)),
    ]
    picture = jnp.zeros((*x.shape, 3))
    inside = [_edge(s.half - jnp.abs(s.offset), s.across) for s in streets]
    picture = _over(picture, colours.INTERSECTION, inside[0] * inside[1])
    for street, within in zip(streets, inside, strict=True):
        picture = _paint_street(world, picture, street, within)
    return _over(picture, colours.ROAD_BOUNDARY, _boundary(streets))


def _street(
    world: World, kind: int, across: Array, along: Array, footprint: Footprint
) -> _Street:
    """The nearest street of a kind; `footprint` is across it first, then along."""
    number, crossing = nearest_street(across), nearest_street(along)
    offset, to_crossing = across - number * BLOCK, along - crossing * BLOCK
    # To the north the right lanes are at positive u, to the east at negative v.
    right = offset if kind == ALONG_V else -offset
    return _Street(
        kind=kind,
        offset=offset,
        beside=jnp.abs(to_crossing) - half_width(world, crossing, 1 - kind),
        along=along,
        toward=to_crossing * right,
        lanes=num_lanes(world, number, kind),
        half=half_width(world, number, kind),
        number=number,
        across=footprint.u,
        length=footprint.v,
    )


def _paint_street(
    world: World, picture: Array, street: _Street, within: Array
) -> Array:
    """Lays the lines and areas of one kind of street over a picture."""
    offset, across = street.offset, street.across
    aside = jnp.abs(offset)
    first, last = _CROSSWALK
    band = _edge(street.beside - first, street.length) * _edge(
        last - street.beside, street.length
    )
    picture = _over(picture, colours.CROSSWALK, band * within)
    wait = _line(street.beside - _WAIT_LINE, street.length, _BOUNDARY)
    coming = (street.toward < 0).astype(jnp.float32)
    picture = _over(picture, colours.WAIT_LINE, wait * within * coming)

    lined = _edge(street.beside - _LANES_END, street.length) * within
    look = chance(world.seed, street.number, 21 + street.kind)
    dashed = lined * _dash(street)
    # The middle: an island, a dashed line or two solid ones.
    island = (street.lanes == 2) & (look < 0.35)
    middle = _edge(0.7 - aside, across) * lined * island
    middle *= _edge(street.beside - 12.0, street.length)
    picture = _over(picture, colours.ISLAND, middle)
    two = _line(aside - 0.2, across) * lined * ~island
    one = _line(offset, across) * dashed
    narrow = (street.lanes == 1) & (look > 0.5)
    picture = _over(picture, colours.YELLOW_LINE, jnp.where(narrow, one, two))
    between = _line(aside - LANE, across) * dashed * (street.lanes == 2)
    picture = _over(picture, colours.WHITE_LINE, between)
    edge = _line(aside - street.lanes * LANE, across) * lined
    solid = (look < 0.6)[..., None]
    colour = jnp.where(solid, np.array(colours.WHITE_LINE), np.array(colours.LANE_LINE))
    return _over(picture, colour, edge)


def _dash(street: _Street) -> Array:
    """Where dashed lines are drawn; their mean where dashes are below a pixel."""
    phase = jnp.mod(street.along, _DASHES) - _DASHES / 2
    drawn = _edge(_DASH / 2 - jnp.abs(phase), street.length)
    return jnp.where(street.length > _DASHES, _DASH / _DASHES, drawn)


def _boundary(streets: list[_Street]) -> Array:
    """Where the outline of the union of both kinds of street is."""
    first, second = (jnp.abs(s.offset) - s.half for s in streets)
    # A smooth minimum, which cuts the corners: I. Quilez, "smooth minimum" (quadratic).
    near = jnp.maximum(_CORNER - jnp.abs(first - second), 0.0) / _CORNER
    distance = jnp.minimum(first, second) - near * near * _CORNER / 4
    # The footprint across the line that is nearer, mixed in corners.
    mix = jnp.clip(0.5 + (second - first) / _CORNER / 2, 0.0, 1.0)
    width = mix * streets[0].across + (1 - mix) * streets[1].across
    return _line(distance, width, _BOUNDARY)


def _edge(distance: Array, width: Array) -> Array:
    """Share of a pixel in which `distance` is above 0."""
    return jnp.clip(0.5 + distance / width, 0.0, 1.0)


def _line(distance: Array, width: Array, half: float = _LINE) -> Array:
    """Share of a pixel that a line covers; far ones stay as wide as pixels."""
    half_seen = jnp.maximum(half, _LEAST * width)
    return _edge(half_seen - jnp.abs(distance), width)


def _over(picture: Array, colour: Array | tuple[int, ...], cover: Array) -> Array:
    """A colour laid over a picture."""
    cover = cover[..., None]
    return picture * (1 - cover) + jnp.asarray(colour, jnp.float32) * cover
