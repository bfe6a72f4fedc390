"""One block of the Cosmos DiT: self-attention, views, text, MLP."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from fdjax.attention.attend import attend
from fdjax.axes import Array, PyTree
from fdjax.sharding import constrain, cuts_weights
from fdjax.streaming.attention import SelfAttentionFn
from fdjax_models.networks.cosmos_dit.config import CosmosDiTConfig
from fdjax_models.networks.cosmos_dit.layers import (
    Modulation,
    Time,
    dense,
    rms_norm,
)
from fdjax_models.networks.wan_dit.layers import (
    LayerNorm,
    add_gated,
    modulate,
    standardize,
)


class ContextKV(NamedTuple):
    """What one layer's cross-attention reads; constant while the prompt is.

    Attributes:
        keys: Of the prompt tokens.  [B, P, N, D].
        values: As `keys`.
    """

    keys: Array
    values: Array


class FusedProjection(nn.Module):
    """Queries, keys and values in one product, without bias; kernel [M, 3, N, D]."""

    config: CosmosDiTConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, L, M] to [B, L, 3, N, D]."""
        cfg = self.config
        shape = cfg.dim, 3, cfg.num_heads, cfg.head_dim
        # The fan-in is M alone; the other three axes are outputs.
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2, 3))
        kernel = self.param("kernel", init, shape, cfg.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=cfg.dtype)
        if cuts_weights():
            # C is 3 here. Heads keep an axis of their own, by which the mesh cuts them.
            return jnp.einsum("BLM,MCND->BLCND", x, kernel)
        # [B, L, M] @ [M, 3 N D] -> [B, L, 3, N, D]
        return (x @ kernel.reshape(cfg.dim, -1)).reshape(*x.shape[:2], *shape[1:])


class SelfAttention(nn.Module):
    """Fused projection, RMS norm of each head's queries and keys, output."""

    config: CosmosDiTConfig

    def setup(self) -> None:
        """Declares the projections and norms."""
        cfg = self.config
        self.qkv = FusedProjection(cfg)
        self.o = dense(cfg, cfg.dim)
        self.norm_q, self.norm_k = rms_norm(cfg), rms_norm(cfg)

    def __call__(
        self, x: Array, attention: SelfAttentionFn, state: PyTree
    ) -> tuple[PyTree, Array]:
        """[B, L, M] to the layer's new state and [B, L, M]."""
        fused = self.qkv(x)  # [B, L, 3, N, D]
        # [B, L, N, D] each; the norm is over D, one weight for all heads.
        query, key = self.norm_q(fused[:, :, 0]), self.norm_k(fused[:, :, 1])
        state, out = attention(query, key, fused[:, :, 2], state)
        # [B, L, N, D] -> [B, L, M]
        return state, self.o(out.reshape(x.shape))

    def across_views(self, x: Array, num_views: int, num_frames: int) -> Array:
        """Every token sees those of its frame in all views, unrotated and uncached.

        Args:
            x: Rows ordered (..., view).  [B V, T h w, M].
            num_views: V.
            num_frames: T.
        """
        shape = x.shape
        # [B V, T h w, M] -> [B, V, T, h w, M] -> [B T, V h w, M]
        y = x.reshape(-1, num_views, num_frames, shape[1] // num_frames, shape[2])
        split = y.shape
        y = y.swapaxes(1, 2).reshape(split[0] * num_frames, -1, shape[2])

        def attention(
            query: Array, key: Array, value: Array, state: PyTree
        ) -> tuple[PyTree, Array]:
            return state, attend(query, key, value)

        _, y = self(y, attention, None)
        # [B T, V h w, M] -> [B, T, V, h w, M] -> [B V, T h w, M]
        y = y.reshape(split[0], num_frames, num_views, *split[3:])
        return y.swapaxes(1, 2).reshape(shape)


class CrossAttention(nn.Module):
    """Attention to the projected prompt."""

    config: CosmosDiTConfig

    def setup(self) -> None:
        """Declares the projections and norms."""
        cfg = self.config
        self.q, self.k, self.v, self.o = (dense(cfg, cfg.dim) for _ in "qkvo")
        self.norm_q, self.norm_k = rms_norm(cfg), rms_norm(cfg)

    def context(self, text: Array) -> ContextKV:
        """Keys and values of projected prompt tokens, [B, P, context_dim]."""
        # [B, P, context_dim] -> [B, P, N, D]
        keys, values = (self._heads(layer(text)) for layer in (self.k, self.v))
        return ContextKV(self.norm_k(keys), values)

    def __call__(self, x: Array, context: ContextKV) -> Array:
        """[B, L, M] to [B, L, M]."""
        # No mask: what pads a prompt takes part, as in the reference.
        query = self.norm_q(self._heads(self.q(x)))
        out = attend(query, context.keys, context.values)
        return self.o(out.reshape(x.shape))

    def _heads(self, x: Array) -> Array:
        """[B, L, M] to [B, L, N, D]."""
        cfg = self.config
        return x.reshape(*x.shape[:2], cfg.num_heads, cfg.head_dim)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    config: CosmosDiTConfig

    def setup(self) -> None:
        """Declares the two projections."""
        cfg = self.config
        self.fc1, self.fc2 = dense(cfg, cfg.ffn_dim), dense(cfg, cfg.dim)

    def __call__(self, x: Array) -> Array:
        """[B, L, M] to [B, L, M]."""
        return self.fc2(nn.gelu(self.fc1(x), approximate=False))


class Block(nn.Module):
    """One transformer block; `CosmosDiT` says what its arguments are."""

    config: CosmosDiTConfig

    def setup(self) -> None:
        """Declares the sublayers."""
        cfg = self.config
        self.modulation_self, self.modulation_cross, self.modulation_mlp = (
            Modulation(cfg) for _ in range(3)
        )
        self.self_attn, self.cross_attn = SelfAttention(cfg), CrossAttention(cfg)
        if cfg.num_cameras:
            self.view_norm = LayerNorm(cfg.eps, cfg.param_dtype)
            self.view_attn = SelfAttention(cfg)
        self.mlp = Mlp(cfg)

    def context_kv(self, text: Array) -> ContextKV:
        """Cross-attention keys and values of the projected prompt."""
        return self.cross_attn.context(text)

    def __call__(
        self,
        x: Array,
        time: Time,
        attention: SelfAttentionFn,
        state: PyTree,
        context: ContextKV,
        view: Array | None,
        *,
        num_views: int,
        num_frames: int,
    ) -> tuple[PyTree, Array]:
        """Residual stream [B, L, M], view modulation [B, 9, M]."""
        x = constrain(x, "BLM")
        # [B, 3, M] each: shift, scale and gate of a sublayer.
        views = (None,) * 3 if view is None else jnp.split(view, 3, axis=1)
        shift, scale, gate = self.modulation_self(time, views[0])
        y = self._modulated(x, scale, shift)
        state, y = self.self_attn(y, attention, state)
        x = add_gated(x, y, gate)
        if self.config.num_cameras:
            # Neither modulated nor gated; its norm is affine instead.
            y = self.view_norm(x)
            x = x + self.view_attn.across_views(y, num_views, num_frames)
        shift, scale, gate = self.modulation_cross(time, views[1])
        y = self._modulated(x, scale, shift)
        x = add_gated(x, self.cross_attn(y, context), gate)
        shift, scale, gate = self.modulation_mlp(time, views[2])
        y = self._modulated(x, scale, shift)
        return state, add_gated(x, self.mlp(y), gate)

    def _modulated(self, x: Array, scale: Array, shift: Array) -> Array:
        y = modulate(standardize(x, self.config.eps), scale, shift)
        return y.astype(x.dtype)
