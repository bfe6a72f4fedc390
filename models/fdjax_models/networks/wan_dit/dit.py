"""The Wan diffusion transformer: weights and one forward pass, no cache of its own."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.config import InstantiateConfig
from fdjax.nn.random_params import random_params
from fdjax_models.networks.wan_dit.block import (
    Block,
    CameraModulation,
    ContextKV,
    SelfAttentionFn,
)
from fdjax_models.networks.wan_dit.layers import LayerNorm, modulate, standardize
from fdjax_models.networks.wan_dit.time_embedding import sinusoid

_CLIP_EPS = 1e-5  # torch's default, which the image embedder keeps


class ImageEmbedding(nn.Module):
    """Projects image tokens to the model width; GELU is exact here, not tanh."""

    config: "WanDiTConfig"

    def setup(self) -> None:
        """Declares two norms and two projections."""
        cfg = self.config
        self.norm1 = LayerNorm(_CLIP_EPS, cfg.param_dtype)
        self.norm2 = LayerNorm(_CLIP_EPS, cfg.param_dtype)
        self.fc1, self.fc2 = cfg.dense(cfg.image_dim), cfg.dense(cfg.dim)

    def __call__(self, x: Array) -> Array:
        """[B, P, image_dim] to [B, P, M]."""
        x = self.norm1(x.astype(self.config.dtype))
        return self.norm2(self.fc2(nn.gelu(self.fc1(x), approximate=False)))


class Head(nn.Module):
    """Modulated norm and the projection to patches."""

    config: "WanDiTConfig"

    def setup(self) -> None:
        """Declares the modulation and the projection."""
        cfg = self.config
        init = nn.initializers.normal(cfg.dim**-0.5)
        shape = (2, cfg.dim)
        self.modulation = self.param("modulation", init, shape, cfg.param_dtype)
        self.proj = cfg.dense(cfg.out_dim * cfg.patch_volume)

    def __call__(self, x: Array, time: Array) -> Array:
        """[B, L, M] and time embedding float32[B, G, M] to [B, L, out * patch]."""
        modulation = self.modulation.astype(jnp.float32) + time[:, :, None]
        shift, scale = modulation[:, :, 0], modulation[:, :, 1]
        return self.proj(modulate(standardize(x, self.config.eps), scale, shift))


class WanDiT(nn.Module):
    """Diffusion transformer of Wan 2.1 (arXiv:2503.20314) and of its causal variants.

    Its layers are unrolled, so that each one's key/value buffer is updated in place.
    How queries meet keys is an argument: a function that rotates, caches and attends.
    The same weights thus serve streaming, bidirectional generation and training.

    Patch features are ordered (channel, t, h, w) at the input and at the output.
    """

    config: "WanDiTConfig"

    def setup(self) -> None:
        """Declares the embeddings, the blocks and the head."""
        cfg = self.config
        self.patch_embedding = cfg.dense(cfg.dim)
        # float32 as in Wan 2.1; it costs nothing, there is one timestep per chunk.
        self.time_embedding_fc1 = cfg.dense(cfg.dim, "float32")
        self.time_embedding_fc2 = cfg.dense(cfg.dim, "float32")
        self.time_projection = cfg.dense(6 * cfg.dim, "float32")
        if cfg.text_dim:
            self.text_embedding_fc1 = cfg.dense(cfg.dim)
            self.text_embedding_fc2 = cfg.dense(cfg.dim)
        if cfg.image_dim:
            self.image_embedding = ImageEmbedding(cfg)
        if cfg.control_dim:
            self.camera_embedding = cfg.dense(cfg.dim)
            self.camera_fc1, self.camera_fc2 = cfg.dense(cfg.dim), cfg.dense(cfg.dim)
        if cfg.token_feature_dim:
            self.token_embedding = cfg.dense(cfg.dim)
        if cfg.vector_feature_dim:
            self.vector_embedding = cfg.dense(cfg.dim, "float32")
        self.blocks = [Block(cfg) for _ in range(cfg.num_layers)]
        self.head = Head(cfg)

    def context(
        self, text: Array | None, image: Array | None = None
    ) -> tuple[ContextKV | None, ...]:
        """What every layer's cross-attention reads; once per prompt.

        Args:
            text: Encoded prompt; zeros after its end take part. None if and only if
                `config.text_dim` is 0.  [B, P, text_dim].
            image: Encoded first frame, if the network has an image branch; None leaves
                the branch out.  [B, P, image_dim].

        Returns:
            One entry per layer.
        """
        if not self.config.text_dim:
            return (None,) * self.config.num_layers
        x = nn.gelu(self.text_embedding_fc1(text), approximate=True)
        x = self.text_embedding_fc2(x)
        image = None if image is None else self.image_embedding(image)
        return tuple(block.context_kv(x, image) for block in self.blocks)

    def camera(self, rays: Array) -> tuple[CameraModulation, ...]:
        """What every layer's camera branch adds; once per chunk, for all its steps.

        Args:
            rays: Patchified camera rays.  [B, L, control_dim * patch volume].

        Returns:
            One entry per layer.
        """
        x = self.camera_embedding(rays)
        x = x + self.camera_fc2(nn.silu(self.camera_fc1(x)))
        return tuple(block.camera_modulation(x) for block in self.blocks)

    def __call__(
        self,
        latent: Array,
        timestep: Array,
        attention: SelfAttentionFn,
        states: tuple[PyTree, ...],
        context: tuple[ContextKV | None, ...],
        *,
        camera: tuple[CameraModulation, ...] | None = None,
        token_features: Array | None = None,
        vector_features: Array | None = None,
    ) -> tuple[tuple[PyTree, ...], Array]:
        """One forward pass.

        A timestep or a vector feature holds for the whole chunk or for a group of
        consecutive tokens: G is 1, the number of frames, or L (per token).

        Args:
            latent: Patchified noisy latent, and what is concatenated to its channels.
                [B, L, in_dim * patch volume].
            timestep: In [0, 1000].  float32[], [B] or [B, G].
            attention: Self-attention of every layer.
            states: One state per layer, for `attention`.
            context: From `context`.
            camera: From `camera`, if the network has the branch.
            token_features: Added to the tokens after a projection, if
                `config.token_feature_dim`.  [B, L, token_feature_dim].
            vector_features: Added to the time embedding after a projection, if
                `config.vector_feature_dim`.  [B, vector_feature_dim] or
                [B, G, vector_feature_dim].

        Returns:
            The new states, and the flow, float32[B, L, out_dim * patch volume].
        """
        x = self.patch_embedding(latent)
        if token_features is not None:
            x = x + self.token_embedding(token_features)
        time = self._embed_time(timestep, len(latent), vector_features)
        # [B, G, 6, M]
        modulation = self.time_projection(nn.silu(time)).reshape(*time.shape[:2], 6, -1)
        new_states = []
        for index, block in enumerate(self.blocks):
            branch = None if camera is None else camera[index]
            state, x = block(
                x, modulation, attention, states[index], context[index], branch
            )
            new_states.append(state)
        return tuple(new_states), self.head(x, time).astype(jnp.float32)

    def _embed_time(self, timestep: Array, batch: int, vectors: Array | None) -> Array:
        """Timestep (and vector features) to float32[B, G, M]."""
        if timestep.ndim < 2:
            timestep = jnp.broadcast_to(timestep, (batch,))[:, None]
        x = sinusoid(timestep, self.config.freq_dim)
        x = self.time_embedding_fc2(nn.silu(self.time_embedding_fc1(x)))
        if vectors is None:
            return x
        vectors = vectors[:, None] if vectors.ndim == 2 else vectors
        return x + self.vector_embedding(vectors)

    def _touch(self) -> None:
        """Runs every layer once on one token, so that `init` makes all parameters."""
        cfg = self.config

        def token(width: int) -> Array:
            return jnp.zeros((1, 1, width), cfg.dtype)

        self(
            token(cfg.in_dim * cfg.patch_volume),
            jnp.zeros((1,)),
            lambda query, key, value, state: (state, value),
            (None,) * cfg.num_layers,
            self.context(
                token(cfg.text_dim), token(cfg.image_dim) if cfg.image_dim else None
            ),
            camera=(
                self.camera(token(cfg.control_dim * cfg.patch_volume))
                if cfg.control_dim
                else None
            ),
            token_features=(
                token(cfg.token_feature_dim) if cfg.token_feature_dim else None
            ),
            vector_features=(
                token(cfg.vector_feature_dim) if cfg.vector_feature_dim else None
            ),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanDiTConfig(InstantiateConfig):
    """Sizes of a Wan DiT; the defaults are those of Wan 2.1 T2V 1.3B."""

    _target: type = WanDiT

    dim: int = 1536
    """Model width M."""

    ffn_dim: int = 8960
    """MLP width F."""

    num_heads: int = 12
    """Attention heads N."""

    num_layers: int = 30
    """Transformer blocks."""

    in_dim: int = 16
    """Channels of the network's input: the latent and what is concatenated to it."""

    out_dim: int = 16
    """Channels of the latent."""

    text_dim: int = 4096
    """Width of the text encoder's output; 0 builds a network without text."""

    text_len: int = 512
    """Prompt tokens P, padding included."""

    image_dim: int = 0
    """Width of the image encoder's output (1280 for CLIP ViT-H); 0: no such branch."""

    control_dim: int = 0
    """Channels of the camera rays (384: 6 per pixel, 8 x 8 pixels); 0: no branch."""

    token_feature_dim: int = 0
    """Channels of `WanControl.token_features`; 0: the network takes none."""

    vector_feature_dim: int = 0
    """Width of `WanControl.vector_features`; 0: the network takes none."""

    freq_dim: int = 256
    """Sinusoidal features of the timestep."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns of one token."""

    eps: float = 1e-6
    """Epsilon of the norms, except those of the image embedding."""

    dtype: str = "bfloat16"
    """Dtype of activations and of the key/value cache. Norm statistics, modulation,
    rotary embedding and softmax are float32."""

    param_dtype: str = "bfloat16"
    """Dtype of the weights."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ValueError(
                "dim must be num_heads times an even head width, got "
                f"dim={self.dim} with num_heads={self.num_heads}."
            )
        if self.head_dim < 6:
            raise ValueError(
                "The head width dim / num_heads must be at least 6, two for each of "
                f"time, row and column, got {self.head_dim}."
            )
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim must be even, got {self.freq_dim}.")
        if self.image_dim and not self.text_dim:
            raise ValueError(
                f"image_dim={self.image_dim} needs the cross-attention that text_dim=0 "
                "leaves out; set text_dim."
            )

    @property
    def head_dim(self) -> int:
        """Head width D."""
        return self.dim // self.num_heads

    @property
    def patch_volume(self) -> int:
        """Latent positions per token."""
        return math.prod(self.patch_size)

    def dense(self, features: int, dtype: str | None = None) -> nn.Dense:
        """A projection of this network: its dtype unless given, its parameter dtype."""
        return nn.Dense(
            features, dtype=dtype or self.dtype, param_dtype=self.param_dtype
        )

    def split_heads(self, x: Array) -> Array:
        """[B, L, M] to [B, L, N, D]."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim)

    def init_params(self, key: jax.Array) -> Params:
        """Random weights that keep activations at unit scale."""
        module = self.setup()
        shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), method="_touch"))
        return random_params(shapes["params"], key)


WAN_1_3B = WanDiTConfig()
"""Wan 2.1 T2V 1.3B; Self-Forcing and Causal-Forcing keep its sizes."""

WAN_14B_T2V = WanDiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
"""Wan 2.1 T2V 14B, and each half of the Wan 2.2 A14B pair."""

WAN_14B_I2V = dataclasses.replace(WAN_14B_T2V, in_dim=36, image_dim=1280)
"""Wan 2.1 I2V 14B: mask and image latent as channels, CLIP cross-attention."""

WAN_TI2V_5B = WanDiTConfig(
    dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48
)
"""Wan 2.2 TI2V 5B, on the latents of the Wan 2.2 VAE."""

LINGBOT_WORLD_14B = dataclasses.replace(WAN_14B_T2V, in_dim=36, control_dim=384)
"""LingBot-World 14B: mask and image latent as channels, camera branch."""
