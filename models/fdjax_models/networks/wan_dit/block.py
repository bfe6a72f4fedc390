"""One block of the Wan DiT: self-attention, cross-attention, MLP."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from fdjax.attention.attend import attend
from fdjax.axes import Array, PyTree
from fdjax.sharding import constrain, cuts_weights
from fdjax.streaming.attention import SelfAttentionFn
from fdjax_models.networks.wan_dit.config import WanDiTConfig
from fdjax_models.networks.wan_dit.layers import (
    LayerNorm,
    RMSNorm,
    TimeVectors,
    add_gated,
    dense,
    for_tokens,
    modulate,
    split_heads,
    standardize,
)


class ContextKV(NamedTuple):
    """What one layer's cross-attention reads; constant while the prompt is.

    Attributes:
        keys: Of the prompt tokens.  [B, P, N, D].
        values: As `keys`.
        image_keys: Of the image tokens, or None without an image branch.  [B, P, N, D].
        image_values: As `image_keys`.
    """

    keys: Array
    values: Array
    image_keys: Array | None = None
    image_values: Array | None = None


class CameraModulation(NamedTuple):
    """What one layer's camera branch makes of the chunk's rays.  [B, L, M] each.

    Attributes:
        scale: Plus one, it multiplies the residual stream.
        shift: It is added to it.
    """

    scale: Array
    shift: Array


class FusedProjection(nn.Module):
    """Queries, keys and values in one product, its kernel [M, 3, N, D].

    So it can be cut by heads. One 1536 x 4608 product runs at 697 TFLOP/s on an H100,
    three of 1536 x 1536 at 385.
    """

    config: WanDiTConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, L, M] to [B, L, 3, N, D]."""
        cfg = self.config
        heads = 3, cfg.num_heads, cfg.head_dim
        # The fan-in is M alone; the other three axes are outputs.
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2, 3))
        kernel = self.param("kernel", init, (cfg.dim, *heads), cfg.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, heads, cfg.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=cfg.dtype)
        if cuts_weights():
            # C is 3 here. Heads keep an axis of their own, by which the mesh cuts them.
            return jnp.einsum("BLM,MCND->BLCND", x, kernel) + bias
        # As a matrix, cuBLAS adds the bias where it writes the product; as heads it is
        # a pass of its own, 0.05 ms a layer.
        # [B, L, M] @ [M, 3 * N * D] -> [B, L, 3 * N * D]
        y = x @ kernel.reshape(cfg.dim, -1) + bias.reshape(-1)
        # [B, L, 3, N, D]
        return y.reshape(*x.shape[:2], *heads)


class SelfAttention(nn.Module):
    """Fused projection, RMS norm of queries and keys over the full width, output."""

    config: WanDiTConfig

    def setup(self) -> None:
        """Declares the projections and norms."""
        cfg = self.config
        self.qkv = FusedProjection(cfg)
        self.o = dense(cfg, cfg.dim)
        self.norm_q, self.norm_k = _rms_norm(cfg), _rms_norm(cfg)

    def __call__(
        self, x: Array, attention: SelfAttentionFn, state: PyTree
    ) -> tuple[PyTree, Array]:
        """[B, L, M] to the layer's new state and [B, L, M]."""
        fused = self.qkv(x)  # [B, L, 3, N, D]
        # [B, L, N, D] each
        query, key, value = (fused[:, :, index] for index in range(3))
        # The norm is over all heads: [B, L, N, D] -> [B, L, M] -> [B, L, N, D].
        query = self.norm_q(query.reshape(x.shape)).reshape(query.shape)
        key = self.norm_k(key.reshape(x.shape)).reshape(key.shape)
        state, out = attention(query, key, value, state)
        # [B, L, N, D] -> [B, L, M]
        return state, self.o(out.reshape(x.shape))


class CrossAttention(nn.Module):
    """Attention to prompt tokens and, with an image branch, to image tokens."""

    config: WanDiTConfig

    def setup(self) -> None:
        """Declares the projections and norms."""
        cfg = self.config
        self.q, self.k, self.v, self.o = (dense(cfg, cfg.dim) for _ in "qkvo")
        self.norm_q, self.norm_k = _rms_norm(cfg), _rms_norm(cfg)
        if cfg.image_dim:
            self.k_img, self.v_img = dense(cfg, cfg.dim), dense(cfg, cfg.dim)
            self.norm_k_img = _rms_norm(cfg)

    def context(self, text: Array, image: Array | None) -> ContextKV:
        """Keys and values of embedded prompt and image tokens, [B, P, M] each."""
        cfg = self.config
        # [B, P, M] -> [B, P, N, D]; the norm is over all heads, as in self-attention
        keys = split_heads(cfg, self.norm_k(self.k(text)))
        values = split_heads(cfg, self.v(text))
        if image is None:
            return ContextKV(keys, values)
        # The image's tokens have projections and a key norm of their own.
        image_keys = split_heads(cfg, self.norm_k_img(self.k_img(image)))
        image_values = split_heads(cfg, self.v_img(image))
        return ContextKV(keys, values, image_keys, image_values)

    def __call__(self, x: Array, context: ContextKV) -> Array:
        """[B, L, M] to [B, L, M]; the branches share queries and are added."""
        # [B, L, M] -> [B, L, N, D]
        query = split_heads(self.config, self.norm_q(self.q(x)))
        # No mask: the zero rows behind a prompt take part, as in the published code
        # (wan/modules/model.py of Wan-Video/Wan2.1).
        out = attend(query, context.keys, context.values)
        # Two softmaxes, not one over both: the weights of each branch sum to 1.
        if context.image_keys is not None and context.image_values is not None:
            out = out + attend(query, context.image_keys, context.image_values)
        # [B, L, N, D] -> [B, L, M], one projection for the sum
        return self.o(out.reshape(x.shape))


class Mlp(nn.Module):
    """Linear, GELU (tanh approximation), linear."""

    config: WanDiTConfig

    def setup(self) -> None:
        """Declares the two projections."""
        cfg = self.config
        self.fc1, self.fc2 = dense(cfg, cfg.ffn_dim), dense(cfg, cfg.dim)

    def __call__(self, x: Array) -> Array:
        """[B, L, M] to [B, L, M]."""
        return self.fc2(nn.gelu(self.fc1(x), approximate=True))


class CameraBranch(nn.Module):
    """Scale and shift of the residual stream from embedded camera rays."""

    config: WanDiTConfig

    def setup(self) -> None:
        """Declares the four projections."""
        cfg = self.config
        self.fc1, self.fc2 = dense(cfg, cfg.dim), dense(cfg, cfg.dim)
        self.scale, self.shift = dense(cfg, cfg.dim), dense(cfg, cfg.dim)

    def __call__(self, rays: Array) -> CameraModulation:
        """Embedded rays [B, L, M] to two [B, L, M]."""
        # No gate, and nothing that depends on the timestep: one result serves all
        # steps of a chunk.
        rays = rays + self.fc2(nn.silu(self.fc1(rays)))
        return CameraModulation(
            constrain(self.scale(rays), "BLM"), constrain(self.shift(rays), "BLM")
        )


class Block(nn.Module):
    """One transformer block; `WanDiT` says what its arguments are."""

    config: WanDiTConfig

    def setup(self) -> None:
        """Declares the sublayers."""
        cfg = self.config
        # As Wan-Video/Wan2.1, wan/modules/model.py: randn / sqrt(M).
        init = nn.initializers.normal(cfg.dim**-0.5)
        # Shift, scale and gate of self-attention, then those of the MLP.
        shape = (6, cfg.dim)
        self.modulation = self.param("modulation", init, shape, cfg.param_dtype)
        self.self_attn = SelfAttention(cfg)
        if cfg.text_dim:
            self.norm3 = LayerNorm(cfg.eps, cfg.param_dtype)
            self.cross_attn = CrossAttention(cfg)
        if cfg.control_dim:
            self.camera = CameraBranch(cfg)
        self.ffn = Mlp(cfg)

    def context_kv(self, text: Array, image: Array | None) -> ContextKV:
        """Cross-attention keys and values of embedded conditions [B, P, M]."""
        return self.cross_attn.context(text, image)

    def camera_modulation(self, rays: Array) -> CameraModulation:
        """Scale and shift from embedded rays [B, L, M]."""
        return self.camera(rays)

    def __call__(
        self,
        x: Array,
        time: TimeVectors,
        attention: SelfAttentionFn,
        state: PyTree,
        context: ContextKV | None,
        camera: CameraModulation | None,
    ) -> tuple[PyTree, Array]:
        """Residual stream [B, L, M], time modulation of vectors [B, G, 6, M]."""
        x = constrain(x, "BLM")
        # [6, M] + [B, G, 6, M] -> [B, G, 6, M]
        modulation = self.modulation.astype(jnp.float32) + time.vectors
        # [B, G, M] each, or [B, L, M]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            for_tokens(modulation[:, :, index], time.second) for index in range(6)
        )
        eps = self.config.eps
        y = modulate(standardize(x, eps), scale, shift).astype(x.dtype)
        state, y = self.self_attn(y, attention, state)
        x = add_gated(x, y, gate)
        # Here, between the two attentions, as in LingBot-World.
        if camera is not None:
            x = (1 + camera.scale) * x + camera.shift
        # Neither modulated nor gated; norm3 is affine instead.
        if context is not None:
            x = x + self.cross_attn(self.norm3(x), context)
        y = modulate(standardize(x, eps), mlp_scale, mlp_shift).astype(x.dtype)
        return state, add_gated(x, self.ffn(y), mlp_gate)


def _rms_norm(config: WanDiTConfig) -> RMSNorm:
    return RMSNorm(config.eps, config.param_dtype)
