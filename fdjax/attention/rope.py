"""Rotary position embedding over time, rows and columns.

A head's width is split between the three axes, time first. Within an axis of width `d`,
pair k turns by `position * theta ** (-2k / d)` (arXiv:2104.09864, equation 15). Two
layouts exist for the two features of a pair, see `Rope3D.interleaved`.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from fdjax.attention.turns import Turns, angles_after, turns
from fdjax.axes import Array


class RopeTable(NamedTuple):
    """Cosine and sine of the angle of each token and pair.

    Attributes:
        cos: [L, D / 2], or [B, L, D / 2].
        sin: The same shape.
    """

    cos: Array
    sin: Array


@dataclasses.dataclass(frozen=True)
class Rope3D:
    """How the features of one head turn with (time, row, column).

    Attributes:
        head_dim: Width of a head, D.  Even.
        interleaved: Whether pair k is features (2k, 2k + 1), as in Wan, or
            (k, k + D / 2), as in Cosmos.
        extrapolation: NTK ratios of (time, rows, columns), > 0; 1 is the plain
            embedding, 3 stretches the wavelengths for three times the length.
        theta: Base of the wavelengths.

    Raises:
        ValueError: An odd head width, or a ratio that is not positive.
    """

    head_dim: int
    interleaved: bool
    extrapolation: tuple[float, float, float] = (1.0, 1.0, 1.0)
    theta: float = 10_000.0

    def __post_init__(self) -> None:
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim must be even and >= 2, got {self.head_dim}.")
        if min(self.extrapolation) <= 0:
            raise ValueError(
                f"extrapolation ratios must be > 0, got {self.extrapolation}; "
                "1 leaves an axis as it is."
            )

    @property
    def axis_dims(self) -> tuple[int, int, int]:
        """Features of (time, rows, columns): about a third each, time gets the rest.

        The split of Wan 2.1 (Wan-Video/Wan2.1, wan/modules/model.py, `rope_params`).
        """
        # Even, as features turn in pairs.
        space = self.head_dim // 6 * 2
        return self.head_dim - 2 * space, space, space

    @functools.cached_property
    def frequencies(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Radians per step along (time, rows, columns), float32[axis width / 2]."""
        time, rows, columns = (
            axis_frequencies(dim, extrapolation=ratio, theta=self.theta)
            for dim, ratio in zip(self.axis_dims, self.extrapolation, strict=True)
        )
        return time, rows, columns

    def angles(
        self,
        time: ArrayLike,
        height: int,
        width: int,
        *,
        offset: ArrayLike | None = None,
        stride: int = 1,
    ) -> Array:
        """Angles of every token of some frames.

        `time` is for positions within a chunk or a window: its angle is
        `fl32(time * f)`, as NVIDIA/flashdreams computes it (core/attention/rope.py,
        `shift_t`). That reference rounds the angle of the offset too, which is off by
        1e-4 radians at a few thousand frames and by 0.5 after a month; here it is
        exact at any age, less its whole turns.

        Args:
            time: Position of each frame.  int32[T] or int32[B, T], traced or not.
            height: Rows of tokens.
            width: Columns of tokens.
            offset: Added to every position, in strides; None adds nothing.  From 0 to
                2**32 - 1: uint32[] or uint32[B], traced or not.
            stride: Frames per unit of `offset`, such as those of a chunk.

        Returns:
            float32[L, D / 2] with L = T * height * width: tokens in the order (frame,
            row, column), pairs in the order (time, rows, columns). With B in one of
            the arguments float32[B, L, D / 2].
        """
        by_time, by_row, by_column = self.frequencies
        # [(B,) T, D_t / 2]
        time_angles = jnp.asarray(time, jnp.float32)[..., None] * by_time
        if offset is not None:
            # [(B,) 1, D_t / 2]
            shift = angles_after(offset, _turns_of_time(self, stride))[..., None, :]
            # The barrier forbids the compiler to fuse a product into the sum, so that
            # compiled angles are those of single operations.
            time_angles = sum(jax.lax.optimization_barrier((time_angles, shift)))
        # [H, D_h / 2] and [W, D_w / 2]
        rows = np.arange(height, dtype=np.float32)[:, None] * by_row
        columns = np.arange(width, dtype=np.float32)[:, None] * by_column
        *sessions, num_frames, _ = time_angles.shape
        grid = *sessions, num_frames, height, width
        # Each spread over the grid: [(B,) T, H, W, D_t / 2], and so on.
        angles = (
            jnp.broadcast_to(time_angles[..., None, None, :], (*grid, by_time.size)),
            jnp.broadcast_to(rows[:, None], (*grid, by_row.size)),
            jnp.broadcast_to(columns, (*grid, by_column.size)),
        )
        # [(B,) T, H, W, D / 2]
        joined = jnp.concatenate(angles, axis=-1)
        # [(B,) L, D / 2]
        return joined.reshape(*sessions, -1, self.head_dim // 2)

    def rotate(self, features: Array, table: RopeTable) -> Array:
        """Turns the features of every head; see `rotate`."""
        return rotate(features, table, interleaved=self.interleaved)


@functools.cache
def _turns_of_time(rope: Rope3D, stride: int) -> Turns:
    """Turns that each pair of the time axis makes in `stride` frames."""
    return turns(rope.frequencies[0], stride)


def axis_frequencies(
    dim: int, *, extrapolation: float = 1.0, theta: float = 10_000.0
) -> np.ndarray:
    """Radians per step of each pair of an axis: `theta ** (-2k / dim)`.

    An extrapolation ratio r multiplies theta by `r ** (dim / (dim - 2))`, so that the
    slowest pair turns r times slower and the fastest as before (NTK-aware scaling:
    NVIDIA/flashdreams, core/attention/rope.py, `_compute_freqs`).

    Published models run with float32 tables, and at frame 3000 half a unit in the last
    place of a frequency is 1e-4 radians. So each step rounds where torch's float32
    rounds; in between it is float64.

    Args:
        dim: Features of the axis, even.
        extrapolation: NTK ratio, > 0.
        theta: Base of the wavelengths.

    Returns:
        float32[dim / 2].

    Raises:
        ValueError: A ratio other than 1 with `dim` 2, whose only pair turns by 1.
    """
    if extrapolation != 1.0:
        if dim == 2:
            raise ValueError(
                f"An axis of 2 features cannot be extrapolated by {extrapolation}: its "
                "only pair turns by 1 radian a step. Use wider heads, or ratio 1."
            )
        theta = theta * extrapolation ** (dim / (dim - 2))
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # The power in float64 of float32 factors, rounded once.
    powers = np.float64(np.float32(theta)) ** exponents.astype(np.float64)
    # Then a float32 reciprocal: a negative exponent would round otherwise.
    return np.float32(1.0) / powers.astype(np.float32)


def rope_table(angles: Array, dtype: DTypeLike) -> RopeTable:
    """Cosines and sines, taken in float32 and rounded to the activations' dtype.

    Args:
        angles: float32[L, D / 2] or float32[B, L, D / 2], radians.
        dtype: That of the features to rotate.
    """
    angles = angles.astype(jnp.float32)
    return RopeTable(jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype))


def pad_table(table: RopeTable, length: int) -> RopeTable:
    """The table with zeros behind it, [..., L, D / 2] to [..., length, D / 2]."""
    missing = length - table.cos.shape[-2]
    return RopeTable(*(jnp.pad(x, [(0, 0), (0, missing), (0, 0)]) for x in table))


def rotate(features: Array, table: RopeTable, *, interleaved: bool) -> Array:
    """Turns each pair of features by its angle, alike in all heads.

    Args:
        features: Queries or keys.  [B, L, N, D].
        table: From `rope_table`.  [L, D / 2] or [B, L, D / 2].
        interleaved: Whether pair k is features (2k, 2k + 1) or (k, k + D / 2).

    Returns:
        The rotated features, same shape and dtype.
    """
    cos, sin = (
        jnp.expand_dims(part, -2).astype(features.dtype)  # [(B,) L, 1, D / 2]
        for part in table
    )
    if interleaved:
        # [B, L, N, D] -> [B, L, N, D / 2, 2]
        pairs = features.reshape(*features.shape[:-1], -1, 2)
        first, second = pairs[..., 0], pairs[..., 1]
    else:
        # [B, L, N, D / 2] each
        first, second = jnp.split(features, 2, axis=-1)
    # A rotation of (first, second) by the angle, pair by pair.
    turned = (first * cos - second * sin, second * cos + first * sin)
    # [B, L, N, D / 2, 2] or [B, L, N, 2, D / 2] -> [B, L, N, D]
    return jnp.stack(turned, axis=-1 if interleaved else -2).reshape(features.shape)
