"""The text path of Qwen2.5-VL: token ids in, the hidden states of every layer out.

Qwen2.5 (arXiv:2412.15115, section 2) is a causal decoder with grouped-query attention,
biases on queries, keys and values alone, SwiGLU and RMS norms. Of Qwen2.5-VL
(arXiv:2502.13923) the vision tower is left out: its rotary embedding has three
positions per token, time, row and column, which are equal for text.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fdjax.attention.rope import RopeTable, axis_frequencies, rope_table, rotate
from fdjax.nn.norms import RMSNorm


class SelfAttention(nn.Module):
    """Causal attention in which groups of queries share keys and values.

    Attributes:
        num_heads: Heads of queries.
        num_kv_heads: Heads of keys and values, N.
        head_dim: D.
        dtype: Type of the projections; logits and softmax are float32.
        param_dtype: Type of the weights.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, table: RopeTable) -> jax.Array:
        """Each token attends to itself and those before it.

        Args:
            x: Normalised tokens. dtype[B, L, M].
            table: Angles of the positions. [L, D / 2].

        Returns:
            dtype[B, L, M].
        """
        batch, length, model_width = x.shape
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def heads(name: str, count: int) -> jax.Array:
            # [B, L, M] -> [B, L, N * D] -> [B, L, N, D]
            projected = nn.Dense(count * self.head_dim, name=name, **kinds)(x)
            return projected.reshape(batch, length, count, self.head_dim)

        q = rotate(heads("q", self.num_heads), table, interleaved=False)
        k = rotate(heads("k", self.num_kv_heads), table, interleaved=False)
        v = heads("v", self.num_kv_heads)
        # [B, L, N, G, D]: neighbours share a head of keys
        q = q.reshape(batch, length, self.num_kv_heads, -1, self.head_dim)
        # [B, N, G, L, S] with S = L
        logits = jnp.einsum(
            "BLNGD,BSND->BNGLS", q, k, preferred_element_type=jnp.float32
        )
        positions = jnp.arange(length)
        # [L, S]
        seen = positions[:, None] >= positions
        logits = jnp.where(seen, logits * self.head_dim**-0.5, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("BNGLS,BSND->BLNGD", weights, v)
        # [B, L, N, G, D] -> [B, L, N * G * D]
        joined = mixed.reshape(batch, length, self.num_heads * self.head_dim)
        return nn.Dense(model_width, use_bias=False, name="o", **kinds)(joined)


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (arXiv:2002.05202).

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

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features,
                use_bias=False,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )

        hidden = jax.nn.silu(dense(self.mlp_dim, "gate")(x))
        hidden = hidden * dense(self.mlp_dim, "up")(x)
        return dense(x.shape[-1], "down")(hidden)


class DecoderLayer(nn.Module):
    """Self-attention and SwiGLU, each behind a norm and added to its input.

    Attributes:
        mlp_dim: F.
        num_heads: Heads of queries.
        num_kv_heads: Heads of keys and values.
        head_dim: D.
        epsilon: Of the RMS norms.
        dtype: Type of the arithmetic.
        param_dtype: Type of the weights.
    """

    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    epsilon: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, table: RopeTable) -> jax.Array:
        """dtype[B, L, M], [L, D / 2] -> dtype[B, L, M]."""
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        attention = SelfAttention(
            self.num_heads, self.num_kv_heads, self.head_dim, name="attention", **kinds
        )
        norm = RMSNorm(epsilon=self.epsilon, name="norm1", **kinds)
        x = x + attention(norm(x), table)
        mlp = SwiGLU(self.mlp_dim, name="mlp", **kinds)
        return x + mlp(RMSNorm(epsilon=self.epsilon, name="norm2", **kinds)(x))


class Qwen2Decoder(nn.Module):
    """Embedding, pre-norm layers, final norm.

    Attributes:
        vocab_size: Rows of the embedding.
        width: M.
        mlp_dim: F.
        num_layers: Number of layers.
        num_heads: Heads of queries.
        num_kv_heads: Heads of keys and values.
        head_dim: D.
        rope_theta: Base of the rotary wavelengths.
        epsilon: Of the RMS norms.
        dtype: Type of the arithmetic.
        param_dtype: Type of the weights.
    """

    vocab_size: int
    width: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    epsilon: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, token_ids: jax.Array) -> tuple[jax.Array, ...]:
        """Hidden states after each layer, of the last one after the final norm too.

        So `output_hidden_states` of transformers has them, less the embedding.

        Args:
            token_ids: int32[B, L], each in [0, vocab_size).

        Returns:
            One dtype[B, L, M] per layer.
        """
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        positions = jnp.arange(token_ids.shape[1], dtype=jnp.float32)
        frequencies = axis_frequencies(self.head_dim, theta=self.rope_theta)
        # [L, D / 2]
        table = rope_table(positions[:, None] * frequencies, self.dtype)
        embed = nn.Embed(self.vocab_size, self.width, name="token_embedding", **kinds)
        # [B, L] -> [B, L, M]
        x = embed(token_ids)
        states = []
        for layer in range(self.num_layers):
            x = DecoderLayer(
                mlp_dim=self.mlp_dim,
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                epsilon=self.epsilon,
                name=f"layers_{layer}",
                **kinds,
            )(x, table)
            states.append(x)
        last = RMSNorm(epsilon=self.epsilon, name="norm", **kinds)(x)
        return (*states[:-1], last)
