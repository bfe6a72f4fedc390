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
        past = jnp.concatenate([memory.astype(x.dtype), x[:, :-1]], axis=1)
        y = jnp.concatenate([x, past], axis=-1)
        for i in range(3):
            y = y if i == 0 else nn.relu(y)
            y = FrameConv(self.features, dtype=self.dtype, name=f"conv_{i}")(y)
        return nn.relu(y + x), x[:, -1:].astype(memory.dtype)
