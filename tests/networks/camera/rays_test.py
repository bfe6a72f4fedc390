"""Rays against the reference's golden values and against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax_models.networks.camera import rays
from tests.networks.camera.poses_test import random_poses


def test_the_references_golden_ray():
    """An 8x8 picture, turned 30 degrees; from the tests of NVIDIA/flashdreams."""
    sin, cos = np.sin(np.pi / 6), np.cos(np.pi / 6)
    pose = np.eye(4, dtype=np.float32)
    pose[:3, :3] = [[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]
    pose[:3, 3] = 0.1, -0.2, 0.3
    made = rays.pixel_rays(jnp.asarray(pose), jnp.array([4, 5, 3.5, 4.5]), 8, 8)
    expected = (0.1, -0.2, 0.3, 0.7857385, -0.3368608, 0.5187870)
    np.testing.assert_allclose(made[2, 5], expected, atol=1e-6)
    expected = (-0.1007485, -0.5390537, 0.8362241)
    np.testing.assert_allclose(made[0, 0, 3:], expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_rays_and_relative_poses_in_float64(seed):
    rng = np.random.default_rng(seed)
    poses = random_poses(8, seed).reshape(2, 4, 4, 4)
    previous = random_poses(2, seed + 9)
    scale = rng.uniform(0.5, 2, 2)
    intrinsics = rng.uniform(5, 9, (2, 4, 4))
    relative = rays.relative_poses(
        *(jnp.asarray(x, jnp.float32) for x in (poses, previous, scale))
    )
    made = rays.pixel_rays(relative, jnp.asarray(intrinsics, jnp.float32), 6, 10)
    for session in range(2):
        before = previous[session]
        for frame, pose in enumerate(poses[session]):
            step = np.linalg.inv(before) @ pose
            before = pose
            fx, fy, cx, cy = intrinsics[session, frame]
            y, x = np.mgrid[:6, :10] + 0.5
            ray = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1)
            ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
            expected = np.concatenate(
                [
                    np.broadcast_to(step[:3, 3] / scale[session], ray.shape),
                    ray @ step[:3, :3].T,
                ],
                -1,
            )
            tolerance = testing.tolerance(jnp.float32, 16, scale=np.abs(expected).max())
            testing.assert_close(made[session, frame], expected, tolerance)


def recorded_far_away(count=40):
    """Steps of a tenth of a unit, thousands of units out, as recordings have them."""
    poses = random_poses(count, seed=3)
    steps = np.random.default_rng(3).normal(scale=0.1, size=(count, 3))
    poses[:, :3, 3] = np.array([-188.0, -5680, -589]) + np.cumsum(steps, axis=0)
    return poses.astype(np.float32)


def turned_back(rotation, columns):
    """R^T columns in float32, every product and sum rounded, from left to right."""
    first, second, third = (
        rotation[..., row, :, None] * columns[..., row, None, :] for row in range(3)
    )
    return first + second + third


def test_far_from_the_origin_the_reference_order_of_sums_is_kept():
    """IEEE arithmetic leaves nothing open, so that the numbers are the very same."""
    poses = recorded_far_away()
    before = np.concatenate([poses[:1], poses[:-1]])
    rotation = before[:, :3, :3]
    moved = turned_back(rotation, poses[:, :3, 3:])
    moved = moved - turned_back(rotation, before[:, :3, 3:])
    turned = turned_back(rotation, poses[:, :3, :3])
    made = jax.jit(rays.relative_poses)(poses[None], poses[:1], jnp.ones(1))[0]
    np.testing.assert_array_equal(made[:, :3, 3:], moved)
    np.testing.assert_array_equal(made[:, :3, :3], turned)
    # What it is about: exact numbers are others.
    exact = np.linalg.inv(before.astype(np.float64)) @ poses
    assert np.abs(exact[:, :3, 3:] - moved).max() > 1e-4


def test_fold_orders_channels_then_rows_then_columns():
    given = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    made = rays.fold(jnp.asarray(given), 2)
    assert made.shape == (2, 2, 3, 12)
    for c in range(3):
        for y in range(2):
            for x in range(2):
                expected = given[:, y::2, x::2, c]
                np.testing.assert_array_equal(made[..., (c * 2 + y) * 2 + x], expected)
