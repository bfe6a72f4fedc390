"""Draws what a pose sees: a ray caster with procedural, filtered textures.

One ray per image column walks the grid (Amanatides and Woo, "A fast voxel traversal
algorithm", 1987); walls, floor and sky are then shaded per pixel. Texture detail fades
with the size of a pixel on the surface, in place of a mip map, so that far walls do
not shimmer. Colours are linear numbers in [0, 1] until the last line.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fdjax_models.methods.maze_world import simulator
from fdjax_models.methods.maze_world.simulator import Pose, World

HEIGHT = 96
WIDTH = 160
SUPERSAMPLING = 2
"""Rays per image column; rows need none, since wall edges are blended."""
HALF_WIDTH_TANGENT = float(np.tan(np.deg2rad(75.0 / 2)))
"""Tangent of half the horizontal field of view, 75 degrees."""
HALF_HEIGHT_TANGENT = HALF_WIDTH_TANGENT * HEIGHT / WIDTH
MAX_CELLS = 16
"""Grid lines a ray crosses before it counts as a hit far away."""

# RGB of walls, in the order of text.SLOTS["colour"].
_COLOURS = np.array(
    [
        [0.74, 0.20, 0.16],
        [0.88, 0.72, 0.18],
        [0.22, 0.60, 0.22],
        [0.20, 0.36, 0.82],
        [0.56, 0.24, 0.66],
        [0.88, 0.88, 0.86],
    ],
    np.float32,
)
# Rows: day, dusk, night.
_LIGHT = np.array([[1.0, 1.0, 1.0], [0.95, 0.70, 0.55], [0.42, 0.48, 0.68]], np.float32)
# Low is at the horizon, high from a slope of 0.5 upwards; rows as above.
_SKY_LOW = np.array(
    [[0.72, 0.86, 0.97], [0.98, 0.60, 0.34], [0.11, 0.14, 0.27]], np.float32
)
_SKY_HIGH = np.array(
    [[0.30, 0.55, 0.92], [0.36, 0.24, 0.46], [0.02, 0.03, 0.09]], np.float32
)
_CLOUD = np.array(
    [[0.98, 0.98, 1.00], [1.00, 0.78, 0.55], [0.22, 0.25, 0.38]], np.float32
)
_FOG = np.array(
    [[0.80, 0.83, 0.86], [0.78, 0.60, 0.52], [0.17, 0.19, 0.28]], np.float32
)
# Per cell of distance: clear, foggy.
_FOG_DENSITY = np.array([0.05, 0.42], np.float32)
_FLOOR = np.array([0.52, 0.48, 0.43], np.float32)


def _hash(*parts: jax.Array) -> jax.Array:
    """Returns uniform numbers in [0, 1) that depend on integers (lowbias32 mixing).

    Source of the mixer: github.com/skeeto/hash-prospector.
    """
    # 2**32 over the golden ratio, a start without a pattern; lowbias32's two factors.
    x = jnp.uint32(0x9E3779B9)
    for part in parts:
        x = (x ^ part.astype(jnp.uint32)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        x = x ^ (x >> 16)
    # 24 bits, as many as float32 holds exactly: never rounded up to 1.
    return (x >> 8).astype(jnp.float32) * (1.0 / (1 << 24))


def _line(distance: jax.Array, half_width: float, pixel: jax.Array) -> jax.Array:
    """Returns the coverage in [0, 1] of a line by a pixel of width `pixel`."""
    # Half the width of the ramp at each side; a line thinner than a pixel is fainter
    # rather than wider.
    edge = 0.5 * pixel + 0.01
    return jnp.clip(
        (half_width + edge - distance) / (2 * edge), 0.0, 1.0
    ) * jnp.minimum(1.0, 2 * half_width / (pixel + half_width))


def _blocks(
    u: jax.Array,
    v: jax.Array,
    pixel: jax.Array,
    pixel_along: jax.Array,
    *,
    rows: float,
    columns: float,
    joint: float,
    shift: float,
    joint_level: float,
) -> jax.Array:
    """Returns the brightness of a wall of blocks with joints, around 1.

    Args:
        u: Along the wall, in cells.
        v: Up the wall, in [0, 1].
        pixel: Height of a pixel on the wall, in cells.
        pixel_along: Its width there, which grows as the wall is seen at an angle.
        rows: Blocks from floor to top.
        columns: Blocks in a cell.
        joint: Half the width of a joint, in cells.
        shift: How far every second row is moved, in blocks.
        joint_level: Brightness of a joint.
    """
    row = jnp.floor(v * rows)
    # In blocks, as `to_side` is before it is divided: a cell has `columns` of them.
    along = u * columns + shift * (row % 2)
    to_side = jnp.abs(along - jnp.round(along)) / columns
    to_bed = jnp.abs(v * rows - jnp.round(v * rows)) / rows
    upright = _line(to_side, joint, pixel_along)
    cover = jnp.maximum(upright, _line(to_bed, joint, pixel))
    return 1 + cover * (joint_level - 1)


def _wall_tone(
    material: jax.Array,
    u: jax.Array,
    v: jax.Array,
    pixel: jax.Array,
    pixel_along: jax.Array,
) -> jax.Array:
    """Returns the brightness of a wall around 1, by material (`text.SLOTS`).

    Every cell has the same pattern, so that a wall can be foretold from its material
    and place.
    """
    tau = 2 * jnp.pi
    blocks = functools.partial(_blocks, u, v, pixel, pixel_along)
    # Detail is down to 1 / e where a pixel covers a quarter of a cell.
    fade, fade_along = (jnp.exp(-((4.0 * size) ** 2)) for size in (pixel, pixel_along))
    brick = blocks(rows=5.0, columns=2.0, joint=0.02, shift=0.5, joint_level=1.5)
    stone = blocks(rows=2.0, columns=1.0, joint=0.045, shift=0.5, joint_level=0.3)
    planks = blocks(rows=1.0, columns=4.0, joint=0.025, shift=0.0, joint_level=0.35)
    grain = jnp.sin(tau * (2 * v + 0.25 * jnp.sin(tau * u)))
    wood = planks * (1 + 0.14 * fade_along * grain)
    leaves = jnp.sin(tau * (2 * u + v)) * jnp.sin(tau * (2.5 * v - u) + 1.0)
    leaves = leaves + 0.6 * jnp.sin(tau * (2 * u - 3 * v) + 2.0)
    hedge = 0.85 + 0.4 * fade_along * leaves
    metal = 0.95 + 0.35 * fade * jnp.sin(tau * 4.0 * v)
    seam = _line(jnp.abs(u - jnp.round(u)), 0.05, pixel_along)
    metal = metal + seam * (0.3 - metal)
    # [5, H, W] in the order of text.SLOTS["material"]; weights [5] -> [H, W]
    choices = jnp.stack([brick, stone, wood, hedge, metal])
    return jnp.tensordot(jax.nn.one_hot(material, 5), choices, axes=1)


def _cast(world: World, pose: Pose) -> tuple[jax.Array, ...]:
    """Walks one ray per column to its first wall.

    Returns:
        (direction [W, 2], with length such that a step of 1 is one cell of depth;
        depth [W]; u [W], position along the wall in cells; face [W] in {0, 1}, the
        axis across the wall; cell [W, 2], int32).
    """
    columns = WIDTH * SUPERSAMPLING
    # [W] in (-1, 1), left to right; W counts rays here
    offset = (jnp.arange(columns) + 0.5) / columns * 2 - 1
    forward = simulator.heading(pose.yaw)
    # (cos, -sin) turned a quarter to the right; y counts downwards.
    right = jnp.stack([-forward[1], forward[0]])
    # [2] + [W, 1] * [2] -> [W, 2]
    direction = forward + offset[:, None] * HALF_WIDTH_TANGENT * right
    # A ray along a grid line would divide by zero.
    direction = jnp.where(jnp.abs(direction) < 1e-6, 1e-6, direction)
    step = jnp.where(direction > 0, 1, -1)
    cell = jnp.broadcast_to(jnp.floor(pose.position), direction.shape)
    # [W, 2]: depth of the next grid line across x and across y, and from line to line
    reach = (cell + (step > 0) - pose.position) / direction
    stride = jnp.abs(1.0 / direction)

    def cross(_: int, state: tuple) -> tuple:
        cell, reach, depth, face, hit = state
        # The nearer line is crossed.  [W], and [W, 2] as 0 or 1
        axis = (reach[:, 1] < reach[:, 0]).astype(jnp.int32)
        pick = jax.nn.one_hot(axis, 2, dtype=jnp.int32)
        next_cell = cell + step * pick
        next_depth = jnp.where(axis == 0, reach[:, 0], reach[:, 1])
        bounded = jnp.clip(next_cell, 0, simulator.GRID - 1)
        solid = world.walls[bounded[:, 1], bounded[:, 0]]
        # Rays that have hit stay; all take MAX_CELLS turns, as the loop has one length.
        moving = ~hit
        return (
            jnp.where(moving[:, None], next_cell, cell),
            jnp.where(moving[:, None], reach + stride * pick, reach),
            jnp.where(moving, next_depth, depth),
            jnp.where(moving, axis, face),
            hit | solid,
        )

    zeros = jnp.zeros(columns)
    state = (cell.astype(jnp.int32), reach, zeros, zeros.astype(jnp.int32), zeros > 0)
    cell, _, depth, face, _ = jax.lax.fori_loop(0, MAX_CELLS, cross, state)
    depth = jnp.maximum(depth, 1e-3)
    point = pose.position + depth[:, None] * direction
    # A wall across x runs along y, and the other way round.
    u = jnp.where(face == 0, point[:, 1], point[:, 0])
    return direction, depth, u, face, cell


def _sky(light: jax.Array, yaw: jax.Array, elevation: jax.Array) -> jax.Array:
    """Returns the sky's colour: a gradient, clouds, and a sun or moon in the east.

    Args:
        light: Index of the light.
        yaw: Heading of each pixel, in radians.  [H, W].
        elevation: Tangent of the angle above the horizon.  [H, W].
    """
    # [3] each; with [H, W, 1] below -> [H, W, 3]
    low, high, cloud = (jnp.array(x)[light] for x in (_SKY_LOW, _SKY_HIGH, _CLOUD))
    rise = jnp.clip(elevation / 0.5, 0.0, 1.0)[..., None]
    colour = low + (high - low) * rise
    # Whole multiples of the yaw, so that clouds close after a turn.
    wave = (
        jnp.sin(3 * yaw + 0.7)
        + jnp.sin(5 * yaw - 9 * elevation)
        + jnp.sin(2 * yaw + 14 * elevation + 1.3)
    )
    colour = colour + (cloud - colour) * jax.nn.sigmoid(2.5 * wave - 2.5)[..., None]
    # In (-pi, pi], however often the walker has turned.
    aside = jnp.arctan2(jnp.sin(yaw), jnp.cos(yaw))
    squared = aside**2 + (elevation - 0.3) ** 2
    disc = jnp.clip((0.085 - jnp.sqrt(squared)) / 0.02, 0.0, 1.0)
    shine = jnp.maximum(disc, 0.5 * jnp.exp(-squared / 0.05))[..., None]
    return colour + (jnp.array([1.0, 0.97, 0.85]) - colour) * shine


def render(world: World, pose: Pose) -> jax.Array:
    """Returns the image that a pose sees.

    Args:
        world: The maze.
        pose: The camera's pose, outside walls.

    Returns:
        RGB in [-1, 1].  float32[96, 160, 3].
    """
    _, material, light, air = world.style
    direction, depth, u, face, cell = _cast(world, pose)
    # [H, 1]: tangent of the angle above the horizon, at pixel centres.
    slope = (0.5 - (jnp.arange(HEIGHT) + 0.5) / HEIGHT)[:, None] * (
        2 * HALF_HEIGHT_TANGENT
    )
    # Of one row; times a depth, the height of a pixel there in cells.  [W]
    pixel_slope = 2 * HALF_HEIGHT_TANGENT / HEIGHT
    pixel = depth * pixel_slope

    salt = _hash(cell[:, 0], cell[:, 1], face, world.salt)
    base = jnp.array(_COLOURS)[world.style[0]]
    # [H, W]: walls are one cell high, the eye is half way up
    v = jnp.clip(0.5 + slope * depth, 0.0, 0.999)
    across = jnp.where(face == 0, direction[:, 0], direction[:, 1])
    # The wall recedes from pixel to pixel as 1 / cos of the angle it is met at.
    slant = jnp.linalg.norm(direction, axis=-1) / jnp.abs(across)
    # [H, W]
    tone = _wall_tone(material, u[None], v, pixel[None], (pixel * slant)[None])
    # [W], then [H, W]: walls across y are darker than those across x, cells differ by
    # their salt, and every wall is darkest at its foot.
    shade = jnp.where(face == 0, 1.0, 0.72) * (0.86 + 0.28 * salt)
    shade = shade * (0.82 + 0.18 * jnp.clip(v / 0.35, 0.0, 1.0))
    wall = jnp.clip(base * (tone * shade)[..., None], 0.0, 1.0)

    # [H, 1]: where a ray below the horizon meets the floor; finite at the horizon
    ground_depth = 0.5 / jnp.maximum(-slope, 0.25 * pixel_slope)
    # [2] + [H, 1, 1] * [1, W, 2] -> [H, W, 2]
    ground = pose.position + ground_depth[..., None] * direction[None]
    # Length of a pixel on the floor: the derivative of 0.5 / slope.
    ground_pixel = ground_depth**2 * pixel_slope / 0.5
    tile = jnp.floor(ground).astype(jnp.int32)
    # A chequerboard, +-0.5, which fades as tiles shrink to a pixel.
    parity = ((tile[..., 0] + tile[..., 1]) % 2).astype(jnp.float32) - 0.5
    level = 1 + 0.4 * parity * jnp.clip(1.4 - ground_pixel, 0.0, 1.0)
    floor = jnp.array(_FLOOR) * level[..., None]

    lamp = jnp.array(_LIGHT)[light]
    fog = jnp.array(_FOG)[light]
    density = jnp.array(_FOG_DENSITY)[air]

    def in_air(colour: jax.Array, distance: jax.Array) -> jax.Array:
        return fog + (colour * lamp - fog) * jnp.exp(-density * distance)[..., None]

    # [W]; right of the middle is a smaller yaw
    yaw = pose.yaw - jnp.arctan(
        jnp.linspace(-1, 1, WIDTH * SUPERSAMPLING) * HALF_WIDTH_TANGENT
    )
    sky = _sky(light, yaw[None], jnp.broadcast_to(slope, v.shape))
    sky = sky + (fog - sky) * jnp.where(air == 1, 0.75, 0.0)
    # Sky above the horizon, floor below.  [H, W, 3]
    behind = jnp.where(
        slope[..., None] > 0, sky, in_air(floor, jnp.minimum(ground_depth, 20.0))
    )
    # [H, W]: share of the pixel on the wall, whose edges have slopes +-0.5 / depth
    cover = jnp.clip((0.5 / depth - jnp.abs(slope)) / pixel_slope + 0.5, 0.0, 1.0)
    image = behind + (in_air(wall, depth[None]) - behind) * cover[..., None]
    # [H, WIDTH * SUPERSAMPLING, 3] -> [H, WIDTH, SUPERSAMPLING, 3] -> [H, WIDTH, 3]
    image = image.reshape(HEIGHT, WIDTH, SUPERSAMPLING, 3).mean(2)
    return jnp.clip(image, 0.0, 1.0) * 2 - 1


def render_walk(world: World, poses: Pose) -> jax.Array:
    """Returns the image of each pose of a walk.  float32[T, 96, 160, 3]."""
    return jax.vmap(lambda pose: render(world, pose))(poses)
