"""Reshapes that trade pixels, frames and channels for one another.

Axes: B batch, T frames, H W rows and columns, C channels, p and s integer factors.
"""

import jax.numpy as jnp

from fdjax.axes import Array


def upsample_nearest(x: Array, factor: int) -> Array:
    """Repeats every pixel along both sides: [B, T, H, W, C] to [B, T, pH, pW, C]."""
    if factor == 1:
        return x
    b, t, h, w, c = x.shape
    # [B, T, H, 1, W, 1, C] -> [B, T, H, p, W, p, C]
    x = jnp.broadcast_to(x[:, :, :, None, :, None], (b, t, h, factor, w, factor, c))
    # [B, T, pH, pW, C]
    return x.reshape(b, t, h * factor, w * factor, c)


def depth_to_space(x: Array, patch: int, *, column_first: bool = False) -> Array:
    """Unfolds channels into pixels: [B, T, H, W, C p p] to [B, T, pH, pW, C].

    The channel index is `(c * p + row) * p + column`, as in torch's `pixel_shuffle`,
    or `(c * p + column) * p + row` with `column_first`.
    """
    if patch == 1:
        return x
    b, t, h, w, c = x.shape
    # [B, T, H, W, C p p] -> [B, T, H, W, C, p, p]
    x = x.reshape(b, t, h, w, c // patch**2, patch, patch)
    # Where the two offsets stand among the last two axes.
    row, column = (6, 5) if column_first else (5, 6)
    # [B, T, H, row, W, column, C]
    x = x.transpose(0, 1, 2, row, 3, column, 4)
    # [B, T, pH, pW, C]
    return x.reshape(b, t, h * patch, w * patch, c // patch**2)


def space_to_depth(x: Array, patch: int, *, column_first: bool = False) -> Array:
    """Folds pixels into channels; the inverse of `depth_to_space`."""
    if patch == 1:
        return x
    b, t, h, w, c = x.shape
    # [B, T, pH, pW, C] -> [B, T, H, row, W, column, C]
    x = x.reshape(b, t, h // patch, patch, w // patch, patch, c)
    offsets = (5, 3) if column_first else (3, 5)
    # [B, T, H, W, C, row, column], or column before row
    x = x.transpose(0, 1, 2, 4, 6, *offsets)
    # [B, T, H, W, C p p]
    return x.reshape(b, t, h // patch, w // patch, c * patch**2)


def channels_to_time(x: Array, stride: int) -> Array:
    """Turns channel blocks into frames: [B, T, H, W, s C] to [B, s T, H, W, C].

    Block j of frame t becomes frame `s t + j`.
    """
    if stride == 1:
        return x
    b, t, h, w, c = x.shape
    # [B, T, H, W, s C] -> [B, T, H, W, s, C]
    x = x.reshape(b, t, h, w, stride, c // stride)
    # [B, T, s, H, W, C] -> [B, s T, H, W, C]
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(b, t * stride, h, w, c // stride)


def time_to_channels(x: Array, stride: int) -> Array:
    """Stacks s consecutive frames on channels; the inverse of `channels_to_time`."""
    if stride == 1:
        return x
    b, t, h, w, c = x.shape
    # [B, s T, H, W, C] -> [B, T, s, H, W, C] -> [B, T, H, W, s, C]
    x = x.reshape(b, t // stride, stride, h, w, c).transpose(0, 1, 3, 4, 2, 5)
    # [B, T, H, W, s C]
    return x.reshape(b, t // stride, h, w, stride * c)
