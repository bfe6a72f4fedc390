"""The network: its clean latent is the control, blended with the chunk before."""

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from fdjax import Transformer, TransformerConfig


@flax.struct.dataclass(kw_only=True)
class RippleCache:
    """The latent of the chunk before, [B, L, 1], and how many there were, [B]."""

    previous: jax.Array
    num_chunks: jax.Array
    height: int = flax.struct.field(pytree_node=False)
    width: int = flax.struct.field(pytree_node=False)


class Blend(nn.Module):
    """Flows to the control, blended with the latent of the chunk before."""

    inertia: float

    @nn.compact
    def __call__(self, latent, timestep, control, previous, num_chunks):
        """The flow that leads to the blend: (x_t - x_0) / sigma."""
        scale = self.param("scale", nn.initializers.ones, ())
        inertia = jnp.where(num_chunks == 0, 0.0, scale * self.inertia)
        inertia = inertia[:, None, None]
        clean = inertia * previous + (1 - inertia) * control
        return (latent - clean) / jnp.maximum(timestep / 1000, 1e-3)


class RippleTransformer(Transformer):
    """Keeps one latent, where a video model keeps keys and values."""

    @functools.cached_property
    def module(self):
        return Blend(self.config.inertia)

    def init_params(self, key):
        zeros = jnp.zeros((1, 1, 1))
        return self.module.init(key, zeros, 1000.0, zeros, zeros, jnp.zeros(1))[
            "params"
        ]

    def initialize_cache(self, params, conditions, height, width):
        return RippleCache(
            previous=jnp.zeros((conditions.batch_size, height * width, 1)),
            num_chunks=jnp.zeros((conditions.batch_size,), jnp.int32),
            height=height,
            width=width,
        )

    def update_conditions(self, params, cache, conditions):
        return cache

    def latent_shape(self, cache):
        return cache.previous.shape

    def start(self, params, cache, control):
        return cache, self.patchify(control)

    def predict_flow(self, params, workspace, latent, timestep):
        cache, control = workspace
        flow = self.module.apply(
            {"params": params},
            latent,
            timestep,
            control,
            cache.previous,
            cache.num_chunks,
        )
        return workspace, flow

    def release(self, workspace):
        cache, _ = workspace
        return cache, ()

    def commit(self, params, cache, residue, clean, timestep):
        return cache.replace(previous=clean, num_chunks=cache.num_chunks + 1)

    def patchify(self, latent):
        return latent.reshape(len(latent), -1, 1)

    def unpatchify(self, latent, cache):
        return latent.reshape(len(latent), 1, cache.height, cache.width, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RippleTransformerConfig(TransformerConfig):
    """Config of `RippleTransformer`."""

    _target: type = RippleTransformer

    checkpoint_path: str = "package://fdjax_ripples/transformer.safetensors"
    """Weights, which ship in the package."""

    inertia: float = 0.5
    """Weight of the chunk before, in [0, 1)."""

    def __post_init__(self):
        if not 0 <= self.inertia < 1:
            raise ValueError(f"inertia must be in [0, 1), got {self.inertia}.")
