"""What a batch of sessions is made of: lanes, controls put together, checks by lane."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array, PyTree
from fdjax.engine.checks import check_finite


@functools.partial(jax.jit, static_argnums=1)
def repeat(tree: PyTree, count: int) -> PyTree:
    """[1, ...] to [B, ...] in every leaf, in buffers of its own."""
    return jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), tree
    )


@jax.jit
def row(tree: PyTree, index: Array) -> PyTree:
    """[B, ...] to the [1, ...] of one lane in every leaf."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, 1), tree)


@jax.jit
def finite(tree: PyTree) -> Array:
    """Which lanes have no NaN and no infinity in any leaf.  bool[B]."""
    leaves = jax.tree.leaves(tree)
    flags = [
        jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
        for leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    every = jnp.ones((len(leaves[0]),), bool)
    return functools.reduce(jnp.logical_and, flags, every)


class Controls:
    """Puts the controls of some lanes into one batch of a fixed shape.

    What a lane does not get is zeros.
    """

    def __init__(self, pattern: PyTree, capacity: int) -> None:
        """Takes shapes and dtypes from the control of one session.

        Args:
            pattern: Leaves [1, ...]; None: there are no controls.
            capacity: Lanes, B.

        Raises:
            ValueError: A leaf has no axis of sessions.
        """
        leaves, structure = jax.tree.flatten(pattern)
        self._structure: Any = structure
        self._capacity = capacity
        self._leaves: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        for leaf in leaves:
            shape = np.shape(leaf)
            if shape[:1] != (1,):
                raise ValueError(
                    "control must be that of one session, with leaves [1, ...]; got "
                    f"one of shape {shape}: put [None] behind it."
                )
            dtype = jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype)
            self._leaves.append((shape[1:], np.dtype(dtype)))

    def check(self, control: PyTree, lane: int) -> None:
        """Refuses a control that cannot be put together with others.

        Args:
            control: Leaves [1, ...] or [...]; None is zeros.
            lane: For the message.

        Raises:
            ValueError: Another structure, shape or kind of numbers, or NaN.
        """
        if control is not None:
            self._rows(control, _name(lane))
            check_finite(control, _name(lane))

    def together(self, controls: Mapping[int, PyTree]) -> PyTree:
        """The controls of all lanes, NumPy arrays [B, ...].

        Args:
            controls: By lane; as in `check`.

        Raises:
            ValueError: One does not fit; names the lane.
        """
        arrays = [
            np.zeros((self._capacity, *shape), dtype) for shape, dtype in self._leaves
        ]
        for lane, control in controls.items():
            if control is None:
                continue
            rows = self._rows(control, _name(lane))
            for array, values in zip(arrays, rows, strict=True):
                array[lane] = values
        # All at once: lane by lane it takes longer than the device waits gladly.
        if not all(np.isfinite(array).all() for array in arrays):
            for lane, control in controls.items():
                check_finite(control, _name(lane))
        return jax.tree.unflatten(self._structure, arrays)

    def _rows(self, control: PyTree, what: str) -> list[np.ndarray]:
        """One session's leaves, [...] each."""
        leaves, structure = jax.tree.flatten(control)
        if structure != self._structure:
            raise ValueError(
                f"{what} must have the structure {self._structure}, as that of the "
                f"batch, got {structure}."
            )
        rows = []
        for leaf, (shape, dtype) in zip(leaves, self._leaves, strict=True):
            values = np.asarray(leaf)
            if values.dtype == dtype and values.shape == (1, *shape):
                rows.append(values[0])
                continue
            given = jax.dtypes.canonicalize_dtype(values.dtype)
            if values.shape not in (shape, (1, *shape)) or not np.can_cast(
                given, dtype, "same_kind"
            ):
                raise ValueError(
                    f"{what} must be {dtype}{[1, *shape]}, got {values.dtype}"
                    f"{list(values.shape)}."
                )
            rows.append(values.reshape(shape))
        return rows


def _name(lane: int) -> str:
    return f"The control of lane {lane}"
