"""The Wan VAE's encoder and decoder networks, sized by a frozen config.

One pair of networks serves Wan 2.1, its pruned LightVAE, and Wan 2.2, which adds
parameter-free shortcuts around its stages and folds 2x2 pixels into channels.
"""

import dataclasses
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from fdjax.axes import Array
from fdjax.config import DTypeName
from fdjax.nn.conv import CausalConv, FrameConv
from fdjax.nn.norms import ChannelNorm
from fdjax.nn.resample import depth_to_space, space_to_depth
from fdjax_models.networks.wan_vae.layers import (
    AttentionBlock,
    Downsample,
    ResidualBlock,
    State,
    Upsample,
    average_down,
    duplicate_up,
    substate,
)
from fdjax_models.networks.wan_vae.statistics import WAN21_MEAN, WAN21_STD


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanVaeConfig:
    """Sizes of a Wan VAE, encoder or decoder; the defaults are Wan 2.1's."""

    widths: tuple[int, ...] = (96, 192, 384, 384)
    """Channels of the stages, from the finest resolution to the coarsest."""

    temporal: tuple[bool, ...] = (False, True, True)
    """Whether each of the steps between stages, finest first, also halves time."""

    num_blocks: int = 2
    """Residual blocks in each stage of the encoder; the decoder has one more."""

    residual_stages: bool = False
    """Whether a shortcut leads around each stage, as in Wan 2.2."""

    patch: int = 1
    """Side of the square of pixels that is folded into channels at the image end."""

    latent_mean: tuple[float, ...] = WAN21_MEAN
    """Mean of each latent channel; as many as there are channels."""

    latent_std: tuple[float, ...] = WAN21_STD
    """Standard deviation of each latent channel."""

    fold_time: bool = True
    """Whether 3-D convolutions run as 2-D ones over stacked frames: faster on a GPU,
    with three times the memory for their inputs."""

    latents_per_pass: int = 3
    """How many latents the network works on at a time. A longer chunk is taken in
    passes, with the same result: memory grows with the pass, not with the chunk."""

    dtype: DTypeName = "bfloat16"
    """Computation dtype, and the dtype of fresh parameters."""

    checkpoint_path: str | None = None
    """Published or converted checkpoint: a file, a directory, a URL, or a repo id."""

    def __post_init__(self) -> None:
        if len(self.temporal) != len(self.widths) - 1:
            raise ValueError(
                f"temporal needs one entry between two stages, len(widths) - 1 = "
                f"{len(self.widths) - 1}; got {self.temporal}."
            )
        if len(self.latent_mean) != len(self.latent_std):
            raise ValueError(
                "latent_mean and latent_std must have one entry per channel each, got "
                f"{len(self.latent_mean)} and {len(self.latent_std)}."
            )
        for name in ("num_blocks", "patch", "latents_per_pass"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")

    @property
    def latent_channels(self) -> int:
        """Channels of the latent."""
        return len(self.latent_mean)

    @property
    def spatial_ratio(self) -> int:
        """Pixels per latent pixel, along each side."""
        return 2 ** len(self.temporal) * self.patch

    @property
    def temporal_ratio(self) -> int:
        """Video frames per latent frame, after the first."""
        return 2 ** sum(self.temporal)


class Middle(nn.Module):
    """Residual block, attention, residual block, at the coarsest resolution."""

    fold_time: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, state: State) -> tuple[Array, State]:
        """Maps [B, T, H, W, C] to the same shape."""
        carried: dict[str, Any] = {}
        for name in ("block_1", "block_2"):
            if name == "block_2":
                x = AttentionBlock(dtype=self.dtype, name="attention")(x)
            x, carried[name] = ResidualBlock(
                x.shape[-1], fold_time=self.fold_time, dtype=self.dtype, name=name
            )(x, substate(state, name))
        return x, carried


class DownStage(nn.Module):
    """Residual blocks, then a step down in resolution unless it is the last stage.

    Attributes:
        features: Output channels.
        num_blocks: Residual blocks.
        down: Whether the resolution is halved.
        temporal: Whether the frame rate is halved too.
        shortcut: Whether `average_down` leads around the stage.
        fold_time: As in `conv_frames`.
        dtype: Computation dtype.
    """

    features: int
    num_blocks: int
    down: bool
    temporal: bool
    shortcut: bool
    fold_time: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, state: State) -> tuple[Array, State]:
        """Maps [B, T, H, W, C] to [B, T', H', W', features]."""
        types: dict[str, Any] = {"fold_time": self.fold_time, "dtype": self.dtype}
        carried: dict[str, Any] = {}
        y = x
        for name in (f"blocks_{i}" for i in range(self.num_blocks)):
            block = ResidualBlock(self.features, name=name, **types)
            y, carried[name] = block(y, substate(state, name))
        if self.down:
            down = Downsample(self.temporal, name="down", **types)
            y, carried["down"] = down(y, substate(state, "down"))
        # [B, T, H, W, C] -> [B, T', H', W', features], without parameters
        if self.shortcut:
            # 2 along what the stage halves, else 1.
            time, space = 1 + self.temporal, 1 + self.down
            y = y + average_down(x, self.features, time=time, space=space)
        return y, carried


class UpStage(nn.Module):
    """Residual blocks, then a step up in resolution unless it is the last stage.

    Attributes:
        features: Channels of the residual blocks. Without a shortcut, the step up
            halves them.
        num_blocks: Residual blocks.
        up: Whether the resolution is doubled.
        temporal: Whether the frame rate is doubled too.
        shortcut: Whether `duplicate_up` leads around the stage, if it is not the last.
        context: As in `Upsample`.
        fold_time: As in `conv_frames`.
        dtype: Computation dtype.
    """

    features: int
    num_blocks: int
    up: bool
    temporal: bool
    shortcut: bool
    context: str
    fold_time: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, state: State) -> tuple[Array, State]:
        """Maps [B, T, H, W, C] to [B, T', H', W', C']."""
        types: dict[str, Any] = {"fold_time": self.fold_time, "dtype": self.dtype}
        carried: dict[str, Any] = {}
        y = x
        for name in (f"blocks_{i}" for i in range(self.num_blocks)):
            block = ResidualBlock(self.features, name=name, **types)
            y, carried[name] = block(y, substate(state, name))
        if not self.up:
            return y, carried
        # Wan 2.2 keeps its width here; the next stage's first block changes it.
        features = self.features if self.shortcut else self.features // 2
        up = Upsample(features, self.temporal, self.context, name="up", **types)
        y, carried["up"] = up(y, substate(state, "up"))
        if self.shortcut:
            y = y + duplicate_up(
                x, self.features, time=1 + self.temporal, space=2, first=state is None
            )
        return y, carried


class Encoder(nn.Module):
    """Video to the latent distribution's mean.

    Attributes:
        config: Sizes and dtype.
    """

    config: WanVaeConfig

    @nn.compact
    def __call__(self, video: Array, state: State) -> tuple[Array, State]:
        """Encodes a chunk.

        Args:
            video: In [-1, 1].  [B, T', H', W', 3]; T' is 1 + temporal_ratio k where a
                stream begins, temporal_ratio k later.
            state: From the call before; None where a stream begins.

        Returns:
            Latents that are not normalised, in the config's dtype [B, T, H, W, C], and
            the next state.
        """
        x, carried = self.features(video, state)
        x = FrameConv(
            2 * self.config.latent_channels,
            kernel=1,
            dtype=self.config.dtype,
            name="quant",
        )(x)
        # [B, T, H, W, 2 * C] -> [B, T, H, W, C]
        # The other half is the logarithm of the variance.
        return x[..., : self.config.latent_channels], carried

    @nn.compact
    def features(self, video: Array, state: State) -> tuple[Array, State]:
        """The network up to its last 1x1x1 convolution: [B, T, H, W, 2C], state."""
        config = self.config
        types: dict[str, Any] = {"fold_time": config.fold_time, "dtype": config.dtype}
        carried: dict[str, Any] = {}
        # [B, T', H', W', 3] -> [B, T', H' / patch, W' / patch, 3 * patch**2]. Wan 2.2
        # counts columns before rows there (vae2_2.py, patchify).
        x = space_to_depth(video.astype(config.dtype), config.patch, column_first=True)
        conv = CausalConv(config.widths[0], name="conv_in", **types)
        x, carried["conv_in"] = conv(x, substate(state, "conv_in"))
        # [B, T', H' / patch, W' / patch, widths[0]] -> [B, T, H, W, widths[-1]]
        for i, features in enumerate(config.widths):
            name, last = f"stages_{i}", i == len(config.temporal)
            x, carried[name] = DownStage(
                features=features,
                num_blocks=config.num_blocks,
                down=not last,
                temporal=not last and config.temporal[i],
                shortcut=config.residual_stages,
                name=name,
                **types,
            )(x, substate(state, name))
        x, carried["middle"] = Middle(name="middle", **types)(
            x, substate(state, "middle")
        )
        x = nn.silu(ChannelNorm(name="norm_out")(x))
        conv = CausalConv(2 * config.latent_channels, name="conv_out", **types)
        x, carried["conv_out"] = conv(x, substate(state, "conv_out"))
        return x, carried


class Decoder(nn.Module):
    """Latents to video.

    Attributes:
        config: Sizes and dtype.
        context: As in `vae_layers.Upsample`.
    """

    config: WanVaeConfig
    context: str = "exact"

    @nn.compact
    def __call__(self, latent: Array, state: State) -> tuple[Array, State]:
        """Decodes a chunk.

        Args:
            latent: Latents that are not normalised.  [B, T, H, W, C].
            state: From the call before; None where a stream begins.

        Returns:
            Video, nominally in [-1, 1] but not clamped, in the config's dtype
            [B, T', H', W', 3], and the next state.
        """
        x = FrameConv(
            latent.shape[-1], kernel=1, dtype=self.config.dtype, name="quant"
        )(latent)
        return self.pixels(x, state)

    @nn.compact
    def pixels(self, x: Array, state: State) -> tuple[Array, State]:
        """The network after its first 1x1x1 convolution."""
        config = self.config
        types: dict[str, Any] = {"fold_time": config.fold_time, "dtype": config.dtype}
        carried: dict[str, Any] = {}
        # [B, T, H, W, C] -> [B, T, H, W, widths[-1]]
        conv = CausalConv(config.widths[-1], name="conv_in", **types)
        x, carried["conv_in"] = conv(x, substate(state, "conv_in"))
        x, carried["middle"] = Middle(name="middle", **types)(
            x, substate(state, "middle")
        )
        # Coarsest first: the way back.
        # [B, T, H, W, widths[-1]] -> [B, T', H' / patch, W' / patch, widths[0]]
        steps = config.temporal[::-1]
        for i, features in enumerate(config.widths[::-1]):
            name, last = f"stages_{i}", i == len(steps)
            x, carried[name] = UpStage(
                features=features,
                num_blocks=config.num_blocks + 1,
                up=not last,
                temporal=not last and steps[i],
                shortcut=config.residual_stages,
                context=self.context,
                name=name,
                **types,
            )(x, substate(state, name))
        x = nn.silu(ChannelNorm(name="norm_out")(x))
        conv = CausalConv(3 * config.patch**2, name="conv_out", **types)
        x, carried["conv_out"] = conv(x, substate(state, "conv_out"))
        # [B, T', H' / patch, W' / patch, 3 * patch**2] -> [B, T', H', W', 3]
        return depth_to_space(x, config.patch, column_first=True), carried
