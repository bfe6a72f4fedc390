"""The network: one transformer block on patches, steered by sums."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from fdjax.axes import Array
from fdjax.streaming.attention import SelfAttentionFn


class TemplateNetwork(nn.Module):
    """Owns the weights, and nothing else: caches come in and go out.

    Attributes:
        out_features: Features of a patch, C * patch volume.
        model_dim: Width M.
        num_heads: Heads N; M / N below 64 loses precision in bfloat16.
        dtype: Computation dtype.
    """

    out_features: int
    model_dim: int
    num_heads: int
    dtype: DTypeLike

    def setup(self) -> None:
        """Declares the layers."""

        def dense(features: int) -> nn.Dense:
            return nn.Dense(features, dtype=self.dtype)

        def norm() -> nn.LayerNorm:
            # 1e-5 is torch's epsilon; the fast variance cancels in low precision.
            return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype)

        width = self.model_dim
        self.input_proj, self.context_proj = dense(width), dense(width)
        self.timestep_in, self.timestep_out = dense(width), dense(width)
        self.norm1, self.norm2 = norm(), norm()
        self.q_proj, self.k_proj, self.v_proj = dense(width), dense(width), dense(width)
        self.attn_out = dense(width)
        self.ffn_in, self.ffn_out = dense(2 * width), dense(width)
        self.output_proj = dense(self.out_features)

    def touch(self, text: Array) -> None:
        """Runs every layer once on one token, so that `init` makes all parameters."""
        token = jnp.zeros((1, 1, self.out_features))
        context = self.context(text)

        def attention(query: Array, key: Array, value: Array, state: Any) -> Any:
            return state, value

        self(token, jnp.zeros(()), context, None, attention, None)

    def context(self, text: Array) -> Array:
        """What the conditions add to every token.  [B, P, C] to [B, 1, M]."""
        # [B, P, C] -> [B, P, M] -> [B, 1, M]
        return self.context_proj(text).mean(axis=1, keepdims=True)

    def control(self, tokens: Array) -> Array:
        """What the control adds to each token.  [B, L, C] to [B, L, M]."""
        return self.input_proj(tokens)

    def __call__(
        self,
        latent: Array,
        timestep: Array,
        context: Array,
        control: Array | None,
        attention: SelfAttentionFn,
        state: Any,
    ) -> tuple[Array, Any]:
        """The flow of one chunk.

        Args:
            latent: Noisy patches.  float[B, L, C * patch volume].
            timestep: In [0, 1000].  float32[].
            context: From `context`.  [B, 1, M].
            control: From `control`, or None.  [B, L, M].
            attention: How queries meet keys.
            state: Of the one layer, for `attention`.

        Returns:
            The flow, float32[B, L, C * patch volume], and the state of `attention`.
        """
        # [] -> [1] -> [M]
        time = self.timestep_in(jnp.asarray(timestep, self.dtype)[None])
        # [B, L, M] + [B, 1, M] + [M]
        x = self.input_proj(latent) + context + self.timestep_out(nn.silu(time))
        if control is not None:
            x = x + control
        y = self.norm1(x)
        query, key, value = (
            self._split(project(y))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        state, attended = attention(query, key, value, state)
        # [B, L, N, D] -> [B, L, M]
        x = x + self.attn_out(attended.reshape(x.shape))
        y = self.ffn_in(self.norm2(x))
        # The exact GELU, torch's default; Flax's is the tanh approximation.
        x = x + self.ffn_out(nn.gelu(y, approximate=False))
        return self.output_proj(x).astype(jnp.float32), state

    def _split(self, x: Array) -> Array:
        """[B, L, M] to [B, L, N, D]."""
        return x.reshape(*x.shape[:-1], self.num_heads, -1)
