"""Blocks of the Wan video autoencoders, streaming and causal.

Every block maps a chunk and its state to the next chunk and the next state. A state is
a nested dict of the frames that causal convolutions carry, by module name; None stands
for the beginning of a stream, where the first frame has rules of its own. Source:
Wan-Video/Wan2.1, wan/modules/vae.py, and Wan-Video/Wan2.2, wan/modules/vae2_2.py.

Axes: B batch, T frames, H W rows and columns at the current resolution, C channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fdjax.axes import Array
from fdjax.nn.conv import CausalConv, FrameConv
from fdjax.nn.norms import ChannelNorm
from fdjax.nn.resample import channels_to_time, upsample_nearest

State = dict[str, Any] | None
"""Contexts by module name, arrays [B, frames, H, W, C]; None when a stream begins."""

CONTEXT_RULES = ("reference", "exact")
"""What `Upsample` carries after a chunk of one frame; see its attribute `context`."""


def substate(state: State, name: str) -> Any:
    """The part of `state` that belongs to module `name`."""
    return None if state is None else state[name]


class ResidualBlock(nn.Module):
    """Two causal convolutions beside a shortcut.

    Attributes:
        features: Output channels.
        fold_time: As in `conv_frames`.
        dtype: Computation dtype.
    """

    features: int
    fold_time: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, state: State) -> tuple[Array, State]:
        """Maps [B, T, H, W, C] to [B, T, H, W, features]."""
        y, carried = x, {}
        for i in (1, 2):
            name = f"conv_{i}"
            y = nn.silu(ChannelNorm(name=f"norm_{i}")(y))
            y, carried[name] = CausalConv(
                self.features, fold_time=self.fold_time, dtype=self.dtype, name=name
            )(y, substate(state, name))
        # 1x1x1 in the published code: no frame sees another, nothing is carried.
        if x.shape[-1] != self.features:
            x = FrameConv(self.features, kernel=1, dtype=self.dtype, name="shortcut")(x)
        return x + y, carried


class AttentionBlock(nn.Module):
    """Self-attention with one head among the pixels of each frame; no state.

    Attributes:
        dtype: Computation dtype.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, T, H, W, C] to the same shape."""
        b, t, h, w, c = x.shape
        # [B, T, H, W, C] -> [B * T, L, C], L = H * W
        y = ChannelNorm(name="norm")(x).reshape(b * t, h * w, c)
        y = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(y)
        # [B * T, L, 3 * C] -> [B * T, L, 3, C] -> [B * T, L, C]
        # Frame by frame: the weights of one frame of 60x104 take 156 MB in float32.
        y = jax.lax.map(_attend, y.reshape(b * t, h * w, 3, c))
        y = nn.Dense(c, dtype=self.dtype, name="proj")(y)
        return x + y.reshape(x.shape)


def _attend(qkv: Array) -> Array:
    """Attention of one head within one frame: [L, 3, C] to [L, C]."""
    # [1, L, 1, C] each: a batch of one with one head
    q, k, v = (qkv[None, :, i, None] for i in range(3))
    return jax.nn.dot_product_attention(q, k, v)[0, :, 0]


class Upsample(nn.Module):
    """Doubles the resolution, and with `temporal` the frame rate.

    Attributes:
        features: Output channels.
        temporal: Whether each frame becomes two. The first frame of a stream stays
            one, and no later frame sees it.
        context: What is carried after a chunk of one frame. "exact": the last two
            frames, as decoding the whole clip does. "reference": that frame behind a
            zero frame, as NVIDIA/flashdreams, recipes/wan/autoencoder/vae.py, does.
        fold_time: As in `conv_frames`.
        dtype: Computation dtype.
    """

    features: int
    temporal: bool
    context: str = "exact"
    fold_time: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, state: State) -> tuple[Array, State]:
        """Maps [B, T, H, W, C] to [B, T', 2H, 2W, features]."""
        carried = {}
        if self.temporal:
            x, carried["time"] = self._double_time(x, substate(state, "time"))
        # Time first, as published, and at a quarter of the pixels.
        # [B, T', H, W, C] -> [B, T', 2 H, 2 W, C] -> [B, T', 2 H, 2 W, features]
        x = upsample_nearest(x, 2)
        return FrameConv(self.features, dtype=self.dtype, name="space")(x), carried

    def _double_time(self, x: Array, context: Array | None) -> tuple[Array, Array]:
        """Turns T frames into 2T, or into 2T - 1 where a stream begins."""
        # Of each frame the two that it becomes, side by side on channels.
        conv = CausalConv(
            2 * x.shape[-1],
            kernel=(3, 1, 1),
            fold_time=self.fold_time,
            dtype=self.dtype,
            name="time",
        )
        if context is not None:
            y, carried = conv(x, context)
            if self.context == "reference" and x.shape[1] == 1:
                # [B, 2, H, W, C]: the older of the two frames is forgotten.
                carried = carried.at[:, 0].set(0)
            # [B, T, H, W, 2 * C] -> [B, 2 * T, H, W, C]
            return channels_to_time(y, 2), carried
        # [B, 1, H, W, C] and [B, T - 1, H, W, C]
        first, rest = x[:, :1], x[:, 1:]
        if not rest.shape[1]:
            # Context [B, 2, H, W, C] of zeros: no later frame sees the first.
            return first, jnp.zeros_like(jnp.repeat(first, 2, axis=1))
        y, carried = conv(rest, None)
        # [B, 1 + 2 * (T - 1), H, W, C]
        return jnp.concatenate([first, channels_to_time(y, 2)], axis=1), carried


class Downsample(nn.Module):
    """Halves the resolution, and with `temporal` the frame rate; keeps the channels.

    Attributes:
        temporal: Whether two frames become one. The first frame of a stream passes by
            itself.
        fold_time: As in `conv_frames`.
        dtype: Computation dtype.
    """

    temporal: bool
    fold_time: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, state: State) -> tuple[Array, State]:
        """Maps [B, T, H, W, C] to [B, T', H / 2, W / 2, C]."""
        # Zeros right and below only: ZeroPad2d((0, 1, 0, 1)) of the published code.
        x = FrameConv(
            x.shape[-1], stride=2, padding=(0, 1), dtype=self.dtype, name="space"
        )(x)
        if not self.temporal:
            return x, {}
        conv = CausalConv(
            x.shape[-1],
            kernel=(3, 1, 1),  # at stride two: one frame of context is carried
            time_stride=2,
            fold_time=self.fold_time,
            dtype=self.dtype,
            name="time",
        )
        context = substate(state, "time")
        if context is not None:
            x, context = conv(x, context)
            return x, {"time": context}
        # [B, 1, H / 2, W / 2, C] and [B, T - 1, H / 2, W / 2, C]
        first, rest = x[:, :1], x[:, 1:]
        if not rest.shape[1]:
            return first, {"time": first}
        # The first frame is the context of those behind it.
        y, context = conv(rest, first)
        # [B, 1 + (T - 1) / 2, H / 2, W / 2, C]
        return jnp.concatenate([first, y], axis=1), {"time": context}


def average_down(x: Array, features: int, *, time: int, space: int) -> Array:
    """Averages groups of a block's channels, frames and pixels: a shortcut downwards.

    AvgDown3D of Wan-Video/Wan2.2, wan/modules/vae2_2.py. Frames are padded in front
    with zeros to a multiple of `time`, which happens where a stream begins.

    Args:
        x: [B, T, H, W, C].
        features: Output channels.
        time: Factor in time.
        space: Factor along both sides.

    Returns:
        [B, ceil(T / time), H / space, W / space, features].
    """
    # [B, ceil(T / time) * time, H, W, C]
    x = jnp.pad(x, [(0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)])
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // time, time, h // space, space, w // space, space, c)
    # [B, T, time, H, row, W, column, C] -> [B, T, H, W, C, time, row, column]
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    # Neighbours in that order make a group: [B, T, H, W, features, group] -> mean.
    return x.reshape(*x.shape[:4], features, -1).mean(axis=-1)


def duplicate_up(
    x: Array, features: int, *, time: int, space: int, first: bool
) -> Array:
    """Repeats channels and spreads them over frames and pixels: a shortcut upwards.

    DupUp3D of Wan-Video/Wan2.2, wan/modules/vae2_2.py.

    Args:
        x: [B, T, H, W, C].
        features: Output channels.
        time: Factor in time.
        space: Factor along both sides.
        first: Whether a stream begins; then `time - 1` leading frames are dropped.

    Returns:
        [B, T * time, H * space, W * space, features], fewer frames if `first`.
    """
    b, t, h, w, c = x.shape
    # [B, T, H, W, features * time * space**2]
    x = jnp.repeat(x, features * time * space**2 // c, axis=-1)
    x = x.reshape(b, t, h, w, features, time, space, space)
    # [B, T, H, W, features, time, row, column]
    # -> [B, T, time, H, row, W, column, features]
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(b, t * time, h * space, w * space, features)
    return x[:, time - 1 :] if first else x
