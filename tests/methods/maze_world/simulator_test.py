"""The simulator is pure, keeps its walkers out of walls, and shows what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax_models.methods.maze_world import rendering, simulator, text, walks
from fdjax_models.methods.maze_world.simulator import Pose, World

render = jax.jit(rendering.render)


def corridor(style=(0, 0, 0, 0)) -> World:
    """A straight corridor along row 1, closed at both ends."""
    walls = np.ones((simulator.GRID, simulator.GRID), bool)
    walls[1, 1:-1] = False
    return World(walls=jnp.asarray(walls), style=jnp.array(style), salt=jnp.uint32(1))


def pose(x: float, y: float, yaw: float = 0.0) -> Pose:
    return Pose(position=jnp.array([x, y]), yaw=jnp.float32(yaw))


def reachable(walls: np.ndarray) -> np.ndarray:
    """Floods the maze from its first room."""
    seen = np.zeros_like(walls)
    stack = [(1, 1)]
    while stack:
        row, column = stack.pop()
        if walls[row, column] or seen[row, column]:
            continue
        seen[row, column] = True
        stack += [(row + 1, column), (row - 1, column)]
        stack += [(row, column + 1), (row, column - 1)]
    return seen


def test_every_room_of_every_maze_can_be_reached():
    worlds = jax.jit(jax.vmap(simulator.random_world))(
        jax.random.split(jax.random.key(0), 32)
    )
    for walls in np.asarray(worlds.walls):
        assert walls[0].all()
        assert walls[-1].all()
        assert walls[:, 0].all()
        assert walls[:, -1].all()
        assert reachable(walls)[1::2, 1::2].all()
    assert len(np.unique(np.asarray(worlds.walls), axis=0)) == 32


def test_walkers_never_stand_in_a_wall():
    def walk(key):
        keys = jax.random.split(key, 3)
        world = simulator.random_world(keys[0])
        start = simulator.random_pose(keys[1], world)
        held, poses = walks.random_walk(keys[2], world, start, 200)
        blocked = jax.vmap(lambda p: simulator.is_blocked(world, p))(poses.position)
        return held, blocked

    held, blocked = jax.jit(jax.vmap(walk))(jax.random.split(jax.random.key(1), 16))
    assert not blocked.any()
    assert set(np.unique(held)) == {-1.0, 0.0, 1.0}


def test_a_wall_stops_the_walker_and_lets_it_slide():
    world = corridor()
    forward = jnp.tile(jnp.array([1.0, 0.0]), (200, 1))
    end = jax.tree.map(lambda x: x[-1], simulator.walk(world, pose(1.5, 1.5), forward))
    stop = simulator.GRID - 1 - simulator.BODY_RADIUS
    assert stop - simulator.FORWARD_STEP <= float(end.position[0]) <= stop
    slanted = simulator.walk(world, pose(1.5, 1.5, yaw=0.5), forward)
    assert float(slanted.position[-1, 0]) > 10
    assert float(slanted.position[:, 1].min()) >= 1 + simulator.BODY_RADIUS - 1e-5


def test_turning_is_exact_and_comes_back():
    world = corridor()
    turns = jnp.concatenate(
        [jnp.tile(jnp.array([0.0, s]), (10, 1)) for s in (1.0, -1.0)]
    )
    poses = simulator.walk(world, pose(5.5, 1.5), turns)
    np.testing.assert_allclose(poses.yaw[9], 10 * simulator.TURN_STEP, rtol=1e-5)
    np.testing.assert_allclose(poses.yaw[-1], 0.0, atol=1e-5)


def test_turning_left_moves_the_image_to_the_right():
    world = corridor(style=(5, 0, 0, 0))
    before = np.asarray(render(world, pose(5.5, 1.5)))
    after = np.asarray(render(world, pose(5.5, 1.5, yaw=simulator.TURN_STEP)))
    cost = {
        shift: np.abs(
            np.roll(before, shift, axis=1)[:, 40:-40] - after[:, 40:-40]
        ).mean()
        for shift in range(-16, 17)
    }
    focal = rendering.WIDTH / 2 / rendering.HALF_WIDTH_TANGENT
    expected = focal * simulator.TURN_STEP  # at the centre of the image
    assert abs(min(cost, key=cost.__getitem__) - expected) <= 2


def test_rendering_is_pure_bounded_and_vmappable():
    world = corridor(style=(3, 1, 1, 1))
    poses = Pose(
        position=jnp.array([[2.5, 1.5], [4.1, 1.4], [6.5, 1.5]]),
        yaw=jnp.array([0.0, 1.0, 2.0]),
    )
    frames = jax.jit(rendering.render_walk)(world, poses)
    assert frames.shape == (3, rendering.HEIGHT, rendering.WIDTH, 3)
    assert np.isfinite(frames).all()
    assert (np.abs(frames) <= 1).all()
    single = render(world, jax.tree.map(lambda x: x[1], poses))
    np.testing.assert_allclose(frames[1], single, atol=1e-5)


def test_a_near_wall_fills_the_image_and_is_of_its_colour():
    for colour, channel in (("red", 0), ("green", 1), ("blue", 2)):
        index = text.SLOTS["colour"].index(colour)
        world = corridor(style=(index, 0, 0, 0))
        frame = np.asarray(render(world, pose(1.3, 1.5, yaw=np.pi)))
        assert frame.mean((0, 1)).argmax() == channel


@pytest.mark.parametrize("slot", range(text.NUM_SLOTS))
def test_every_word_changes_the_picture(slot):
    words = len(list(text.SLOTS.values())[slot])
    frames = []
    for index in range(words):
        style = [2, 1, 0, 0]
        style[slot] = index
        frames.append(np.asarray(render(corridor(style), pose(2.5, 1.5))))
    for i in range(words):
        for j in range(i):
            assert np.abs(frames[i] - frames[j]).mean() > 0.02


def test_the_same_seed_gives_the_same_walk():
    def make(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        world = simulator.random_world(keys[0])
        start = simulator.random_pose(keys[1], world)
        return walks.random_walk(keys[2], world, start, 40)

    make = jax.jit(make, static_argnums=0)
    first, again, other = make(5), make(5), make(6)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[1].position, other[1].position)
