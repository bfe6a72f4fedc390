"""Layers of TAEHV, the tiny causal video autoencoder.

Frames are folded into the batch for every convolution; the only temporal layers are
the memory block, which looks one frame back, and the two reshapes that grow or pool
time. Source of the architecture: madebyollin/taehv, taehv.py.

Axes: B batch, T frames at the current temporal resolution, H W rows and columns at
the current spatial resolution, C channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def soft_clamp(x: jax.Array) -> jax.Array:
    """Returns 3 tanh(x / 3): the identity near zero, bounded by 3."""
    return 3 * jnp.tanh(x / 3)


def upsample_nearest(x: jax.Array, factor: int) -> jax.Array:
    """Repeats every pixel `factor` times: [B, T, H, W, C] -> [B, T, fH, fW, C]."""
    if factor == 1:
        return x
    b, t, h, w, c = x.shape
    shape = (b, t, h, factor, w, factor, c)
    x = jnp.broadcast_to(x[:, :, :, None, :, None], shape)
    return x.reshape(b, t, h * factor, w * factor, c)


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """Unfolds channels into pixels: [B, T, H, W, C p p] -> [B, T, pH, pW, C].

    The channel index is `(c * p + row) * p + column`, as in torch's `pixel_shuffle`.
    """
    if patch == 1:
        return x
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, c // patch**2, patch, patch)
    x = x.transpose(0, 1, 2, 5, 3, 6, 4)
    return x.reshape(b, t, h * patch, w * patch, c // patch**2)


def space_to_depth(x: jax.Array, patch: int) -> jax.Array:
    """Folds pixels into channels; the inverse of `depth_to_space`."""
    if patch == 1:
        return x
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // patch, patch, w // patch, patch, c)
    x = x.transpose(0, 1, 2, 4, 6, 3, 5)
    return x.reshape(b, t, h // patch, w // patch, c * patch**2)


class FrameConv(nn.Module):
    """A 2-D convolution of every frame: [B, T, H, W, C] -> [B, T, H', W', features].

    Attributes:
        features: Output channels.
        kernel: Side of the square kernel, zero padded by half of it.
        stride: Spatial stride.
        use_bias: Whether there is a bias.
        dtype: Computation dtype.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves frames independently."""
        side = self.kernel
        shape = (side, side, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        batch = x.shape[:2]
        x = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[2:]).astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=[(side // 2, side // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype)
        return x.reshape(*batch, *x.shape[1:])


class MemBlock(nn.Module):
    """A residual block that sees, beside each frame, the frame before it.

    Attributes:
        features: Channels in and out.
        dtype: Computation dtype.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Applies the block to all frames at once.

        Args:
            x: Frames [B, T, H, W, C].
            memory: The frame before the first one; zeros when a stream begins.
                [B, 1, H, W, C].

        Returns:
            The block's output, [B, T, H, W, C], and the next memory: its last input.
        """
        past = jnp.concatenate([memory.astype(x.dtype), x[:, :-1]], axis=1)
        y = jnp.concatenate([x, past], axis=-1)
        for i in range(3):
            y = y if i == 0 else nn.relu(y)
            y = FrameConv(self.features, dtype=self.dtype, name=f"conv_{i}")(y)
        return nn.relu(y + x), x[:, -1:].astype(memory.dtype)


def grow_time(x: jax.Array, stride: int) -> jax.Array:
    """Turns channel blocks into frames: [B, T, H, W, s C] -> [B, s T, H, W, C].

    Block j of frame t becomes frame `s t + j`.
    """
    if stride == 1:
        return x
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, stride, c // stride)
    return x.transpose(0, 1, 4, 2, 3, 5).reshape(b, t * stride, h, w, c // stride)


def pool_time(x: jax.Array, stride: int) -> jax.Array:
    """Stacks s consecutive frames on channels, oldest first; undoes `grow_time`."""
    if stride == 1:
        return x
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // stride, stride, h, w, c).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(b, t // stride, h, w, stride * c)
