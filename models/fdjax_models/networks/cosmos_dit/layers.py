"""Projections and modulation of the Cosmos DiT."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from fdjax.axes import Array
from fdjax_models.networks.cosmos_dit.config import CosmosDiTConfig
from fdjax_models.networks.wan_dit.layers import RMSNorm
from fdjax_models.networks.wan_dit.time_embedding import sinusoid


class Time(NamedTuple):
    """What the network makes of a timestep; G groups of consecutive tokens.

    Attributes:
        embedding: The normalised sinusoid itself, after SiLU.  [B, G, M].
        offset: Added to every shift, scale and gate.  [B, G, 3 M].
    """

    embedding: Array
    offset: Array


def dense(config: CosmosDiTConfig, features: int) -> nn.Dense:
    """A projection without bias, as nearly all of this network are."""
    return nn.Dense(
        features,
        use_bias=False,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
    )


def rms_norm(config: CosmosDiTConfig) -> RMSNorm:
    """A norm with this network's epsilon."""
    return RMSNorm(config.eps, config.param_dtype)


class TimeEmbedding(nn.Module):
    """Timestep to what modulates the blocks."""

    config: CosmosDiTConfig

    def setup(self) -> None:
        """Declares two projections and a norm."""
        cfg = self.config
        self.fc1, self.fc2 = dense(cfg, cfg.dim), dense(cfg, 3 * cfg.dim)
        self.norm = rms_norm(cfg)

    def __call__(self, timestep: Array) -> Time:
        """[B, G] in [0, 1000] to `Time`."""
        cfg = self.config
        # [B, G, M], cosines first
        x = _features(cfg, timestep)
        # Not an MLP's output but the sinusoid is the embedding; the MLP makes offsets.
        offset = self.fc2(nn.silu(self.fc1(x.astype(cfg.dtype))))
        return Time(nn.silu(self.norm(x).astype(cfg.dtype)), offset)


def _features(config: CosmosDiTConfig, timestep: Array) -> Array:
    """Cosines, then sines of the scaled timestep.  time_dtype[B, G, M]."""
    dtype = jnp.dtype(config.time_dtype or config.dtype)
    # The reference hands the network a timestep of the latent's dtype: 804 for 803.57.
    t = _rounded(timestep, config.dtype)
    t = _rounded(t * jnp.float32(config.timestep_scale), dtype)
    if dtype == jnp.float32:
        return sinusoid(t, config.dim)
    # In the narrow dtype each operation rounds, and so does the table.
    steps = np.arange(config.dim // 2, dtype=np.float32) / np.float32(config.dim // 2)
    frequencies = np.exp(-np.log(np.float32(10_000)) * steps).astype(dtype)
    angle = _rounded(t[..., None] * frequencies.astype(np.float32), dtype)
    x = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return _rounded(x, dtype).astype(dtype)


def _rounded(x: Array, dtype: DTypeLike) -> Array:
    """Numbers as a dtype holds them.  float32[...].

    By an operation of its own: a compiler may leave out a conversion there and back.
    """
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(x.astype(jnp.float32), info.nexp, info.nmant)


class Modulation(nn.Module):
    """Shift, scale and perhaps gate of one sublayer, by a low-rank projection.

    Attributes:
        config: Sizes.
        count: Vectors: 3, or 2 without a gate.
    """

    config: CosmosDiTConfig
    count: int = 3

    def setup(self) -> None:
        """Declares the two factors."""
        cfg = self.config
        self.down, self.up = dense(cfg, cfg.lora_dim), dense(cfg, self.count * cfg.dim)

    def __call__(self, time: Time, view: Array | None = None) -> tuple[Array, ...]:
        """`count` of float32[B, G, M].

        Args:
            time: Of the timestep.
            view: Added as well.  [B, 3, M].
        """
        width = self.count * self.config.dim
        # [B, G, count * M]
        x = self.up(self.down(time.embedding)) + time.offset[..., :width]
        # [B, G, count, M]
        x = x.reshape(*x.shape[:-1], self.count, -1)
        if view is not None:
            # [B, G, 3, M] + [B, 1, 3, M]
            x = x + view[:, None]
        x = x.astype(jnp.float32)
        return tuple(x[:, :, index] for index in range(self.count))
