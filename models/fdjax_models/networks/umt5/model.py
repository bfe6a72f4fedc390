"""The encoder half of UMT5: token ids in, one feature row per token out.

UMT5 (arXiv:2304.09151) is T5 1.1 (arXiv:1910.10683, arXiv:2002.05202) with a relative
position bias in every layer instead of one that all layers share. Queries are not
scaled and no projection has a bias.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fdjax.nn.norms import RMSNorm


def relative_position_buckets(
    length: int, num_buckets: int = 32, max_distance: int = 128
) -> np.ndarray:
    """Bucket of every (query, key) pair of one sequence.

    Half of the buckets serve keys after the query, half those at or before it. In each
    half, the first half of the buckets hold one distance each, the others grow
    logarithmically up to `max_distance`; arXiv:1910.10683, section 2.1, and
    `_relative_position_bucket` of transformers' modeling_umt5.py, whose float32
    arithmetic is kept because it decides the bucket of the distances on a boundary.

    Args:
        length: Number of tokens, L.
        num_buckets: Rows of the bias table; a multiple of 4.
        max_distance: Distance from which all keys share the last bucket, in tokens.

    Returns:
        int32[L, L], rows are queries; values in [0, num_buckets).
    """
    positions = np.arange(length)
    # [L, L]: key minus query
    offset = positions[None, :] - positions[:, None]
    half = num_buckets // 2
    # Distances below this one have a bucket each.
    exact = half // 2
    distance = np.abs(offset)
    # The maximum only avoids log(0), for a distance that has its own bucket.
    growth = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    growth = (
        growth / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    )
    # Cut off, not rounded, as in transformers.
    far = np.minimum(exact + growth.astype(np.int64), half - 1)
    buckets = np.where(distance < exact, distance, far) + half * (offset > 0)
    return buckets.astype(np.int32)


def _dense(
    features: int, dtype: jnp.dtype, param_dtype: jnp.dtype, name: str
) -> nn.Dense:
    return nn.Dense(
        features, use_bias=False, dtype=dtype, param_dtype=param_dtype, name=name
    )


class SelfAttention(nn.Module):
    """Bidirectional attention with an additive bias per head and relative position.

    Attributes:
        num_heads: N.
        head_dim: D; N x D need not equal the model width.
        num_buckets: Rows of the relative position bias table.
        dtype: Type of the projections; logits and softmax are float32.
        param_dtype: Type of the weights.
    """

    num_heads: int
    head_dim: int
    num_buckets: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, buckets: jax.Array, mask: jax.Array) -> jax.Array:
        """Attends over the tokens that `mask` keeps.

        Args:
            x: Normalised tokens. dtype[B, L, M].
            buckets: Relative position bucket of every pair. int32[L, L].
            mask: True for tokens that may be attended to. bool[B, L].

        Returns:
            dtype[B, L, M].
        """
        width = self.num_heads * self.head_dim
        batch, length, model_width = x.shape

        def heads(name: str) -> jax.Array:
            # [B, L, M] -> [B, L, N * D] -> [B, L, N, D]
            projected = _dense(width, self.dtype, self.param_dtype, name)(x)
            return projected.reshape(batch, length, self.num_heads, self.head_dim)

        q, k, v = heads("q"), heads("k"), heads("v")
        table = self.param(
            "relative_bias",
            nn.initializers.normal(1.0),
            (self.num_buckets, self.num_heads),
            self.param_dtype,
        )
        # [B, N, L, S] with S = L; not divided by sqrt(D), as T5 was trained
        logits = jnp.einsum("BLND,BSND->BNLS", q, k, preferred_element_type=jnp.float32)
        # [L, S, N] -> [N, L, S]
        logits += jnp.transpose(table.astype(jnp.float32)[buckets], (2, 0, 1))
        # The lowest finite number rather than -inf: a row without any key is uniform.
        lowest = jnp.finfo(jnp.float32).min
        # [B, S] -> [B, 1, 1, S]
        logits = jnp.where(mask[:, None, None, :], logits, lowest)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        # [B, L, N, D] -> [B, L, N * D]
        mixed = jnp.einsum("BNLS,BSND->BLND", weights, v).reshape(batch, length, width)
        return _dense(model_width, self.dtype, self.param_dtype, "o")(mixed)


class GatedMLP(nn.Module):
    """`down(gelu(gate(x)) * up(x))` with the tanh form of GELU (arXiv:2002.05202).

    Attributes:
        mlp_dim: F.
        dtype: Type of the arithmetic.
        param_dtype: Type of the weights.
    """

    mlp_dim: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps every token by itself: dtype[B, L, M] -> dtype[B, L, M]."""
        gate = _dense(self.mlp_dim, self.dtype, self.param_dtype, "gate")(x)
        up = _dense(self.mlp_dim, self.dtype, self.param_dtype, "up")(x)
        hidden = jax.nn.gelu(gate, approximate=True) * up
        return _dense(x.shape[-1], self.dtype, self.param_dtype, "down")(hidden)


class Umt5Encoder(nn.Module):
    """Embedding, pre-norm blocks, final norm.

    Attributes:
        vocab_size: Rows of the embedding.
        width: M.
        mlp_dim: F.
        num_layers: Number of blocks.
        num_heads: N.
        head_dim: D.
        num_buckets: Relative position buckets, both directions together.
        max_distance: Distance from which all keys share a bucket, in tokens.
        epsilon: Of the RMS norms.
        dtype: Type of the arithmetic.
        param_dtype: Type of the weights.
    """

    vocab_size: int
    width: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    head_dim: int
    num_buckets: int
    max_distance: int
    epsilon: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, token_ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Encodes a padded batch.

        Args:
            token_ids: int32[B, L], each in [0, vocab_size).
            mask: True for real tokens, False for padding. bool[B, L].

        Returns:
            One row per token, those of padding included: dtype[B, L, M].
        """
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # [L, L], the same for all layers; each has its own table of biases.
        buckets = jnp.asarray(
            relative_position_buckets(
                token_ids.shape[1], self.num_buckets, self.max_distance
            )
        )
        embed = nn.Embed(self.vocab_size, self.width, name="token_embedding", **kinds)
        # [B, L] -> [B, L, M]
        x = embed(token_ids)
        for layer in range(self.num_layers):
            block = f"blocks_{layer}"
            x = EncoderBlock(
                mlp_dim=self.mlp_dim,
                num_heads=self.num_heads,
                head_dim=self.head_dim,
                num_buckets=self.num_buckets,
                epsilon=self.epsilon,
                name=block,
                **kinds,
            )(x, buckets, mask)
        return RMSNorm(epsilon=self.epsilon, name="norm", **kinds)(x)


class EncoderBlock(nn.Module):
    """Self-attention and gated MLP, each behind a norm and added to its input.

    Attributes:
        mlp_dim: F.
        num_heads: N.
        head_dim: D.
        num_buckets: Rows of the relative position bias table.
        epsilon: Of the RMS norms.
        dtype: Type of the arithmetic.
        param_dtype: Type of the weights.
    """

    mlp_dim: int
    num_heads: int
    head_dim: int
    num_buckets: int
    epsilon: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, buckets: jax.Array, mask: jax.Array) -> jax.Array:
        """dtype[B, L, M], int32[L, L], bool[B, L] -> dtype[B, L, M]."""
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = SelfAttention(
            self.num_heads, self.head_dim, self.num_buckets, name="attention", **kinds
        )
        norm = RMSNorm(epsilon=self.epsilon, name="norm1", **kinds)
        x = x + attention(norm(x), buckets, mask)
        mlp = GatedMLP(self.mlp_dim, name="mlp", **kinds)
        return x + mlp(RMSNorm(epsilon=self.epsilon, name="norm2", **kinds)(x))
