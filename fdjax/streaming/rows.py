"""Rows of the network: each session's branches of guidance, in each its views."""

from typing import Any

import jax
import jax.numpy as jnp

from fdjax.axes import Array, PyTree
from fdjax.streaming.layout import StreamLayout


def spread(
    layout: StreamLayout,
    conditional: Any,
    unconditional: Array | None = None,
    *,
    by_view: bool = False,
) -> Any:
    """Each session's branches one after the other; see `StreamingDiT.rows`."""
    branches, views = layout.num_branches, layout.num_views
    if conditional is None or (layout.num_rows == 1 and not by_view):
        return conditional
    if unconditional is None:
        unconditional = conditional
    # [B, G, ...] or [B, G, V, ...]
    x = jnp.stack([conditional, unconditional][:branches], axis=1)
    if not by_view:
        # [B, G, ...] -> [B, G, V, ...]
        shape = *x.shape[:2], views, *x.shape[2:]
        x = jnp.broadcast_to(x[:, :, None], shape)
    # [B, G, V, ...] -> [B G V, ...]
    return x.reshape(-1, *x.shape[3:])


def fold(layout: StreamLayout, tree: PyTree) -> PyTree:
    """[B, G V, ...] to [B G V, ...] in every leaf."""
    if layout.num_rows == 1:
        return tree
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def unfold(layout: StreamLayout, tree: PyTree) -> PyTree:
    """[B G V, ...] to [B, G V, ...] in every leaf."""
    if layout.num_rows == 1:
        return tree
    return jax.tree.map(lambda x: x.reshape(-1, layout.num_rows, *x.shape[1:]), tree)
