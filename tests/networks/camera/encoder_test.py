"""The camera encoder: by chunks as all at once, per session; what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.contract.conditioner import Conditions
from fdjax_models.networks.camera import rays
from fdjax_models.networks.camera.encoder import (
    CameraControlEncoderConfig,
    CameraInput,
    camera_input,
)
from fdjax_models.networks.wan_vae.vae import WAN21_VAE_ENCODER
from tests.networks.camera.poses_test import random_poses

LEN_T, CHUNKS, HEIGHT, WIDTH = 2, 3, 4, 6
VAE = dataclasses.replace(
    WAN21_VAE_ENCODER, widths=(8, 8, 8, 8), num_blocks=1, dtype="float32"
)
ENCODER = CameraControlEncoderConfig(encoder=VAE, len_t=LEN_T).setup()


@pytest.fixture(scope="module")
def params():
    return ENCODER.init_params(jax.random.key(0))


def camera(batch=1, seed=0):
    frames = 1 + 4 * (LEN_T * CHUNKS - 1)
    poses = random_poses(batch * frames, seed).reshape(batch, frames, 4, 4)
    lens = np.random.default_rng(seed).uniform(20, 50, (batch, frames, 4))
    return CameraInput(
        poses=poses.astype(np.float32),
        intrinsics=lens.astype(np.float32),
        world_scale=np.linspace(0.5, 2, batch, dtype=np.float32),
    )


def chunk(given, index):
    first = 1 + 4 * (index * LEN_T - 1) if index else 0
    frames = slice(first, 1 + 4 * ((index + 1) * LEN_T - 1))
    return dataclasses.replace(
        given, poses=given.poses[:, frames], intrinsics=given.intrinsics[:, frames]
    )


def start(params, batch=1):
    image = jax.random.uniform(jax.random.key(1), (batch, 8 * HEIGHT, 8 * WIDTH, 3))
    return ENCODER.initialize_cache(params, Conditions(image=image), HEIGHT, WIDTH)


def stream(params, given, batch=1):
    cache, found = start(params, batch), []
    encode = jax.jit(ENCODER.encode)
    for index in range(CHUNKS):
        cache, control = encode(params, cache, chunk(given, index))
        found.append(control)
    return found


def test_chunk_by_chunk_is_all_at_once(params):
    given = camera(batch=2)
    made = jnp.concatenate([control.rays for control in stream(params, given, 2)], 1)
    poses, lens = given.poses[:, ::4], given.intrinsics[:, ::4]
    relative = rays.relative_poses(
        jnp.asarray(poses), jnp.asarray(poses[:, 0]), jnp.asarray(given.world_scale)
    )
    pixels = rays.pixel_rays(relative, jnp.asarray(lens), 8 * HEIGHT, 8 * WIDTH)
    expected = rays.fold(pixels.astype(jnp.bfloat16), 8)
    assert made.dtype == jnp.bfloat16
    assert made.shape == (2, LEN_T * CHUNKS, HEIGHT, WIDTH, 384)
    # Rounded to 8 bits: another order of sums may move a value by one unit of these.
    made, expected = (np.asarray(x, np.float32) for x in (made, expected))
    np.testing.assert_allclose(made, expected, rtol=2**-7, atol=2**-9)
    assert np.mean(made != expected) < 0.01


def test_the_first_frame_is_encoded_as_for_image_to_video(params):
    first, second, _ = stream(params, camera())
    image = ENCODER.image_encoder
    cache = image.initialize_cache(
        params, Conditions(image=start(params).image.image), HEIGHT, WIDTH
    )
    cache, expected = jax.jit(image.encode)(params, cache, None)
    np.testing.assert_allclose(first.image.latent, expected.latent, atol=1e-6)
    np.testing.assert_array_equal(first.image.mask, expected.mask)
    assert not second.image.mask.any()


def test_compiled_and_operation_by_operation_agree(params):
    given = chunk(camera(), 0)
    compiled = jax.jit(ENCODER.encode)(params, start(params), given)[1]
    with jax.disable_jit():
        plain = ENCODER.encode(params, start(params), given)[1]
    testing.assert_close(
        plain.image.latent, compiled.image.latent, testing.tolerance(jnp.float32, 216)
    )
    plain, compiled = (np.asarray(x.rays, np.float32) for x in (plain, compiled))
    np.testing.assert_allclose(plain, compiled, rtol=2**-7, atol=2**-9)


def test_a_still_camera_has_rays_from_the_origin(params):
    given = camera()
    still = np.broadcast_to(given.poses[:, :1], given.poses.shape)
    given = dataclasses.replace(given, poses=still, world_scale=np.ones(1, np.float32))
    for control in stream(params, given):
        origins = np.asarray(control.rays, np.float32)[..., : 3 * 64]
        np.testing.assert_allclose(origins, 0, atol=1e-6)


def test_a_scale_of_zero_divides_nothing(params):
    given = camera()
    still = np.broadcast_to(given.poses[:, :1], given.poses.shape)
    zero, one = (
        dataclasses.replace(given, poses=still, world_scale=np.array([x], np.float32))
        for x in (0, 1)
    )
    for a, b in zip(stream(params, zero), stream(params, one), strict=True):
        np.testing.assert_array_equal(
            np.asarray(a.rays, np.float32), np.asarray(b.rays, np.float32)
        )


def test_a_live_session_gives_the_poses_of_its_own_chunk(params):
    """Checked one by one on the host, they are those of the path known in advance."""
    given = camera()
    cache, whole = start(params), stream(params, given)
    encode = jax.jit(ENCODER.encode)
    for index in range(CHUNKS):
        part = chunk(given, index)
        live = camera_input(part.poses[0], part.intrinsics[0], part.world_scale[0])
        cache, control = encode(params, cache, live)
        np.testing.assert_array_equal(
            np.asarray(control.rays, np.float32),
            np.asarray(whole[index].rays, np.float32),
        )


@pytest.mark.parametrize(
    ("poses", "lens", "scale", "message"),
    [
        (2 * np.eye(4)[None], [5.0, 5, 4, 4], 1.0, "must have the last row"),
        (np.diag([2.0, 2, 2, 1])[None], [5.0, 5, 4, 4], 1.0, "off orthonormal by 3"),
        (np.full((1, 4, 4), np.nan), [5.0, 5, 4, 4], 1.0, "must be finite"),
        (np.eye(4), [5.0, 5, 4, 4], 1.0, r"shape \[T, 4, 4\]"),
        (np.eye(4)[None], [5.0, 0, 4, 4], 1.0, "focal lengths above 0"),
        (np.eye(4)[None], [5.0, 5, 4, 4], -1.0, "world_scale must be finite, 0 or"),
        (np.eye(4)[None], [5.0, 5, 4, 4], np.nan, "world_scale must be finite, 0 or"),
    ],
)
def test_a_live_pose_that_is_none_is_refused(poses, lens, scale, message):
    with pytest.raises(ValueError, match=message):
        camera_input(poses, lens, scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda camera: None, "needs a CameraInput .* got NoneType"),
        (
            lambda camera: dataclasses.replace(camera, poses=camera.poses[:, 1:]),
            r"poses of the first chunk must have shape \(1, 5, 4, 4\)",
        ),
        (
            lambda camera: dataclasses.replace(
                camera, intrinsics=camera.poses[..., 0, 0]
            ),
            r"intrinsics of the first chunk must have shape \(1, 5, 4\)",
        ),
        (
            lambda camera: dataclasses.replace(camera, world_scale=np.float32(1)),
            r"world_scale of the first chunk must have shape \(1,\)",
        ),
    ],
)
def test_a_camera_that_does_not_fit_is_refused(params, change, message):
    with pytest.raises(ValueError, match=message):
        ENCODER.encode(params, start(params), change(chunk(camera(), 0)))


def test_a_later_chunk_has_more_frames(params):
    cache, _ = ENCODER.encode(params, start(params), chunk(camera(), 0))
    with pytest.raises(ValueError, match=r"poses of a later chunk .* \(1, 8, 4, 4\)"):
        ENCODER.encode(params, cache, chunk(camera(), 0))
