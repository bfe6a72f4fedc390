"""Draws what a camera of the car sees, as an HD map: a pure function."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array
from fdjax_models.methods.omnidreams.road import colours, objects
from fdjax_models.methods.omnidreams.road.camera import CAMERAS, pixel_angle, rays
from fdjax_models.methods.omnidreams.road.ground import Footprint, paint
from fdjax_models.methods.omnidreams.road.vehicle import Ego
from fdjax_models.methods.omnidreams.road.world import World

DEPTH = 200.0
"""Metres behind which nothing is drawn, as in the reference's renderer."""

NUM_BOXES = 32
"""Boxes that are drawn at most: the nearest of those before the camera."""

_TINY = 1e-6


class _Seen(NamedTuple):
    """The nearest box in each pixel: its distance, where it is hit, and its class."""

    depth: Array
    share: Array
    kind: Array


@functools.partial(jax.jit, static_argnames=("camera", "height", "width"))
def render(world: World, ego: Ego, *, camera: str, height: int, width: int) -> Array:
    """The HD map that a camera sees, over black.

    The ground is smoothed by the footprint of its pixels; boxes have hard edges.

    Args:
        world: What there is.
        ego: One car; every attribute is a scalar.
        camera: A key of `CAMERAS`.
        height: Pixels.
        width: Pixels.

    Returns:
        float32[H, W, 3] in [-1, 1].
    """
    mounting = CAMERAS[camera]
    cos, sin = jnp.cos(ego.heading), jnp.sin(ego.heading)
    local = rays(mounting, height, width)
    # Ahead, left and up of the car -> east, north and up.  [H, W, 3]
    ray = jnp.stack(
        [
            cos * local[..., 0] - sin * local[..., 1],
            sin * local[..., 0] + cos * local[..., 1],
            jnp.asarray(local[..., 2]),
        ],
        axis=-1,
    )
    x = ego.x + cos * mounting.forward - sin * mounting.left
    y = ego.y + sin * mounting.forward + cos * mounting.left
    eye = jnp.stack([x, y, jnp.full_like(x, mounting.height)])
    picture, depth = _ground(world, eye, ray, pixel_angle(mounting, width))
    boxes = objects.around(world, x, y, ego.time)
    seen = _nearest(boxes, eye, ego.heading + np.deg2rad(mounting.yaw), mounting.field)
    picture = _draw_boxes(picture, depth, eye, ray, seen)
    return picture / 127.5 - 1


@functools.partial(jax.jit, static_argnames=("cameras", "height", "width"))
def render_frames(
    world: World, ego: Ego, *, cameras: tuple[str, ...], height: int, width: int
) -> Array:
    """The maps of several cameras and frames, one after the other.

    Args:
        world: What there is.
        ego: The car in every frame.  [T].
        cameras: Keys of `CAMERAS`.
        height: Pixels.
        width: Pixels.

    Returns:
        float32[V, T, H, W, 3] in [-1, 1].
    """
    size = {"height": height, "width": width}
    # A frame at a time: one is large enough to keep a processor busy.
    return jnp.stack(
        [
            jax.lax.map(lambda one, c=camera: render(world, one, camera=c, **size), ego)
            for camera in cameras
        ]
    )


def _ground(world: World, eye: Array, ray: Array, angle: float) -> tuple[Array, Array]:
    """The painted ground, and its distance.  [H, W, 3], [H, W]."""
    down = -ray[..., 2]
    distance = jnp.where(down > _TINY, eye[2] / jnp.maximum(down, _TINY), jnp.inf)
    seen = distance < DEPTH
    distance = jnp.where(seen, distance, DEPTH)
    point = eye[:2] + distance[..., None] * ray[..., :2]
    # A pixel is `distance * angle` wide, and longer by the slant along the ray.
    wide = distance * angle
    long = wide * distance / eye[2]
    flat = jnp.maximum(jnp.hypot(ray[..., 0], ray[..., 1]), _TINY)
    east, north = ray[..., 0] / flat, ray[..., 1] / flat
    footprint = Footprint(
        u=jnp.hypot(east * long, north * wide), v=jnp.hypot(north * long, east * wide)
    )
    picture = paint(world, point[..., 0], point[..., 1], footprint)
    return jnp.where(seen[..., None], picture, 0.0), jnp.where(seen, distance, DEPTH)


def _nearest(
    boxes: objects.Boxes, eye: Array, heading: Array, field: float
) -> objects.Boxes:
    """The `NUM_BOXES` nearest boxes in the field of view, in any order."""
    east, north = boxes.x - eye[0], boxes.y - eye[1]
    away = jnp.hypot(east, north)
    radius = jnp.hypot(boxes.half[:, 0], boxes.half[:, 1])
    turned = jnp.arctan2(north, east) - heading
    turned = jnp.abs(jnp.mod(turned + jnp.pi, 2 * jnp.pi) - jnp.pi)
    # Half the field across the corners, and the angle that the box spans.
    limit = np.deg2rad(field) * 0.6 + jnp.arctan2(radius, away)
    away = jnp.where((turned < limit) | (away < radius), away, jnp.inf)
    _, index = jax.lax.top_k(-away, min(NUM_BOXES, len(away)))
    return jax.tree.map(lambda leaf: leaf[index], boxes)


def _draw_boxes(
    picture: Array, depth: Array, eye: Array, ray: Array, boxes: objects.Boxes
) -> Array:
    """Draws boxes over a picture, nearer ones over farther ones."""
    east, north, up = (ray[..., axis] for axis in range(3))
    inverse_up = 1 / jnp.where(jnp.abs(up) < _TINY, _TINY, up)

    def draw(carry: _Seen, box: objects.Boxes) -> tuple[_Seen, None]:
        cos, sin = jnp.cos(box.heading), jnp.sin(box.heading)
        dx, dy = eye[0] - box.x, eye[1] - box.y
        # The eye and the rays in the axes of the box.
        origin = (cos * dx + sin * dy, cos * dy - sin * dx, eye[2] - box.z)
        along = cos * east + sin * north
        across = cos * north - sin * east
        inverses = (
            1 / jnp.where(jnp.abs(along) < _TINY, _TINY, along),
            1 / jnp.where(jnp.abs(across) < _TINY, _TINY, across),
            inverse_up,
        )
        # Slabs: where a ray enters and leaves all three pairs of planes.
        enter, leave = jnp.float32(0), carry.depth
        for start, inverse, half in zip(origin, inverses, box.half, strict=True):
            middle, reach = -start * inverse, half * jnp.abs(inverse)
            enter = jnp.maximum(enter, middle - reach)
            leave = jnp.minimum(leave, middle + reach)
        hit = (enter < leave) & (enter > 0)
        # From 0 at the rear to 1 at the front.
        share = (origin[0] + enter * along) / box.half[0] / 2 + 0.5
        seen = _Seen(
            depth=jnp.where(hit, enter, carry.depth),
            share=jnp.where(hit, share, carry.share),
            kind=jnp.where(hit, box.kind, carry.kind),
        )
        return seen, None

    nothing = jnp.full(depth.shape, -1, jnp.int32)
    first = _Seen(depth=depth, share=jnp.zeros_like(depth), kind=nothing)
    seen, _ = jax.lax.scan(draw, first, boxes)
    share = jnp.clip(seen.share, 0.0, 1.0)[..., None]
    for kind, tones in enumerate(colours.CLASSES.values()):
        rear, front = np.array(tones, np.float32)
        colour = rear * (1 - share) + front * share
        picture = jnp.where((seen.kind == kind)[..., None], colour, picture)
    return picture
