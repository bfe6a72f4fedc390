"""The maze simulator: random mazes, a camera that walks in them, collisions.

Pure functions of arrays without a batch axis: use `jax.vmap` for more. It makes the
training data of maze-world and is the ground truth that its quality is measured
against. `rendering.py` turns a pose into an image.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp

from fdjax_models.methods.maze_world import text

HALF_GRID = 6
GRID = 2 * HALF_GRID + 1
"""Cells along a side; odd rows and columns are rooms, even ones walls or doors."""
FRAMES_PER_SECOND = 12
FORWARD_STEP = 0.09
"""Cells walked in one frame."""
TURN_STEP = math.pi / 48
"""Radians turned in one frame: 3.75 degrees, 45 degrees a second."""
BODY_RADIUS = 0.28
"""Distance from a wall, in cells, at which the walker stops."""
OPEN_WALL_PROBABILITY = 0.45
"""Share of the perfect maze's walls that are taken out, which makes loops and halls."""
_FOG_SHARE = 0.3


@flax.struct.dataclass(kw_only=True)
class World:
    """One maze.

    Attributes:
        walls: True where a cell is solid; the border always is.  bool[GRID, GRID].
        style: Index of the word in each slot of `text.SLOTS`.  int32[4].
        salt: Varies the brightness of each cell's walls.  uint32[].
    """

    walls: jax.Array
    style: jax.Array
    salt: jax.Array


@flax.struct.dataclass(kw_only=True)
class Pose:
    """Where the camera is.

    Attributes:
        position: (x, y) in cells; x counts columns, y rows.  float32[2].
        yaw: Heading in radians; 0 looks along +x, positive turns left on screen.
            float32[].
    """

    position: jax.Array
    yaw: jax.Array


def random_style(key: jax.Array) -> jax.Array:
    """Returns a word of each slot, uniform but for the air (30 % fog).  int32[4]."""
    key_words, key_air = jax.random.split(key)
    sizes = jnp.array([len(words) for words in text.SLOTS.values()])
    # [4]; the air is last, and foggy its second word
    style = jax.random.randint(key_words, sizes.shape, 0, sizes)
    return style.at[-1].set(jax.random.bernoulli(key_air, _FOG_SHARE).astype(jnp.int32))


def random_world(key: jax.Array, style: jax.Array | None = None) -> World:
    """Returns a random maze in which every room can be reached.

    The maze is a "binary tree" (every room opens a door up or left), whose remaining
    inner walls are then taken out with `OPEN_WALL_PROBABILITY`.

    Args:
        key: A PRNG key.
        style: Style indices, or None to draw them.  int32[4].
    """
    key_door, key_open, key_style, key_salt = jax.random.split(key, 4)
    n = HALF_GRID
    rooms = jnp.arange(n)
    # [n, n] rooms: a door upwards, else one to the left. The top row has no up, the
    # left column no left, and the corner room neither.
    up = jax.random.bernoulli(key_door, 0.5, (n, n))
    up = jnp.where(rooms[:, None] == 0, False, up)
    up = jnp.where((rooms[None, :] == 0) & (rooms[:, None] > 0), True, up)
    left = ~up & (rooms[None, :] > 0)
    # [2, n, n]: the walls above rooms, and those to their left
    taken = jax.random.bernoulli(key_open, OPEN_WALL_PROBABILITY, (2, n, n))
    up |= taken[0] & (rooms[:, None] > 0)
    left |= taken[1] & (rooms[None, :] > 0)
    walls = jnp.ones((GRID, GRID), bool)
    # The rooms, then the cells above them, then those to their left; where rows and
    # columns of walls cross, the cell stays solid.
    walls = walls.at[1::2, 1::2].set(False)
    walls = walls.at[0:-1:2, 1::2].set(~up)
    walls = walls.at[1::2, 0:-1:2].set(~left)
    return World(
        walls=walls,
        style=random_style(key_style) if style is None else style,
        salt=jax.random.bits(key_salt, (), jnp.uint32),
    )


def random_pose(key: jax.Array, world: World) -> Pose:
    """Returns a pose in the middle of a random room, looking down an open way.

    The heading is one of the four directions, an open one, plus up to 20 degrees.
    """
    key_room, key_heading, key_jitter = jax.random.split(key, 3)
    # (x, y), odd numbers
    room = 2 * jax.random.randint(key_room, (2,), 0, HALF_GRID) + 1
    # [4, 2]: headings of 0, 90, 180 and 270 degrees to the left; y counts downwards
    steps = jnp.array([[1, 0], [0, -1], [-1, 0], [0, 1]])
    ahead = room + steps
    # [4], by row and column, which is (y, x)
    is_open = ~world.walls[ahead[:, 1], ahead[:, 0]]
    logits = jnp.where(is_open, 0.0, -jnp.inf)
    quarter = jax.random.categorical(key_heading, logits)
    jitter = jax.random.uniform(key_jitter, (), minval=-1.0, maxval=1.0)
    return Pose(
        position=room.astype(jnp.float32) + 0.5,
        yaw=quarter * (jnp.pi / 2) + jitter * jnp.deg2rad(20.0),
    )


def heading(yaw: jax.Array) -> jax.Array:
    """Returns the unit vector that a yaw looks along.  float32[..., 2].

    Rows count downwards, so that a left turn makes y smaller.
    """
    return jnp.stack([jnp.cos(yaw), -jnp.sin(yaw)], axis=-1)


def is_blocked(world: World, position: jax.Array) -> jax.Array:
    """Returns whether the walker's body at `position` would touch a wall.  bool[]."""
    # [4, 2]: the body is narrower than a cell, so that its corners tell for all of it
    corners = jnp.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * BODY_RADIUS
    cells = jnp.floor(position + corners).astype(jnp.int32)
    return world.walls[cells[:, 1], cells[:, 0]].any()


def move(world: World, pose: Pose, control: jax.Array) -> Pose:
    """Returns the pose one frame later.

    Turning comes first. A step into a wall keeps the part along the wall, so that the
    walker slides.

    Args:
        world: The maze.
        pose: The pose before.
        control: (forward, turn left), each in [-1, 1].  float32[2].
    """
    yaw = pose.yaw + control[1] * TURN_STEP
    step = control[0] * FORWARD_STEP * heading(yaw)
    # One axis after the other: a wall across one leaves the other free.
    along_x = pose.position + step * jnp.array([1.0, 0.0])
    position = jnp.where(is_blocked(world, along_x), pose.position, along_x)
    along_y = position + step * jnp.array([0.0, 1.0])
    position = jnp.where(is_blocked(world, along_y), position, along_y)
    return Pose(position=position, yaw=yaw)


def walk(world: World, pose: Pose, controls: jax.Array) -> Pose:
    """Returns the poses after each control, stacked.

    Args:
        world: The maze.
        pose: The pose before the first control.
        controls: (forward, turn left) per frame.  float32[T, 2].

    Returns:
        A `Pose` whose leaves have a leading axis of length T.
    """

    def step(pose: Pose, control: jax.Array) -> tuple[Pose, Pose]:
        pose = move(world, pose, control)
        return pose, pose

    return jax.lax.scan(step, pose, controls)[1]


def clearance(world: World, pose: Pose, angle: jax.Array) -> jax.Array:
    """Returns the free distance seen from a pose at an angle, up to 3 cells.

    Args:
        world: The maze.
        pose: The pose.
        angle: Angle to the left of the heading, in radians.  float32[].
    """
    # [24] distances, [24, 2] points; the first solid one counts
    reach = jnp.arange(1, 25) / 8.0
    points = pose.position + reach[:, None] * heading(pose.yaw + angle)
    cells = jnp.clip(jnp.floor(points), 0, GRID - 1).astype(jnp.int32)
    solid = world.walls[cells[:, 1], cells[:, 0]]
    return jnp.where(solid.any(), reach[jnp.argmax(solid)], reach[-1])
