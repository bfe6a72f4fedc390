"""The road scene: the car's motion, the map's colours and places, and its encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax.run import media
from fdjax.run.controls import read_controls
from fdjax_models.methods.omnidreams.road import (
    colours,
    driver,
    objects,
    rendering,
    vehicle,
)
from fdjax_models.methods.omnidreams.road import world as worlds
from fdjax_models.methods.omnidreams.road.camera import CAMERAS, FRONT, rays
from fdjax_models.methods.omnidreams.road.encoder import DriveEncoderConfig
from fdjax_models.networks.hdmap.pixel_shuffle import PixelShuffleEncoderConfig, fold

HEIGHT, WIDTH = 64, 96
WORLD = worlds.make_world(3)


def one(ego):
    return jax.tree.map(lambda leaf: leaf[0], ego)


def render(ego, camera=FRONT, world=WORLD):
    return rendering.render(world, ego, camera=camera, height=HEIGHT, width=WIDTH)


def driven(controls):
    ego = worlds.start(WORLD, 1)
    return one(vehicle.drive(ego, jnp.asarray(controls, jnp.float32)[None])[0])


def test_the_car_turns_on_the_circle_of_its_wheel_base():
    # Wheels at the stop: R = wheel base / tan(steering).
    ego = dataclasses.replace(
        worlds.start(WORLD, 1),
        steering=jnp.array([vehicle.MAX_STEERING]),
        speed=jnp.array([5.0]),
        heading=jnp.zeros(1),
        x=jnp.zeros(1),
        y=jnp.zeros(1),
    )
    radius = vehicle.WHEEL_BASE / np.tan(vehicle.MAX_STEERING)
    controls = jnp.broadcast_to(jnp.array([1.0, 0.0]), (1, 60, 2))
    _, states = vehicle.drive(ego, controls)
    distance = np.hypot(states.x[0], states.y[0] - radius)
    # Chords of 1/6 m for arcs.
    np.testing.assert_allclose(distance, radius, rtol=1e-3)
    assert states.heading[0, -1] > 1


def test_speed_ends_at_its_limits_and_brakes_at_a_stop():
    assert driven([(0, 1)] * 120).speed == vehicle.MAX_SPEED
    # From 8 m/s at 8 m/s^2: a second, and one frame at rest before it reverses.
    speeds = [float(driven([(0, -1)] * frames).speed) for frames in (29, 30, 31)]
    assert speeds[0] > 0.1
    assert min(np.abs(speeds[1:])) < 1e-3
    assert driven([(0, -1)] * 200).speed == -vehicle.MAX_REVERSE
    rolled = driven([(0, 0)] * 900)
    assert rolled.speed == 0
    assert rolled.frame == 900


def test_street_coordinates_are_inverted():
    points = np.random.default_rng(0).uniform(-500, 500, (2, 50)).astype(np.float32)
    u, v = worlds.to_streets(WORLD, *worlds.to_map(WORLD, *points))
    np.testing.assert_allclose([u, v], points, atol=2e-3)


def test_somebody_keeps_to_the_lane():
    ego = worlds.start(WORLD, 2)
    after, controls = driver.keep_lane(WORLD, ego, 300)
    u, v = worlds.to_streets(WORLD, after.x, after.y)
    np.testing.assert_allclose(u, worlds.LANE / 2, atol=0.15)
    np.testing.assert_allclose(after.speed, driver.CRUISE, atol=0.3)
    assert (v > 30).all()
    again, _ = vehicle.drive(ego, controls)
    np.testing.assert_allclose(again.x, after.x, atol=1e-3)


def test_rays_are_unit_vectors_within_the_field():
    for name, mounting in CAMERAS.items():
        ray = rays(mounting, HEIGHT, WIDTH)
        np.testing.assert_allclose(np.linalg.norm(ray, axis=-1), 1, atol=1e-6)
        yaw = np.deg2rad(mounting.yaw)
        middle = ray[HEIGHT // 2, WIDTH // 2]
        assert middle @ [np.cos(yaw), np.sin(yaw), 0] > 0.98, name
    row = rays(dataclasses.replace(CAMERAS[FRONT], pitch=0), HEIGHT, WIDTH)[HEIGHT // 2]
    across = np.rad2deg(np.arccos(row[0] @ row[-1]))
    assert 115 < across < 120
    assert row[0, 1] > 0 > row[-1, 1], "left of the picture must be the car's left"


def test_maps_have_the_reference_colours():
    ego, _ = driver.keep_lane(WORLD, worlds.start(WORLD, 1), 120)
    seen = set()
    for camera in (FRONT, "camera_cross_left_120fov"):
        pixels = np.asarray(media.to_uint8(render(one(ego), camera))).reshape(-1, 3)
        seen |= set(map(tuple, pixels.tolist()))
    for name in ("ROAD_BOUNDARY", "CROSSWALK", "INTERSECTION"):
        assert getattr(colours, name) in seen, name
    assert (0, 0, 0) in seen
    # The sky is black: no box is taller than the poles.
    up = render(one(worlds.start(WORLD, 1)))[: HEIGHT // 6]
    assert (up == -1).mean() > 0.95


def test_a_painted_line_is_where_the_street_is():
    # The middle of the street is to the left of the car's lane.
    ego = one(worlds.start(WORLD, 1))
    size = {"camera": FRONT, "height": 256, "width": 384}
    picture = np.asarray(media.to_uint8(rendering.render(WORLD, ego, **size)))
    yellow = np.abs(picture - np.array(colours.YELLOW_LINE)).max(-1) < 8
    island = np.abs(picture - np.array(colours.ISLAND)).max(-1) < 8
    rows, columns = np.nonzero(yellow | island)
    near = rows > 0.8 * 256
    assert near.any()
    assert (columns[near] < 192).all()


def test_boxes_move_with_time_and_hold_no_place_near_the_driver():
    ego = one(worlds.start(WORLD, 1))
    now = objects.around(WORLD, ego.x, ego.y, jnp.float32(0))
    later = objects.around(WORLD, ego.x, ego.y, jnp.float32(0.5))
    moved = np.hypot(now.x - later.x, now.y - later.y)
    cars = np.asarray(now.kind) == colours.NAMES.index("car")
    poles = np.asarray(now.kind) == colours.NAMES.index("pole")
    assert np.isclose(moved[cars], 4.0, atol=0.2).any()
    assert (moved[poles] == 0).all()
    away = np.hypot(now.x - ego.x, now.y - ego.y)
    assert away[cars].min() > 6


def test_frames_are_a_function_of_seed_and_state():
    ego = one(worlds.start(WORLD, 1))
    np.testing.assert_array_equal(render(ego), render(ego))
    other = worlds.make_world(4)
    assert (render(one(worlds.start(other, 1)), world=other) != render(ego)).any()


def test_a_prompt_of_keys_becomes_controls():
    keys = read_controls("w*2 wa*2 ad .*1", driver.ACTIONS)
    expected = [(0, 1)] * 2 + [(1, 1)] * 2 + [(0, 0)] * 3
    np.testing.assert_array_equal(driver.held_controls(keys, 0, 7), expected)
    np.testing.assert_array_equal(driver.held_controls(keys, 3, 1), [(1, 1)])
    with pytest.raises(ValueError, match=r"unknown key.*'x'.*steer left"):
        read_controls("wx*3", driver.ACTIONS)


@pytest.fixture(scope="module")
def encoder():
    return DriveEncoderConfig(
        hdmap=PixelShuffleEncoderConfig(), len_t=1, world_seed=3
    ).setup()


@pytest.fixture(scope="module")
def encode(encoder):
    return jax.jit(encoder.encode)


def test_driving_equals_drawing_and_encoding(encoder, encode):
    cache = encoder.initialize_cache({}, Conditions(), HEIGHT // 8, WIDTH // 8)
    controls = np.random.default_rng(0).uniform(-1, 1, (1, 5, 2)).astype(np.float32)
    cache, first = encode({}, cache, controls[:, :1])
    cache, second = encode({}, cache, controls[:, 1:])
    _, states = vehicle.drive(worlds.start(WORLD, 1), controls)
    for latent, frame in ((first, 0), (second, 4)):
        ego = jax.tree.map(lambda leaf, f=frame: leaf[0, f], states)
        expected = fold(render(ego))
        # Edges of boxes are hard: round-off may move a pixel over one.
        off = np.abs(np.asarray(latent[0, 0]) - expected) > 1e-2
        assert off.mean() < 2e-3


def test_a_fork_is_driven_elsewhere(encoder, encode):
    cache = encoder.initialize_cache({}, Conditions(), HEIGHT // 8, WIDTH // 8)
    cache, _ = encode({}, cache, None)
    left, _ = encode({}, cache, jnp.ones((4, 2)))
    right, _ = encode({}, cache, jnp.array([[-1.0, 1.0]] * 4))
    again, _ = encode({}, cache, jnp.ones((1, 4, 2)))
    assert left.ego.heading > right.ego.heading
    np.testing.assert_array_equal(left.ego.x, again.ego.x)


def test_other_controls_are_refused(encoder):
    cache = encoder.initialize_cache({}, Conditions(), HEIGHT // 8, WIDTH // 8)
    with pytest.raises(ValueError, match=r"\(1, 1, 2\) or \(1, 2\).*got \(4, 2\)"):
        encoder.encode({}, cache, np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"cameras must be some of.*got camera_roof"):
        DriveEncoderConfig(hdmap=PixelShuffleEncoderConfig(), cameras=("camera_roof",))
