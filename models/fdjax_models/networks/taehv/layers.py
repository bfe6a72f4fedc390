"""The layer that TAEHV, the tiny causal video autoencoder, is made of.

Source of the architecture: madebyollin/taehv, taehv.py.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from fdjax.axes import Array
from fdjax.nn.conv import FrameConv


def soft_clamp(x: Array) -> Array:
    """Returns 3 tanh(x / 3): the identity near zero, bounded by 3."""
    return 3 * jnp.tanh(x / 3)


class MemBlock(nn.Module):
    """A residual block that sees, beside each frame, the frame before it.

    Attributes:
        features: Channels in and out.
        dtype: Computation dtype.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, memory: Array) -> tuple[Array, Array]:
        """Applies the block to all frames at once.

        Args:
            x: Frames [B, T, H, W, C].
            memory: The frame before the first one, [B, 1, H, W, C]; zeros when a
                stream begins.

        Returns:
            The block's output, [B, T, H, W, C], and the next memory: its last input.
        """
        # [B, 1 + (T - 1), H, W, C]: for each frame the one before it
        past = jnp.concatenate([memory.astype(x.dtype), x[:, :-1]], axis=1)
        # [B, T, H, W, 2 * C]
        y = jnp.concatenate([x, past], axis=-1)
        # ReLU between the convolutions and, behind the sum, once more.
        for i in range(3):
            y = y if i == 0 else nn.relu(y)
            y = FrameConv(self.features, dtype=self.dtype, name=f"conv_{i}")(y)
        # The memory is the block's input, not its output: all frames run at once.
        # [B, 1, H, W, C]
        return nn.relu(y + x), x[:, -1:].astype(memory.dtype)
