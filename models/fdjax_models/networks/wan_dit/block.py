"""One block of the Wan DiT: self-attention, cross-attention, MLP."""

from typing import TYPE_CHECKING, NamedTuple, Protocol

import flax.linen as nn
import jax.numpy as jnp

from fdjax.attention.attend import attend
from fdjax.axes import Array, PyTree
from fdjax_models.networks.wan_dit.layers import (
    LayerNorm,
    RMSNorm,
    add_gated,
    modulate,
    standardize,
)

if TYPE_CHECKING:
    from fdjax_models.networks.wan_dit.dit import WanDiTConfig


class SelfAttentionFn(Protocol):
    """How queries meet keys: rotates, caches, attends. Given anew at every call."""

    def __call__(
        self, query: Array, key: Array, value: Array, state: PyTree
    ) -> tuple[PyTree, Array]:
        """Attends to the chunk's own keys and to whatever `state` holds.

        Args:
            query: Normalised, not yet rotated.  [B, L, N, D].
            key: As `query`.
            value: [B, L, N, D].
            state: This layer's own state, e.g. its key/value buffers; may be None.

        Returns:
            The layer's new state, and the attention's output [B, L, N, D].
        """


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


class SelfAttention(nn.Module):
    """Fused projection, RMS norm of queries and keys over the full width, output."""

    config: "WanDiTConfig"

    def setup(self) -> None:
        """Declares the projections and norms."""
        cfg = self.config
        # One 1536 x 4608 product runs at 697 TFLOP/s on an H100, three of 1536 x 1536
        # at 385.
        self.qkv, self.o = cfg.dense(3 * cfg.dim), cfg.dense(cfg.dim)
        self.norm_q, self.norm_k = _rms_norm(cfg), _rms_norm(cfg)

    def __call__(
        self, x: Array, attention: SelfAttentionFn, state: PyTree
    ) -> tuple[PyTree, Array]:
        """[B, L, M] to the layer's new state and [B, L, M]."""
        query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        split = self.config.split_heads
        query, key = split(self.norm_q(query)), split(self.norm_k(key))
        state, out = attention(query, key, split(value), state)
        return state, self.o(out.reshape(x.shape))


class CrossAttention(nn.Module):
    """Attention to prompt tokens and, with an image branch, to image tokens."""

    config: "WanDiTConfig"

    def setup(self) -> None:
        """Declares the projections and norms."""
        cfg = self.config
        self.q, self.k, self.v, self.o = (cfg.dense(cfg.dim) for _ in "qkvo")
        self.norm_q, self.norm_k = _rms_norm(cfg), _rms_norm(cfg)
        if cfg.image_dim:
            self.k_img, self.v_img = cfg.dense(cfg.dim), cfg.dense(cfg.dim)
            self.norm_k_img = _rms_norm(cfg)

    def context(self, text: Array, image: Array | None) -> ContextKV:
        """Keys and values of embedded prompt and image tokens, [B, P, M] each."""
        split = self.config.split_heads
        keys, values = split(self.norm_k(self.k(text))), split(self.v(text))
        if image is None:
            return ContextKV(keys, values)
        image_keys = split(self.norm_k_img(self.k_img(image)))
        return ContextKV(keys, values, image_keys, split(self.v_img(image)))

    def __call__(self, x: Array, context: ContextKV) -> Array:
        """[B, L, M] to [B, L, M]; the branches share queries and are added."""
        query = self.config.split_heads(self.norm_q(self.q(x)))
        out = attend(query, context.keys, context.values)
        if context.image_keys is not None and context.image_values is not None:
            out = out + attend(query, context.image_keys, context.image_values)
        return self.o(out.reshape(x.shape))


class Mlp(nn.Module):
    """Linear, GELU (tanh approximation), linear."""

    config: "WanDiTConfig"

    def setup(self) -> None:
        """Declares the two projections."""
        cfg = self.config
        self.fc1, self.fc2 = cfg.dense(cfg.ffn_dim), cfg.dense(cfg.dim)

    def __call__(self, x: Array) -> Array:
        """[B, L, M] to [B, L, M]."""
        return self.fc2(nn.gelu(self.fc1(x), approximate=True))


class CameraBranch(nn.Module):
    """Scale and shift of the residual stream from embedded camera rays."""

    config: "WanDiTConfig"

    def setup(self) -> None:
        """Declares the four projections."""
        cfg = self.config
        self.fc1, self.fc2 = cfg.dense(cfg.dim), cfg.dense(cfg.dim)
        self.scale, self.shift = cfg.dense(cfg.dim), cfg.dense(cfg.dim)

    def __call__(self, rays: Array) -> CameraModulation:
        """Embedded rays [B, L, M] to two [B, L, M]."""
        rays = rays + self.fc2(nn.silu(self.fc1(rays)))
        return CameraModulation(self.scale(rays), self.shift(rays))


class Block(nn.Module):
    """One transformer block; `WanDiT` says what its arguments are."""

    config: "WanDiTConfig"

    def setup(self) -> None:
        """Declares the sublayers."""
        cfg = self.config
        init = nn.initializers.normal(cfg.dim**-0.5)
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
        time: Array,
        attention: SelfAttentionFn,
        state: PyTree,
        context: ContextKV | None,
        camera: CameraModulation | None,
    ) -> tuple[PyTree, Array]:
        """Residual stream [B, L, M], time modulation float32[B, G, 6, M]."""
        modulation = self.modulation.astype(jnp.float32) + time
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (
            modulation[:, :, index] for index in range(6)
        )
        eps = self.config.eps
        y = modulate(standardize(x, eps), scale, shift).astype(x.dtype)
        state, y = self.self_attn(y, attention, state)
        x = add_gated(x, y, gate)
        if camera is not None:
            x = (1 + camera.scale) * x + camera.shift
        if context is not None:
            x = x + self.cross_attn(self.norm3(x), context)
        y = modulate(standardize(x, eps), mlp_scale, mlp_shift).astype(x.dtype)
        return state, add_gated(x, self.ffn(y), mlp_gate)


def _rms_norm(config: "WanDiTConfig") -> RMSNorm:
    return RMSNorm(config.eps, config.param_dtype)
