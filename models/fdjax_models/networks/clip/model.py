"""The image tower of CLIP, a vision transformer.

Sources: arXiv:2103.00020, section 2.4; arXiv:2010.11929, section 3.1.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class VisionBlock(nn.Module):
    """Self-attention and MLP, each behind a LayerNorm and added to its input.

    Attributes:
        mlp_dim: F.
        num_heads: N.
        epsilon: Of the norms.
        dtype: Type of the arithmetic; softmax and norm statistics are float32.
        param_dtype: Type of the weights.
    """

    mlp_dim: int
    num_heads: int
    epsilon: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """dtype[B, L, M] -> dtype[B, L, M]."""
        width = x.shape[-1]
        x = x + self._attend(self._norm("norm1")(x))
        hidden = self._dense(self.mlp_dim, "mlp_in")(self._norm("norm2")(x))
        # Exact in the ViT-H/14 that Wan uses; OpenAI's own towers have
        # x * sigmoid(1.702 x).
        hidden = jax.nn.gelu(hidden, approximate=False)
        return x + self._dense(width, "mlp_out")(hidden)

    def _norm(self, name: str) -> nn.Module:
        return layer_norm(self.epsilon, self.dtype, self.param_dtype, name)

    def _dense(self, features: int, name: str) -> nn.Module:
        return nn.Dense(
            features, dtype=self.dtype, param_dtype=self.param_dtype, name=name
        )

    def _attend(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        head_dim = width // self.num_heads
        shape = (batch, length, self.num_heads, head_dim)
        # [B, L, M] -> [B, L, N, D] each
        q, k, v = (self._dense(width, name)(x).reshape(shape) for name in "qkv")
        # [B, N, L, S], S = L; float32 up to and through the softmax
        logits = jnp.einsum("BLND,BSND->BNLS", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * head_dim**-0.5, axis=-1).astype(self.dtype)
        # [B, L, N, D] -> [B, L, M]
        mixed = jnp.einsum("BNLS,BSND->BLND", weights, v).reshape(x.shape)
        return self._dense(width, "o")(mixed)


def layer_norm(
    epsilon: float, dtype: jnp.dtype, param_dtype: jnp.dtype, name: str
) -> nn.LayerNorm:
    """LayerNorm with weight and bias, float32 statistics, biased variance."""
    return nn.LayerNorm(
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits to cancellation
        name=name,
    )


class VisionTransformer(nn.Module):
    """Patches and a class token through the first blocks of the tower.

    Parameters are those of the whole published tower, so that a checkpoint goes in and
    comes out complete; the blocks after `output_layer` and the last norm never run.

    Attributes:
        image_size: Side of the square image, in pixels.
        patch_size: Side of a patch, in pixels.
        width: M.
        mlp_dim: F.
        num_layers: Blocks of the published tower.
        output_layer: Number of blocks that run.
        num_heads: N.
        epsilon: Of the norms.
        dtype: Type of the arithmetic.
        param_dtype: Type of the weights.
    """

    image_size: int
    patch_size: int
    width: int
    mlp_dim: int
    num_layers: int
    output_layer: int
    num_heads: int
    epsilon: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """The hidden state after `output_layer` blocks, not normalised.

        Args:
            image: Preprocessed. [B, image_size, image_size, 3].

        Returns:
            The class token, then patches row by row: dtype[B, L, M].
        """
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = self._embed(image.astype(self.dtype))
        x = layer_norm(self.epsilon, **kinds, name="pre_norm")(x)
        # All blocks and the last norm at initialisation, to make their parameters.
        running = self.num_layers if self.is_initializing() else self.output_layer
        for layer in range(running):
            block = VisionBlock(
                mlp_dim=self.mlp_dim,
                num_heads=self.num_heads,
                epsilon=self.epsilon,
                name=f"blocks_{layer}",
                **kinds,
            )
            x = block(x)
        if self.is_initializing():
            layer_norm(self.epsilon, **kinds, name="post_norm")(x)
        return x

    def _embed(self, image: jax.Array) -> jax.Array:
        # [B, image_size, image_size, 3] -> [B, H, W, M], one pixel a patch
        patches = nn.Conv(
            self.width,
            (self.patch_size, self.patch_size),
            strides=self.patch_size,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="patch_embedding",
        )(image)
        batch = len(image)
        # The patches and the class token: 257 for ViT-H/14.
        length = (self.image_size // self.patch_size) ** 2 + 1
        init = nn.initializers.normal(self.width**-0.5)
        token = self.param("class_embedding", init, (self.width,), self.param_dtype)
        positions = self.param(
            "position_embedding", init, (length, self.width), self.param_dtype
        )
        # [M] -> [B, 1, M]
        token = jnp.broadcast_to(token.astype(self.dtype), (batch, 1, self.width))
        # [B, H, W, M] -> [B, H * W, M]
        rows = patches.reshape(batch, -1, self.width)
        # [B, 1 + H * W, M] + [1 + H * W, M] -> [B, L, M]
        return jnp.concatenate([token, rows], 1) + positions.astype(self.dtype)
