"""Trajectories: what the reference makes of one, and what is refused."""

import numpy as np
import pytest

from fdjax_models.networks.camera import poses as camera


def turning(count):
    """The golden trajectory of the reference's tests: it turns about y and walks."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for t in range(count):
        sin, cos = np.sin(0.02 * t), np.cos(0.02 * t)
        poses[t, :3, :3] = [[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]
        poses[t, :3, 3] = 0.05 * t, 0, 0.1 * t
    return poses


def random_poses(count, seed=0):
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    poses[:, :3, 3] = rng.normal(size=(count, 3))
    return poses


def test_the_references_golden_trajectory():
    """24 poses as NVIDIA/flashdreams prepares them (`preprocess_example_poses`)."""
    fitted = camera.fit_to_chunks(turning(24), 3)
    assert fitted.shape == (21, 4, 4)
    assert camera.world_scale(fitted) == pytest.approx(0.44721365, abs=2e-7)
    np.testing.assert_allclose(fitted[1, 0], (0.996802, 0, 0.079915, 0.2), atol=1e-6)
    np.testing.assert_allclose(fitted[8, 2], (-0.159318, 0, 0.987227, 0.8), atol=1e-6)


@pytest.mark.parametrize("count", [9, 10, 21, 24, 33, 100])
@pytest.mark.parametrize("len_t", [1, 2, 3, 4])
def test_whole_chunks_from_the_first_pose_to_the_last(count, len_t):
    if (count - 1) // 4 + 1 < len_t:
        with pytest.raises(ValueError, match=f"takes {1 + 4 * (len_t - 1)} poses"):
            camera.fit_to_chunks(turning(count), len_t)
        return
    given = turning(count)
    fitted = camera.fit_to_chunks(given, len_t)
    latents = fitted[::4]
    assert (len(fitted) - 1) % 4 == 0
    assert len(latents) % len_t == 0
    np.testing.assert_allclose(fitted[0], given[0], atol=1e-12)
    if len(latents) > 1:
        last = (count - 1) // 4 * 4
        np.testing.assert_allclose(fitted[-1], given[last], atol=1e-12)
    for frame, pose in enumerate(fitted[1:]):
        np.testing.assert_array_equal(pose, latents[1 + frame // 4])


def test_resampling_keeps_rotations_and_goes_the_short_way():
    given = random_poses(9)
    times = np.linspace(0, 8, 41)
    made = camera.check_poses(camera.resample(given, times))
    np.testing.assert_allclose(made[::5], given, atol=1e-12)
    from scipy.spatial.transform import Rotation

    steps = Rotation.from_matrix(made[:-1, :3, :3].swapaxes(1, 2) @ made[1:, :3, :3])
    # Five equal steps from pose to pose, each at most a fifth of half a turn.
    angles = steps.magnitude().reshape(8, 5)
    np.testing.assert_allclose(angles, np.repeat(angles[:, :1], 5, 1), atol=1e-9)
    assert angles.max() <= np.pi / 5 + 1e-9


def test_a_camera_that_stands_still_has_scale_one():
    fitted = camera.fit_to_chunks(np.tile(np.eye(4), (9, 1, 1)), 3)
    assert camera.world_scale(fitted) == 1.0


@pytest.mark.parametrize(
    ("resized", "final", "expected"),
    [
        ((464, 832), None, (500, 493, 416, 232)),
        ((500, 900), (464, 832), (540.8654, 531.25, 416, 232)),
    ],
)
def test_intrinsics_of_another_size(resized, final, expected):
    """Golden values of the reference's tests, from 480x832."""
    given = np.array([500.0, 510, 416, 240])
    made = camera.transform_intrinsics(given, (480, 832), resized, final)
    np.testing.assert_allclose(made, expected, atol=1e-4)


def test_opengl_poses_look_the_other_way():
    pose = camera.from_opengl(np.eye(4)[None])[0]
    np.testing.assert_array_equal(np.diag(pose), (1, -1, -1, 1))


def change(index, value):
    poses = turning(9)
    poses[index] = value
    return poses


@pytest.mark.parametrize(
    ("poses", "message"),
    [
        (np.eye(4), r"shape \[T, 4, 4\], camera-to-world, got \(4, 4\)"),
        (np.zeros((0, 4, 4)), r"got \(0, 4, 4\)"),
        (np.zeros((9, 3, 4)), r"got \(9, 3, 4\)"),
        (turning(9).astype(str), "must be numbers"),
        (turning(9) + 0j, "must be numbers"),
        (change((4, 0, 3), np.nan), "must be finite; pose 4 is not"),
        (turning(9).swapaxes(1, 2), "pose 1 has .* transposed"),
        (change((3, slice(3), slice(3)), 2 * np.eye(3)), "pose 3 .* by 3 "),
        (
            change((5, slice(3), slice(3)), np.diag([1, 1, -1])),
            "pose 5 mirrors",
        ),
    ],
)
def test_what_is_no_trajectory_is_named(poses, message):
    with pytest.raises(ValueError, match=message):
        camera.check_poses(poses, "poses.npy")


@pytest.mark.parametrize(
    ("intrinsics", "message"),
    [
        (np.ones((9, 3)), r"\[T, 4\] .* got \(9, 3\)"),
        (np.ones((5, 4)), "one for each of 9 poses, got 5"),
        ([[500, -1, 4, 4]], "focal lengths above 0, row 0"),
        ([[500, np.inf, 4, 4]], "must be finite"),
    ],
)
def test_what_are_no_intrinsics_is_named(intrinsics, message):
    with pytest.raises(ValueError, match=message):
        camera.check_intrinsics(intrinsics, 9)


@pytest.mark.parametrize(
    "given",
    [
        np.array([5.0, 6, 7, 8]),
        np.array([[5.0, 6, 7, 8]]),
        np.array([[5.0, 0, 7], [0, 6, 8], [0, 0, 1]]),
        np.tile([5, 6, 7, 8], (12, 1)),
    ],
)
def test_intrinsics_as_people_have_them(given):
    made = camera.check_intrinsics(given, 9)
    np.testing.assert_array_equal(made, np.tile([5.0, 6, 7, 8], (9, 1)))
