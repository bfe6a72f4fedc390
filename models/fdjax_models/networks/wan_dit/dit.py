"""The Wan diffusion transformer: weights and one forward pass, no cache of its own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.nn.random_params import random_params
from fdjax.streaming.attention import SelfAttentionFn
from fdjax_models.networks.wan_dit.block import Block, CameraModulation, ContextKV
from fdjax_models.networks.wan_dit.config import WanDiTConfig
from fdjax_models.networks.wan_dit.layers import (
    LayerNorm,
    TimeVectors,
    dense,
    for_tokens,
    modulate,
    standardize,
)
from fdjax_models.networks.wan_dit.time_embedding import (
    TokenTimesteps,
    sinusoid,
)

_CLIP_EPS = 1e-5  # torch's default, which the image embedder keeps


class ImageEmbedding(nn.Module):
    """Projects image tokens to the model width; GELU is exact here, not tanh."""

    config: WanDiTConfig

    def setup(self) -> None:
        """Declares two norms and two projections."""
        cfg = self.config
        self.norm1 = LayerNorm(_CLIP_EPS, cfg.param_dtype)
        self.norm2 = LayerNorm(_CLIP_EPS, cfg.param_dtype)
        self.fc1, self.fc2 = dense(cfg, cfg.image_dim), dense(cfg, cfg.dim)

    def __call__(self, x: Array) -> Array:
        """[B, P, image_dim] to [B, P, M]."""
        x = self.norm1(x.astype(self.config.dtype))
        return self.norm2(self.fc2(nn.gelu(self.fc1(x), approximate=False)))


class Head(nn.Module):
    """Modulated norm and the projection to patches."""

    config: WanDiTConfig

    def setup(self) -> None:
        """Declares the modulation and the projection."""
        cfg = self.config
        init = nn.initializers.normal(cfg.dim**-0.5)
        # Shift, then scale: the order of rows in the checkpoint.
        shape = (2, cfg.dim)
        self.modulation = self.param("modulation", init, shape, cfg.param_dtype)
        # Checkpoints order its outputs (t, h, w, channel); the converter permutes them.
        self.proj = dense(cfg, cfg.out_dim * cfg.patch_volume)

    def __call__(self, x: Array, time: TimeVectors) -> Array:
        """[B, L, M] and time embedding of vectors [B, G, M] to [B, L, out * patch]."""
        # [2, M] + [B, G, 1, M] -> [B, G, 2, M]
        modulation = self.modulation.astype(jnp.float32) + time.vectors[:, :, None]
        # [B, G, M] each, or [B, L, M]
        shift, scale = (
            for_tokens(modulation[:, :, index], time.second) for index in range(2)
        )
        return self.proj(modulate(standardize(x, self.config.eps), scale, shift))


class WanDiT(nn.Module):
    """Diffusion transformer of Wan 2.1 (arXiv:2503.20314) and of its causal variants.

    Its layers are unrolled, so that each one's key/value buffer is updated in place.
    How queries meet keys is an argument: a function that rotates, caches and attends.
    The same weights thus serve streaming, bidirectional generation and training.

    Patch features are ordered (channel, t, h, w) at the input and at the output.
    """

    config: WanDiTConfig

    def setup(self) -> None:
        """Declares the embeddings, the blocks and the head."""
        cfg = self.config
        # A strided convolution in checkpoints: on patches, a matrix product.
        self.patch_embedding = dense(cfg, cfg.dim)
        # float32 as in Wan 2.1; it costs nothing, there is one timestep per chunk.
        self.time_embedding_fc1 = dense(cfg, cfg.dim, "float32")
        self.time_embedding_fc2 = dense(cfg, cfg.dim, "float32")
        # Shift, scale and gate, for self-attention and for the MLP.
        self.time_projection = dense(cfg, 6 * cfg.dim, "float32")
        if cfg.text_dim:
            self.text_embedding_fc1 = dense(cfg, cfg.dim)
            self.text_embedding_fc2 = dense(cfg, cfg.dim)
        if cfg.image_dim:
            self.image_embedding = ImageEmbedding(cfg)
        if cfg.control_dim:
            self.camera_embedding = dense(cfg, cfg.dim)
            self.camera_fc1, self.camera_fc2 = dense(cfg, cfg.dim), dense(cfg, cfg.dim)
        if cfg.token_feature_dim:
            self.token_embedding = dense(cfg, cfg.dim)
        if cfg.vector_feature_dim:
            self.vector_embedding = dense(cfg, cfg.dim, "float32")
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
        # [B, P, text_dim] -> [B, P, M]
        x = nn.gelu(self.text_embedding_fc1(text), approximate=True)
        x = self.text_embedding_fc2(x)
        # [B, P, image_dim] -> [B, P, M], with a P of its own: 257 of CLIP
        image = None if image is None else self.image_embedding(image)
        return tuple(block.context_kv(x, image) for block in self.blocks)

    def camera(self, rays: Array) -> tuple[CameraModulation, ...]:
        """What every layer's camera branch adds; once per chunk, for all its steps.

        Args:
            rays: Patchified camera rays.  [B, L, control_dim * patch volume].

        Returns:
            One entry per layer.
        """
        # [B, L, control_dim * patch volume] -> [B, L, M]
        x = self.camera_embedding(rays)
        x = x + self.camera_fc2(nn.silu(self.camera_fc1(x)))
        return tuple(block.camera_modulation(x) for block in self.blocks)

    def __call__(
        self,
        latent: Array,
        timestep: Array | TokenTimesteps,
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
            timestep: In [0, 1000].  float32[], [B] or [B, G]; or one of two for each
                token.
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
        # [B, L, in_dim * patch volume] -> [B, L, M]
        x = self.patch_embedding(latent)
        if token_features is not None:
            x = x + self.token_embedding(token_features)
        second = None
        if isinstance(timestep, TokenTimesteps):
            timestep, second = timestep
        vectors = self._embed_time(timestep, len(latent), vector_features)
        time = TimeVectors(vectors, second)
        # [B, G, M] -> [B, G, 6, M]
        projected = self.time_projection(nn.silu(vectors))
        projected = projected.reshape(*vectors.shape[:2], 6, -1)
        modulation = TimeVectors(projected, second)
        new_states = []
        for index, block in enumerate(self.blocks):
            branch = None if camera is None else camera[index]
            state, x = block(
                x, modulation, attention, states[index], context[index], branch
            )
            new_states.append(state)
        # The head reads the embedding itself, the blocks its projection. float32, since
        # the sampler's arithmetic is.  [B, L, M] -> [B, L, out_dim * patch volume]
        return tuple(new_states), self.head(x, time).astype(jnp.float32)

    def _embed_time(self, timestep: Array, batch: int, vectors: Array | None) -> Array:
        """Timestep (and vector features) to float32[B, G, M]."""
        if timestep.ndim < 2:
            # [] or [B] -> [B, 1]
            timestep = jnp.broadcast_to(timestep, (batch,))[:, None]
        # [B, G] -> [B, G, freq_dim] -> [B, G, M]
        x = sinusoid(timestep, self.config.freq_dim)
        x = self.time_embedding_fc2(nn.silu(self.time_embedding_fc1(x)))
        if vectors is None:
            return x
        # [B, vector_feature_dim] -> [B, 1, vector_feature_dim]
        vectors = vectors[:, None] if vectors.ndim == 2 else vectors
        # Either G may be 1 and broadcasts: a timestep a chunk, a vector a frame.
        return x + self.vector_embedding(vectors)

    def _touch(self) -> None:
        """Runs every layer once on one token, so that `init` makes all parameters."""
        cfg = self.config

        def token(width: int) -> Array:
            return jnp.zeros((1, 1, width), cfg.dtype)

        self(
            token(cfg.in_dim * cfg.patch_volume),
            jnp.zeros((1,)),
            # In place of self-attention, which owns no weights.
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


def init_params(config: WanDiTConfig, key: jax.Array) -> Params:
    """Random weights of these sizes that keep activations at unit scale."""
    return random_params(param_shapes(config), key)


@functools.lru_cache(maxsize=4)  # to trace a large network takes seconds
def param_shapes(config: WanDiTConfig) -> PyTree:
    """Shapes and dtypes of the weights."""
    module = WanDiT(config)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), method="_touch"))[
        "params"
    ]
