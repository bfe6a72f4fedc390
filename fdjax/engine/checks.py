"""Looks at the values that a caller hands over, where that costs no waiting."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import PyTree


def readable(leaf: Any) -> bool:
    """Whether the values of a leaf can be looked at without waiting for a device.

    Not those of a tracer or a mere shape, of an array on another process's devices, or
    of one that an accelerator has still to compute: it works in order, so that its
    value would be there only when the chunk before is.
    """
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        return False
    if not isinstance(leaf, jax.Array):
        return True
    if not leaf.is_fully_addressable:
        return False
    on_cpu = all(device.platform == "cpu" for device in leaf.devices())
    return on_cpu or bool(cast(Any, leaf).is_ready())


def check_finite(tree: PyTree, what: str) -> None:
    """Refuses NaN and infinite values, where they are `readable`.

    Args:
        tree: Of arrays and numbers.
        what: Names it in the message.

    Raises:
        ValueError: Names the leaf.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not readable(leaf) or not jnp.issubdtype(_dtype(leaf), jnp.inexact):
            continue
        values = np.asarray(leaf)
        finite = np.isfinite(values)
        if not finite.all():
            where = f"{what}{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{where} must be finite, {values.size - int(finite.sum())} of "
                f"{values.size} values are NaN or infinite."
            )


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
