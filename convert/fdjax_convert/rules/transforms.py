"""Named bijections between the values of a published tensor and of a Flax parameter.

They work on arrays of numpy (shapes, conversions to a file) and of JAX (loading, where
they run on the device), bfloat16 included: by methods, and by what the standard of the
array API names.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
    """A bijection on arrays, or on tuples of them.

    Both directions keep the dtype and move values only. A rule with several sources
    passes a tuple to `to_flax`; one with several targets gets a tuple from it.

    Attributes:
        name: Shown in reports and error messages.
        to_flax: From the published layout to the Flax one; may return a view.
        to_torch: Its inverse.
        shaped: `to_flax` takes the shapes of the leaves too, one argument each: it
            depends on more than the published layout tells, such as the heads.
    """

    name: str
    to_flax: Callable[..., Any] = dataclasses.field(repr=False)
    to_torch: Callable[[Any], Any] = dataclasses.field(repr=False)
    shaped: bool = False

    def apply(self, value: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
        """`to_flax` of a value, for leaves of these shapes."""
        return self.to_flax(value, *shapes) if self.shaped else self.to_flax(value)


def _same(value: Any) -> Any:
    return value


def _namespace(array: Any) -> Any:
    """The module with the functions for an array: numpy's, or JAX's."""
    return array.__array_namespace__()


IDENTITY = Transform("identity", _same, _same)
"""Values as they are."""


def transpose(*axes: int) -> Transform:
    """Flax axis i is published axis `axes[i]`."""
    # `argsort` of a permutation is its inverse.
    inverse = tuple(int(axis) for axis in np.argsort(axes))

    def check(array: Any) -> Any:
        if array.ndim != len(axes):
            raise ValueError(f"must have {len(axes)} axes, has shape {array.shape}")
        return array

    return Transform(
        f"transpose{axes}",
        lambda array: check(array).transpose(axes),
        lambda array: check(array).transpose(inverse),
    )


LINEAR = dataclasses.replace(transpose(1, 0), name="linear")
"""Linear weight [out, in] -> kernel [in, out]."""

CONV1D = dataclasses.replace(transpose(2, 1, 0), name="conv1d")
"""Convolution weight [out, in, t] -> kernel [t, in, out]."""

CONV2D = dataclasses.replace(transpose(2, 3, 1, 0), name="conv2d")
"""Convolution weight [out, in, h, w] -> kernel [h, w, in, out]."""

CONV3D = dataclasses.replace(transpose(2, 3, 4, 1, 0), name="conv3d")
"""Convolution weight [out, in, t, h, w] -> kernel [t, h, w, in, out]."""


def chain(*transforms: Transform) -> Transform:
    """Applies `transforms` in order (and their inverses in reverse).

    Only the last may take the shapes of the leaves.
    """
    *first, last = transforms
    if any(transform.shaped for transform in first):
        raise ValueError("only the last transform of a chain may take shapes")

    def to_flax(value: Any, *shapes: tuple[int, ...]) -> Any:
        for transform in first:
            value = transform.to_flax(value)
        return last.apply(value, shapes)

    def to_torch(value: Any) -> Any:
        for transform in reversed(transforms):
            value = transform.to_torch(value)
        return value

    name = " > ".join(transform.name for transform in transforms)
    return Transform(name, to_flax, to_torch, shaped=last.shaped)


def each(transform: Transform) -> Transform:
    """Applies `transform` to every array of a tuple."""
    return Transform(
        f"each {transform.name}",
        lambda values: tuple(transform.to_flax(value) for value in values),
        lambda values: tuple(transform.to_torch(value) for value in values),
    )


def split(count: int, axis: int = 0) -> Transform:
    """One array -> `count` equal parts along `axis` (fused qkv -> q, k, v)."""

    def to_flax(array: Any) -> Any:
        if array.shape[axis] % count:
            raise ValueError(
                f"axis {axis} must be divisible by {count}, shape {array.shape}"
            )
        size = array.shape[axis] // count
        # By slices, which are views and alike in numpy and JAX.
        before = (slice(None),) * (axis % array.ndim)
        return tuple(
            array[(*before, slice(part * size, (part + 1) * size))]
            for part in range(count)
        )

    return Transform(
        f"split({count}, axis={axis})",
        to_flax,
        lambda arrays: _namespace(arrays[0]).concat(arrays, axis=axis),
    )


def concatenate(count: int, axis: int = 0) -> Transform:
    """`count` arrays of one shape -> one, along `axis` (q, k, v -> fused qkv)."""
    inverse = split(count, axis)
    return Transform(
        f"concatenate({count}, axis={axis})", inverse.to_torch, inverse.to_flax
    )


def stack_heads(count: int) -> Transform:
    """`count` projections [N D, M] -> one kernel [M, count, N, D]; biases alike.

    Biases [N D] become [count, N, D]. The number of heads N is that of the leaf. The
    axes of heads stand apart, so that the kernel can be cut between heads.
    """

    def to_flax(arrays: Sequence[Any], shape: tuple[int, ...]) -> Any:
        num_heads, head_dim = shape[-2:]
        rows, *rest = arrays[0].shape
        if rows != num_heads * head_dim:
            raise ValueError(
                f"axis 0 must be {num_heads} heads of {head_dim}, "
                f"shape {arrays[0].shape}"
            )
        # count of [N D, M] -> [count, N D, M]
        stacked = _namespace(arrays[0]).stack(arrays)
        # [count, N, D, M]; a bias has no M.
        heads = stacked.reshape(count, num_heads, head_dim, *rest)
        # [M, count, N, D]
        return heads.transpose(*range(3, heads.ndim), 0, 1, 2)

    def to_torch(array: Any) -> Any:
        heads = array.ndim - 3
        # [M, count, N, D] -> [count, N, D, M]
        array = array.transpose(heads, heads + 1, heads + 2, *range(heads))
        # count of [N D, M]
        return tuple(array.reshape(count, -1, *array.shape[3:]))

    return Transform(f"stack_heads({count})", to_flax, to_torch, shaped=True)


def squeeze(*axes: int) -> Transform:
    """Removes axes of size 1: `squeeze(0)` turns [1, 6, M] into [6, M]."""
    return Transform(
        f"squeeze{axes}",
        lambda array: array.squeeze(axes),
        lambda array: _namespace(array).expand_dims(array, axis=axes),
    )


def expand_dims(*axes: int) -> Transform:
    """Inserts axes of size 1, at their places in the result."""
    inverse = squeeze(*axes)
    return Transform(f"expand_dims{axes}", inverse.to_torch, inverse.to_flax)


def conv_as_matrix(*window: int) -> Transform:
    """Convolution weight [out, in, *window] -> kernel [in * window, out].

    For a convolution whose stride is its window, applied as a matrix to patches whose
    features are ordered channel first, then the window's axes.
    """

    def to_flax(array: Any) -> Any:
        if array.shape[2:] != window:
            raise ValueError(f"the window must be {window}, shape {array.shape}")
        # [out, in, *window] -> [in window, out]
        return array.reshape(array.shape[0], -1).T

    def to_torch(array: Any) -> Any:
        # [in window, out] -> [out, in, *window]
        return array.T.reshape(array.shape[1], -1, *window)

    return Transform(f"conv_as_matrix{window}", to_flax, to_torch)


def regroup(sizes: Sequence[int], order: Sequence[int]) -> Transform:
    """Reorders axis 0, read as axes of the given `sizes`, into `order`.

    One size may be -1. The rows of Wan's head, stored as (1, 2, 2, channel), become
    (channel, 1, 2, 2) by `regroup((1, 2, 2, -1), (3, 0, 1, 2))`.
    """
    sizes, order = tuple(sizes), tuple(order)
    # `argsort` of a permutation is its inverse.
    inverse_order = tuple(int(axis) for axis in np.argsort(order))

    def permute(array: Any, grouped_sizes: Sequence[int], axes: Sequence[int]) -> Any:
        # A size of -1 makes the product negative.
        if array.shape[0] % abs(math.prod(grouped_sizes)):
            raise ValueError(
                f"axis 0 must be divisible by {abs(math.prod(grouped_sizes))}, "
                f"shape {array.shape}"
            )
        rest = array.shape[1:]
        # [rows, ...] -> [*sizes, ...]
        grouped = array.reshape(*grouped_sizes, *rest)
        tail = range(len(axes), len(axes) + len(rest))
        # [*sizes in their new order, ...] -> [rows, ...]
        return grouped.transpose(*axes, *tail).reshape(array.shape)

    return Transform(
        f"regroup({sizes} -> {order})",
        lambda array: permute(array, sizes, order),
        lambda array: permute(array, [sizes[axis] for axis in order], inverse_order),
    )
