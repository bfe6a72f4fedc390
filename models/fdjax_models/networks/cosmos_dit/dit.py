"""The Cosmos diffusion transformer: weights and one forward pass, no cache."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.nn.random_params import random_params
from fdjax.sharding import constrain
from fdjax.streaming.attention import SelfAttentionFn
from fdjax_models.networks.cosmos_dit.block import Block, ContextKV
from fdjax_models.networks.cosmos_dit.config import CosmosDiTConfig
from fdjax_models.networks.cosmos_dit.layers import (
    Modulation,
    Time,
    TimeEmbedding,
    dense,
)
from fdjax_models.networks.wan_dit.layers import modulate, standardize


class Context(NamedTuple):
    """What stays the same while prompt and cameras do.

    Attributes:
        layers: One per layer.
        view: Shift, scale and gate of the three sublayers, of the row's camera; None
            without cameras.  [B, 9, M].
    """

    layers: tuple[ContextKV, ...]
    view: Array | None = None


class Head(nn.Module):
    """Modulated norm and the projection to patches."""

    config: CosmosDiTConfig

    def setup(self) -> None:
        """Declares the modulation and the projection."""
        cfg = self.config
        self.modulation = Modulation(cfg, count=2)
        # Checkpoints order its outputs (t, h, w, channel); the converter permutes them.
        self.proj = dense(cfg, cfg.out_dim * cfg.patch_volume)

    def __call__(self, x: Array, time: Time) -> Array:
        """[B, L, M] to [B, L, out_dim * patch volume]."""
        shift, scale = self.modulation(time)
        return self.proj(modulate(standardize(x, self.config.eps), scale, shift))


class CosmosDiT(nn.Module):
    """Diffusion transformer of Cosmos-Predict2 (arXiv:2511.00062) and of OmniDreams.

    Modulation is a low-rank projection of the timestep's sinusoid, with one offset for
    all blocks; queries and keys are normalised head by head; an HD map's tokens are
    added to the latent's; with cameras, every block attends across views too.

    Its layers are unrolled, so that each one's key/value buffer is updated in place.
    How queries meet keys is an argument, as in `WanDiT`. Patch features are ordered
    (channel, t, h, w) at the input and at the output.
    """

    config: CosmosDiTConfig

    def setup(self) -> None:
        """Declares the embeddings, the blocks and the head."""
        cfg = self.config
        self.patch_embedding = dense(cfg, cfg.dim)
        if cfg.control_dim:
            self.control_embedding = dense(cfg, cfg.dim)
        self.time_embedding = TimeEmbedding(cfg)
        types: Any = {"dtype": cfg.dtype, "param_dtype": cfg.param_dtype}
        self.text_embedding = nn.Dense(cfg.context_dim, **types)
        if cfg.num_cameras:
            self.view_embedding = nn.Embed(cfg.num_cameras, cfg.dim, **types)
            self.view_projection = nn.Dense(9 * cfg.dim, **types)
        self.blocks = [Block(cfg) for _ in range(cfg.num_layers)]
        self.head = Head(cfg)

    def context(self, text: Array, camera: Array | None = None) -> Context:
        """What every layer reads of prompt and camera; once per prompt.

        Args:
            text: Encoded prompt, padding included.  [B, P, text_dim].
            camera: Index of the row's camera, if the network has any.  int32[B].
        """
        # [B, P, text_dim] -> [B, P, context_dim]; GELU is exact
        text = self.text_embedding(text.astype(self.config.dtype))
        text = nn.gelu(text, approximate=False)
        layers = tuple(block.context_kv(text) for block in self.blocks)
        if not self.config.num_cameras:
            return Context(layers)
        # [B] -> [B, M] -> [B, 9 M] -> [B, 9, M]
        view = self.view_projection(self.view_embedding(camera))
        return Context(layers, view.reshape(len(text), 9, -1))

    def control(self, control: Array) -> Array:
        """The HD map's tokens, for all steps of a chunk.

        Args:
            control: [B, L, control_dim * patch volume].

        Returns:
            [B, L, M].
        """
        return constrain(self.control_embedding(control), "BLM")

    def __call__(
        self,
        latent: Array,
        timestep: Array,
        attention: SelfAttentionFn,
        states: tuple[PyTree, ...],
        context: Context,
        *,
        control: Array | None = None,
        num_views: int = 1,
        num_frames: int = 1,
    ) -> tuple[tuple[PyTree, ...], Array]:
        """One forward pass.

        Rows B are ordered (..., view): V after each other see one scene.

        Args:
            latent: Patchified noisy latent, then the patchified mask, 1 where a frame
                is given.  [B, L, (out_dim + 1) * patch volume].
            timestep: In [0, 1000], for the chunk, a row, or each of G groups of
                consecutive tokens; G divides L.  float32[], [B] or [B, G].
            attention: Self-attention of every layer.
            states: One state per layer, for `attention`.
            context: From `context`.
            control: From `control`, if the network takes any.
            num_views: V, if the network has cameras.
            num_frames: Frames of tokens, likewise.

        Returns:
            The new states, and the flow, float32[B, L, out_dim * patch volume].
        """
        # [B, L, (out_dim + 1) * patch volume] -> [B, L, M]
        x = self.patch_embedding(latent)
        if control is not None:
            x = x + control
        if timestep.ndim < 2:
            # [] or [B] -> [B, 1]
            timestep = jnp.broadcast_to(timestep, (len(latent),))[:, None]
        time = self.time_embedding(timestep)
        new_states = []
        for block, state, layer in zip(
            self.blocks, states, context.layers, strict=True
        ):
            state, x = block(
                x,
                time,
                attention,
                state,
                layer,
                context.view,
                num_views=num_views,
                num_frames=num_frames,
            )
            new_states.append(state)
        # float32, since the sampler's arithmetic is.
        return tuple(new_states), self.head(x, time).astype(jnp.float32)

    def _touch(self) -> None:
        """Runs every layer once on one token, so that `init` makes all parameters."""
        cfg = self.config

        def token(width: int) -> Array:
            return jnp.zeros((1, 1, width), cfg.dtype)

        control = cfg.control_dim * cfg.patch_volume
        self(
            token(cfg.in_features),
            jnp.zeros((1,)),
            # In place of self-attention, which owns no weights.
            lambda query, key, value, state: (state, value),
            (None,) * cfg.num_layers,
            self.context(token(cfg.text_dim), jnp.zeros((1,), jnp.int32)),
            control=self.control(token(control)) if control else None,
        )


def init_params(config: CosmosDiTConfig, key: jax.Array) -> Params:
    """Random weights of these sizes that keep activations at unit scale."""
    return random_params(param_shapes(config), key)


@functools.lru_cache(maxsize=4)  # to trace a large network takes seconds
def param_shapes(config: CosmosDiTConfig) -> PyTree:
    """Shapes and dtypes of the weights."""
    module = CosmosDiT(config)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), method="_touch"))[
        "params"
    ]
