"""Camera trajectories on the host: checks, conventions, resampling; numpy, float64.

A pose is camera-to-world, [4, 4]; the camera looks along +z, x points right and y down
(the axes of OpenCV and COLMAP). Intrinsics are (fx, fy, cx, cy) in pixels, whose
centres lie at half integers.
"""

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fdjax_models.networks.camera import rays

_RIGID = 1e-3  # largest |R^T R - I| that is taken for rounding
_STRIDE = 4  # video frames of one latent frame, of every Wan autoencoder


def check_poses(poses: ArrayLike, name: str = "poses") -> np.ndarray:
    """Camera-to-world poses as float64[T, 4, 4].

    Args:
        poses: What was given.
        name: For messages, e.g. the file.

    Raises:
        ValueError: The shape is wrong, a number is not finite, or a pose is not rigid.
    """
    array = np.asarray(poses)
    if array.ndim != 3 or array.shape[1:] != (4, 4) or not len(array):
        raise ValueError(
            f"{name} must have shape [T, 4, 4], camera-to-world, got {array.shape}."
        )
    array = _as_float64(array, name)
    if bad := _first(~np.isfinite(array).all((1, 2))):
        raise ValueError(f"{name} must be finite; pose {bad[0]} is not.")
    # [T]
    last_row = np.abs(array[:, 3] - [0, 0, 0, 1]).max(1)
    if bad := _first(last_row > _RIGID):
        raise ValueError(
            f"{name} must have the last row (0, 0, 0, 1), pose {bad[0]} has "
            f"{array[bad[0], 3].tolist()}; are the matrices transposed?"
        )
    rotation = array[:, :3, :3]
    # [T, 3, 3] -> [T]: the largest entry of R^T R - I
    error = np.abs(rotation.swapaxes(1, 2) @ rotation - np.eye(3)).max((1, 2))
    if bad := _first(error > _RIGID):
        raise ValueError(
            f"{name} must be rigid: the columns of pose {bad[0]} are off orthonormal "
            f"by {error[bad[0]]:.3g} (at most {_RIGID:g}); remove scale and skew."
        )
    if bad := _first(np.linalg.det(rotation) < 0):
        raise ValueError(
            f"{name} must be rotations, pose {bad[0]} mirrors (determinant -1); flip "
            "the sign of one axis, e.g. of a left-handed convention."
        )
    return array


def check_intrinsics(
    intrinsics: ArrayLike, num_poses: int, name: str = "intrinsics"
) -> np.ndarray:
    """Intrinsics as float64[T, 4], (fx, fy, cx, cy) in pixels.

    Args:
        intrinsics: [T, 4] or [4] of these four, or matrices K, [T, 3, 3] or [3, 3].
            One for all frames is repeated.
        num_poses: How many are needed, T.
        name: For messages, e.g. the file.

    Raises:
        ValueError: The shape is wrong, there are too few, or a focal length is not
            positive.
    """
    array = np.asarray(intrinsics)
    if array.shape[-2:] == (3, 3):
        # K = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]: [..., 3, 3] -> [..., 4]
        array = array[..., [0, 1, 0, 1], [0, 1, 2, 2]]
    if array.shape == (4,):
        # [4] -> [1, 4]
        array = array[None]
    if array.ndim != 2 or array.shape[1] != 4 or not len(array):
        raise ValueError(
            f"{name} must have shape [T, 4] (fx, fy, cx, cy) or [T, 3, 3], got "
            f"{np.shape(intrinsics)}."
        )
    array = _as_float64(array, name)
    if bad := _first(~(np.isfinite(array).all(1) & (array[:, :2] > 0).all(1))):
        raise ValueError(
            f"{name} must be finite with focal lengths above 0, row {bad[0]} is "
            f"{array[bad[0]].tolist()}."
        )
    if len(array) == 1:
        array = np.repeat(array, num_poses, axis=0)
    if len(array) < num_poses:
        raise ValueError(
            f"{name} must have one row, or one for each of {num_poses} poses, got "
            f"{len(array)}."
        )
    return array[:num_poses]


def from_opengl(poses: np.ndarray) -> np.ndarray:
    """Poses whose camera looks along -z with y up (OpenGL, Blender, NeRF), as ours."""
    # By columns, which are the camera's axes in the world: y and z turn round.
    return poses * np.array([1.0, -1.0, -1.0, 1.0])


def transform_intrinsics(
    intrinsics: np.ndarray,
    captured: tuple[int, int],
    resized: tuple[float, float],
    final: tuple[int, int] | None = None,
) -> np.ndarray:
    """Intrinsics of a picture that was resized, then cut to its middle.

    `get_Ks_transformed` of NVIDIA/flashdreams, integrations_v2/lingbot.

    Args:
        intrinsics: For the picture as captured.  [..., 4].
        captured: Its height and width, pixels.
        resized: Height and width after resizing.
        final: After cutting, or with bars beside it; None: as resized.
    """
    height, width = final or resized
    # (x, y), the order of intrinsics; sizes are (height, width).
    scale = np.array([resized[1] / captured[1], resized[0] / captured[0]])
    cut = np.array([resized[1] - width, resized[0] - height]) / 2
    focal, centre = intrinsics[..., :2], intrinsics[..., 2:]
    # [..., 2] and [..., 2] -> [..., 4]
    return np.concatenate([focal * scale, centre * scale - cut], axis=-1)


def resample(poses: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Poses at other times: positions along lines, rotations along great circles.

    Args:
        poses: At times 0, 1, 2 ...  float64[T, 4, 4].
        times: In [0, T - 1].  float64[N].

    Returns:
        float64[N, 4, 4].
    """
    from scipy.spatial import transform

    # Slerp needs two: [1, 4, 4] -> [N, 4, 4]
    if len(poses) == 1:
        return np.repeat(poses, len(times), axis=0)
    given = np.arange(len(poses))
    slerp = transform.Slerp(given, transform.Rotation.from_matrix(poses[:, :3, :3]))
    # [N, 4, 4], with the last row (0, 0, 0, 1)
    out = np.tile(np.eye(4), (len(times), 1, 1))
    out[:, :3, :3] = slerp(times).as_matrix()
    for axis in range(3):
        out[:, axis, 3] = np.interp(times, given, poses[:, axis, 3])
    return out


def fit_to_chunks(poses: np.ndarray, len_t: int) -> np.ndarray:
    """A recorded trajectory, spread evenly over whole chunks of latent frames.

    As LingBot-World prepares its examples (`preprocess_example_poses` of
    NVIDIA/flashdreams, integrations_v2/lingbot): of T frames, the latent frames that
    they have, less those of an unfinished chunk, at even times from first to last; each
    is held for its four video frames, the first one for one.

    Args:
        poses: One per video frame.  float64[T, 4, 4].
        len_t: Latent frames of a chunk.

    Returns:
        float64[1 + 4 (E - 1), 4, 4], E being a multiple of `len_t`.

    Raises:
        ValueError: There are fewer than one chunk takes.
    """
    num_latents = (len(poses) - 1) // _STRIDE + 1
    if num_latents < len_t:
        raise ValueError(
            f"A chunk takes {frames_of(len_t)} poses, got {len(poses)}: record or "
            "write a longer path."
        )
    # The frame of the last whole latent frame; those behind it are left out.
    last = (num_latents - 1) * _STRIDE
    num_latents -= num_latents % len_t
    # [E, 4, 4] -> [1 + 4 * (E - 1), 4, 4]
    kept = resample(poses[: last + 1], np.linspace(0, last, num_latents))
    return np.concatenate([kept[:1], np.repeat(kept[1:], _STRIDE, axis=0)])


def frames_of(num_latents: int) -> int:
    """Video frames of the first `num_latents` latent frames."""
    return 1 + _STRIDE * (num_latents - 1)


def world_scale(poses: np.ndarray) -> float:
    """The longest step between latent frames: the length that the network calls 1.

    In float32 by way of the first pose, as the reference has it: `rays.seen_from`.

    Args:
        poses: From `fit_to_chunks`: one per video frame.

    Returns:
        Above 0; 1 where the camera does not move, which then changes nothing. (The
        reference divides by 0 there.)
    """
    # [E, 4, 4]
    latents = jnp.asarray(poses[::_STRIDE], jnp.float32)
    origin = jnp.broadcast_to(latents[:1], latents.shape)
    seen = rays.seen_from(origin, latents).at[0].set(jnp.eye(4))
    steps = rays.seen_from(seen[:-1], seen[1:])[:, :3, 3]
    longest = np.linalg.norm(np.asarray(steps), axis=1).max(initial=0.0)
    return float(longest) or 1.0


def _as_float64(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be numbers, got dtype {array.dtype}.")
    return array.astype(np.float64)


def _first(bad: np.ndarray) -> tuple[int, ...]:
    """Index of the first True, in a tuple; empty if there is none."""
    return (int(np.argmax(bad)),) if bad.any() else ()
