"""TAEHV's encoder and decoder networks, sized by a frozen config.

Both map a chunk of frames and the carried memories (one frame per memory block) to
the next chunk and the next memories, so that a stream cut into chunks gives what the
whole clip gives. Source: madebyollin/taehv, taehv.py. Differentiable throughout; the
output is not clamped here, which is what training wants.
"""

import dataclasses
import math
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fdjax.config import DTypeName
from fdjax.nn import resample
from fdjax.nn.conv import FrameConv
from fdjax_models.networks.taehv.layers import MemBlock, soft_clamp

Memories = tuple[jax.Array, ...]
"""The last input frame of every memory block, [B, 1, H, W, C] each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaehvConfig:
    """Sizes of a TAEHV network, encoder or decoder.

    A network has one stage per pair of neighbouring widths, in the order in which data
    runs through it. A decoder's stage applies memory blocks at the first width, grows
    time and space, and changes to the second; an encoder's stage pools time and space,
    changes the width, and applies memory blocks at the second.
    """

    widths: tuple[int, ...] = (256, 128, 64, 64)
    """Channels before the first stage and after each stage."""

    spatial_scales: tuple[int, ...] = (2, 2, 2)
    """Spatial factor of each stage, 1 or 2."""

    temporal_scales: tuple[int, ...] = (1, 2, 2)
    """Temporal factor of each stage, 1 or 2."""

    latent_channels: int = 16
    """Channels of the latent."""

    patch: int = 1
    """Side of the square of pixels that is folded into channels at the image end."""

    blocks_per_stage: int = 3
    """Memory blocks in each stage."""

    needs_scaling: bool = False
    """Whether the network works on latents in the Wan VAE's own scale, as LightTAE
    does, rather than on normalised ones; then the published Wan 2.1 mean and standard
    deviation are applied on the way in or out."""

    dtype: DTypeName = "bfloat16"
    """Computation dtype, and the dtype of fresh parameters."""

    checkpoint_path: str | None = None
    """Published or converted checkpoint: a file, a directory, a URL, or a repo id."""

    def __post_init__(self) -> None:
        stages = len(self.widths) - 1
        for name in ("spatial_scales", "temporal_scales"):
            scales = getattr(self, name)
            if stages < 1 or len(scales) != stages or not set(scales) <= {1, 2}:
                raise ValueError(
                    f"{name} must hold a 1 or a 2 for each of the len(widths) - 1 = "
                    f"{stages} stages, got {scales}."
                )
        for name in ("latent_channels", "patch", "blocks_per_stage"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        if self.needs_scaling and self.latent_channels != 16:
            raise ValueError(
                "needs_scaling means the 16-channel Wan 2.1 statistics; got "
                f"latent_channels={self.latent_channels}."
            )

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent pixel, along each side."""
        return math.prod(self.spatial_scales) * self.patch

    @property
    def temporal_ratio(self) -> int:
        """Video frames per latent frame."""
        return math.prod(self.temporal_scales)


class DecoderStage(nn.Module):
    """Memory blocks, then growth in time and space and a change of width."""

    features: int
    out_features: int
    spatial_scale: int
    temporal_scale: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, memories: Memories) -> tuple[jax.Array, Memories]:
        """Maps [B, T, H, W, features] to [B, sT, fH, fW, out_features]."""
        carried = []
        for i, memory in enumerate(memories):
            block = MemBlock(self.features, dtype=self.dtype, name=f"blocks_{i}")
            x, memory = block(x, memory)
            carried.append(memory)
        # Upstream upsamples first. A 1x1 convolution commutes with repeating pixels,
        # so it runs here on a quarter of them, with the same result.
        x = FrameConv(
            self.features * self.temporal_scale,
            kernel=1,
            use_bias=False,
            dtype=self.dtype,
            name="grow",
        )(x)
        # [B, T, H, W, s C] -> [B, s T, H, W, C] -> [B, s T, f H, f W, C]
        x = resample.channels_to_time(x, self.temporal_scale)
        x = resample.upsample_nearest(x, self.spatial_scale)
        x = FrameConv(self.out_features, use_bias=False, dtype=self.dtype, name="out")(
            x
        )
        return x, tuple(carried)


class EncoderStage(nn.Module):
    """Pooling in time and space with a change of width, then memory blocks."""

    features: int
    out_features: int
    spatial_scale: int
    temporal_scale: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, memories: Memories) -> tuple[jax.Array, Memories]:
        """Maps [B, sT, fH, fW, features] to [B, T, H, W, out_features]."""
        # [B, s T, f H, f W, C] -> [B, T, f H, f W, s C], oldest frame first
        x = resample.time_to_channels(x, self.temporal_scale)
        x = FrameConv(
            self.features, kernel=1, use_bias=False, dtype=self.dtype, name="pool"
        )(x)
        # [B, T, f H, f W, C] -> [B, T, H, W, out_features]
        x = FrameConv(
            self.out_features,
            stride=self.spatial_scale,
            use_bias=False,
            dtype=self.dtype,
            name="down",
        )(x)
        carried = []
        for i, memory in enumerate(memories):
            block = MemBlock(self.out_features, dtype=self.dtype, name=f"blocks_{i}")
            x, memory = block(x, memory)
            carried.append(memory)
        return x, tuple(carried)


def _stages(config: TaehvConfig, stage_class: type) -> Iterator[nn.Module]:
    """Yields the stage modules in order."""
    scales = zip(config.spatial_scales, config.temporal_scales, strict=True)
    for i, (spatial, temporal) in enumerate(scales):
        yield stage_class(
            features=config.widths[i],
            out_features=config.widths[i + 1],
            spatial_scale=spatial,
            temporal_scale=temporal,
            dtype=config.dtype,
            name=f"stages_{i}",
        )


class DecoderNetwork(nn.Module):
    """Latent frames to RGB frames.

    Attributes:
        config: Sizes and dtype.
    """

    config: TaehvConfig

    @nn.compact
    def __call__(
        self, latent: jax.Array, memories: Memories
    ) -> tuple[jax.Array, Memories]:
        """Decodes a chunk.

        Args:
            latent: Latent frames [B, T, H, W, C].
            memories: From `decoder_memories`, or from the call before.

        Returns:
            RGB, nominally in [0, 1] but not clamped, in the config's dtype,
            [B, temporal_ratio T, spatial_ratio H, spatial_ratio W, 3]: no frame is
            dropped. And the next memories.
        """
        config, count = self.config, self.config.blocks_per_stage
        # [B, T, H, W, C] -> [B, T, H, W, widths[0]]
        x = soft_clamp(latent.astype(config.dtype))
        x = FrameConv(config.widths[0], dtype=config.dtype, name="conv_in")(x)
        x = nn.relu(x)
        carried: Memories = ()
        for i, stage in enumerate(_stages(config, DecoderStage)):
            # Memories stand in the order of the blocks: `count` for each stage.
            x, own = stage(x, memories[i * count : (i + 1) * count])
            carried += own
        x = FrameConv(3 * config.patch**2, dtype=config.dtype, name="conv_out")(
            nn.relu(x)
        )
        # [B, T', H' / patch, W' / patch, 3 * patch**2] -> [B, T', H', W', 3]
        return resample.depth_to_space(x, config.patch), carried


class EncoderNetwork(nn.Module):
    """RGB frames to latent frames.

    Attributes:
        config: Sizes and dtype.
    """

    config: TaehvConfig

    @nn.compact
    def __call__(
        self, video: jax.Array, memories: Memories
    ) -> tuple[jax.Array, Memories]:
        """Encodes a chunk.

        Args:
            video: RGB in [0, 1],
                [B, temporal_ratio T, spatial_ratio H, spatial_ratio W, 3].
            memories: From `encoder_memories`, or from the call before.

        Returns:
            Latent frames in the config's dtype, [B, T, H, W, C], and the next memories.
        """
        config, count = self.config, self.config.blocks_per_stage
        # [B, T', H', W', 3] -> [B, T', H' / patch, W' / patch, 3 * patch**2]
        x = resample.space_to_depth(video.astype(config.dtype), config.patch)
        x = FrameConv(config.widths[0], dtype=config.dtype, name="conv_in")(x)
        x = nn.relu(x)
        carried: Memories = ()
        for i, stage in enumerate(_stages(config, EncoderStage)):
            x, own = stage(x, memories[i * count : (i + 1) * count])
            carried += own
        x = FrameConv(config.latent_channels, dtype=config.dtype, name="conv_out")(x)
        return x, carried


def decoder_memories(
    config: TaehvConfig, batch_size: int, height: int, width: int
) -> Memories:
    """Returns the zero memories with which a decoded stream begins.

    Args:
        config: Sizes and dtype of the network.
        batch_size: Number of streams.
        height: Latent rows.
        width: Latent columns.
    """
    memories: Memories = ()
    for features, scale in zip(config.widths[:-1], config.spatial_scales, strict=True):
        shape = (batch_size, 1, height, width, features)
        memories += (jnp.zeros(shape, config.dtype),) * config.blocks_per_stage
        # A stage's blocks run before it grows.
        height, width = height * scale, width * scale
    return memories


def encoder_memories(
    config: TaehvConfig, batch_size: int, height: int, width: int
) -> Memories:
    """Returns the zero memories with which an encoded stream begins.

    Arguments are as in `decoder_memories`; height and width are latent.
    """
    memories: Memories = ()
    scale = math.prod(config.spatial_scales)
    for features, own_scale in zip(
        config.widths[1:], config.spatial_scales, strict=True
    ):
        # A stage's blocks run behind its pooling.
        scale //= own_scale
        shape = (batch_size, 1, height * scale, width * scale, features)
        memories += (jnp.zeros(shape, config.dtype),) * config.blocks_per_stage
    return memories
