"""Camera rays as a network takes them: relative poses, a ray per pixel, folded.

Source: NVIDIA/flashdreams, integrations_v2/lingbot/impl/encoder (utils.py, camctrl.py).
"""

import jax
import jax.numpy as jnp

from fdjax.axes import Array

_EXACT = jax.lax.Precision.HIGHEST  # a GPU would multiply in tf32


def relative_poses(poses: Array, previous: Array, scale: Array) -> Array:
    """Each pose as seen from the one before it; see `seen_from`.

    Args:
        poses: Camera-to-world.  float32[B, T, 4, 4].
        previous: The pose before the first one.  float32[B, 4, 4].
        scale: Length that becomes 1; by 0 nothing is divided.  float32[B].

    Returns:
        float32[B, T, 4, 4].
    """
    # [B, 1, 4, 4] and [B, T - 1, 4, 4] -> [B, T, 4, 4]
    before = jnp.concatenate([previous[:, None], poses[:, :-1]], axis=1)
    relative = seen_from(before, poses)
    # Where nothing moves the longest step is 0, and so is what it would divide.
    scale = jnp.where(scale == 0, 1, scale)
    # [B, T, 3] / [B, 1, 1]
    return relative.at[..., :3, 3].divide(scale[:, None, None])


def seen_from(before: Array, poses: Array) -> Array:
    """before^-1 poses, of rigid transforms.

    Far from the origin the result holds the round-off of large coordinates: 3e-4 of the
    longest step on LingBot-World's own examples. The networks were driven by these very
    numbers, so sums are in the reference's order: R^T t from left to right in float32,
    for both poses, then their difference.

    Args:
        before: float32[..., 4, 4].
        poses: As `before`.
    """
    rotation = before[..., :3, :3]
    moved = _turn_back(rotation, poses[..., :3, 3:])
    moved -= _turn_back(rotation, before[..., :3, 3:])
    turned = _turn_back(rotation, poses[..., :3, :3])
    # [..., 3, 3] and [..., 3, 1] -> [..., 3, 4] -> [..., 4, 4]
    top = jnp.concatenate([turned, moved], axis=-1)
    return jnp.concatenate([top, poses[..., 3:, :]], axis=-2)


def _turn_back(rotation: Array, columns: Array) -> Array:
    """R^T times columns, summed from left to right.  float32[..., 3, K]."""
    # [..., 3, 1] * [..., 1, K], one for each row of R
    products = [
        _rounded(rotation[..., row, :, None] * columns[..., row, None, :])
        for row in range(3)
    ]
    return products[0] + products[1] + products[2]


def _rounded(product: Array) -> Array:
    """The same, where the compiler may not fuse it into the sum that follows.

    XLA would round product and sum at once (FMA), to other numbers than the
    reference's; it does not see through a selection.
    """
    return jnp.where(jnp.isfinite(product), product, jnp.nan)


def pixel_rays(poses: Array, intrinsics: Array, height: int, width: int) -> Array:
    """Origin and direction of the ray through each pixel's centre.

    Not Pluecker's moment: the origin itself, equal for all pixels of a frame.

    Args:
        poses: Camera to the frame of reference.  float32[..., 4, 4].
        intrinsics: (fx, fy, cx, cy), pixels.  float32[..., 4].
        height: Of the picture, pixels.
        width: Of the picture, pixels.

    Returns:
        (origin, unit direction), float32[..., H, W, 6].
    """
    # [..., 1, 1] each
    fx, fy, cx, cy = (intrinsics[..., i, None, None] for i in range(4))
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5 - cx) / fx  # [..., 1, W]
    y = (jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5 - cy) / fy  # [..., H, 1]
    # [..., H, W] both
    x, y = jnp.broadcast_arrays(x, y)
    ray = jnp.stack([x, y, jnp.ones_like(x)], axis=-1)  # [..., H, W, 3]
    ray /= jnp.linalg.norm(ray, axis=-1, keepdims=True)
    # [..., H, W, 3] @ [..., 1, 3, 3]: rays are rows, so that R is transposed.
    rotation = poses[..., None, :3, :3].swapaxes(-1, -2)
    direction = jnp.matmul(ray, rotation, precision=_EXACT)
    # [..., 1, 1, 3] -> [..., H, W, 3]
    origin = jnp.broadcast_to(poses[..., None, None, :3, 3], direction.shape)
    # [..., H, W, 6]
    return jnp.concatenate([origin, direction], axis=-1)


def fold(rays: Array, ratio: int) -> Array:
    """Pixels of `ratio` x `ratio` squares as channels, in the order (channel, y, x).

    Args:
        rays: [..., H', W', C].
        ratio: Side of a square; divides H' and W'.

    Returns:
        [..., H, W, C * ratio**2].
    """
    *lead, height, width, channels = rays.shape
    split = (height // ratio, ratio, width // ratio, ratio, channels)
    rays = rays.reshape(*lead, *split)
    # [..., H, y, W, x, C] -> [..., H, W, C, y, x]
    axes = tuple(range(len(lead)))
    first = len(lead)
    rays = rays.transpose(*axes, *(first + i for i in (0, 2, 4, 1, 3)))
    # [..., H, W, C * ratio**2]
    return rays.reshape(*lead, split[0], split[2], channels * ratio**2)
