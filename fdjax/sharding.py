"""Where arrays live: tables of patterns for trees, and letters for activations.

A mesh names its axes by what is cut over them:

    data        sessions, B
    sequence    the tokens of a chunk, L (dense layers)
    heads       attention heads, N: the key/value cache and what attends to it
    tensor      heads and MLP width, N and F: weights that do not fit one card

A model says which letters an activation has, `constrain(x, "BLND")`, and never names a
mesh axis. Without a mesh (`jax.set_mesh`) nothing happens.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from fdjax.axes import Array, PyTree

Placement = Sharding | Mesh | PyTree
"""One sharding for all leaves, a tree of them, or a mesh: the tables then decide."""

Spec = tuple[Any, ...]
"""As a `PartitionSpec`; one `...` stands for axes that are held whole."""

Table = Sequence[tuple[str, Spec]]
"""Ordered (pattern, spec): the first whose pattern is found in a leaf's path holds."""

LETTERS: dict[str, tuple[str, ...]] = {
    "B": ("data",),
    "L": ("sequence",),
    "N": ("heads", "tensor"),
    "F": ("tensor",),
}
"""Mesh axes over which an activation's axis is cut, those that the mesh has."""

_HOST = "pinned_host"

PARAMS: Table = (
    # Fused projection [M, 3, N, D], separate ones [M, N, D] and [M, 2, N, D].
    (r"(^|/)qkv/kernel$", (None, None, "tensor", None)),
    (r"(^|/)qkv/bias$", (None, "tensor", None)),
    (r"self_attn/q/kernel$", (None, "tensor", None)),
    (r"self_attn/q/bias$", ("tensor", None)),
    (r"self_attn/kv/kernel$", (None, None, "tensor", None)),
    (r"self_attn/kv/bias$", (None, "tensor", None)),
    (r"cross_attn/(q|k|v|k_img|v_img)/kernel$", (None, "tensor")),
    (r"cross_attn/(q|k|v|k_img|v_img)/bias$", ("tensor",)),
    # The way back sums over what was cut.
    (r"(self|cross)_attn/o/kernel$", ("tensor", None)),
    (r"(^|/)ffn/fc1/kernel$", (None, "tensor")),
    (r"(^|/)ffn/fc1/bias$", ("tensor",)),
    (r"(^|/)ffn/fc2/kernel$", ("tensor", None)),
)
"""Weights that are cut; all others are held whole by every device."""

CACHE: Table = (
    # [B, S, N, D], with guidance [B, G, S, N, D]; the letters are the last three.
    (r"(^|/)kv/(keys|values)(/|$)", ("data", ..., None, ("heads", "tensor"), None)),
    (r"(^|/)context/", ("data", ..., None, ("heads", "tensor"), None)),
    (r"", ("data",)),
)
"""Leaves of a cache: sessions are cut, and heads where there are any."""


def constrain(x: Array, axes: str) -> Array:
    """Cuts an activation over the mesh in force; `x` itself without one.

    Args:
        x: Any array.
        axes: One letter per axis, by `fdjax.axes`; `LETTERS` says which are cut.

    Raises:
        ValueError: The number of letters is not that of the axes.
    """
    if len(axes) != x.ndim:
        raise ValueError(f"{axes!r} must have one letter for each axis of {x.shape}.")
    if not in_mesh():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    spec = _fit(tuple(LETTERS.get(letter) for letter in axes), x.shape, mesh.shape)
    return jax.lax.with_sharding_constraint(x, spec)


def in_host_memory(placement: Sharding, shapes: PyTree, share: float = 1.0) -> PyTree:
    """A sharding for every leaf, some of them in the memory of the devices' host.

    It is pinned, which a device copies from at full speed. `to_device_memory` brings
    the leaves to the device.

    Args:
        placement: The devices.
        shapes: Tree of arrays or of `jax.ShapeDtypeStruct`.
        share: Of the bytes, in [0, 1], that the host holds, spread evenly over the
            leaves.

    Raises:
        ValueError: The devices' platform has no such memory.
    """
    devices: Any = placement.device_set
    device = min(devices, key=lambda device: device.id)
    kinds = [memory.kind for memory in device.addressable_memories()]
    if _HOST not in kinds:
        raise ValueError(
            f"Weights can wait with the host only where there is memory of kind {_HOST}"
            f"; {device.device_kind} has {', '.join(kinds)}."
        )
    host = placement.with_memory_kind(_HOST)
    total = held = 0

    def choose(leaf: Any) -> Sharding:
        nonlocal total, held
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size
        # The nearer of the two to the share of what came so far.
        far = held + size / 2 < share * total
        held += size if far else 0
        return host if far else placement

    return jax.tree.map(choose, shapes)


def is_host_memory(placement: Sharding) -> bool:
    """Whether a sharding is one of the host's memory, of `in_host_memory`."""
    return placement.memory_kind == _HOST


def to_device_memory(tree: PyTree, after: PyTree = ()) -> PyTree:
    """Brings what lies in the host's memory to the device; all else stays as it is.

    Inside of a jit the copies are a part of the program, and take the device's memory
    from then to their last use.

    Args:
        tree: Arrays.
        after: Arrays that must be there before a copy begins, so that what they are
            made from need not be held beside it.
    """
    leaves, structure = jax.tree.flatten(tree)
    far = {
        number: leaf
        for number, leaf in enumerate(leaves)
        if jax.typeof(leaf).memory_space == jax.memory.Space.Host
    }
    if far and jax.tree.leaves(after):
        far, _ = jax.lax.optimization_barrier((far, after))
    for number, leaf in far.items():
        leaves[number] = jax.device_put(leaf, jax.memory.Space.Device)
    return jax.tree.unflatten(structure, leaves)


def in_mesh() -> bool:
    """Whether a mesh is in force (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return not (mesh is None or mesh.empty)


def resolve(placement: Placement | None, shapes: PyTree, table: Table) -> PyTree | None:
    """A sharding for every leaf; None where nothing was asked for.

    Args:
        placement: See `Placement`.
        shapes: Tree of arrays or of `jax.ShapeDtypeStruct`.
        table: Used with a mesh.
    """
    if placement is None:
        return None
    if isinstance(placement, Mesh):
        return shardings(placement, shapes, table)
    if isinstance(placement, Sharding):
        return jax.tree.map(lambda _: placement, shapes)
    return placement


def shardings(mesh: Mesh, shapes: PyTree, table: Table) -> PyTree:
    """What a table makes of a tree: a `NamedSharding` for every leaf.

    A path is the names of keys, fields and numbers, joined by "/". An axis that the
    mesh lacks, or that does not divide, is left whole.

    Args:
        mesh: The devices.
        shapes: Tree of arrays or of `jax.ShapeDtypeStruct`.
        table: Patterns, e.g. `PARAMS` or `CACHE`.
    """

    def choose(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next((spec for pattern, spec in table if re.search(pattern, name)), ())
        return NamedSharding(mesh, _fit(spec, leaf.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(choose, shapes)


def _fit(spec: Spec, shape: tuple[int, ...], sizes: Any) -> PartitionSpec:
    """A spec for one shape: `...` spelt out, absent and uneven mesh axes left out."""
    parts = list(spec)
    if ... in parts:
        where = parts.index(...)
        fill = len(shape) - (len(parts) - 1)
        if fill < 0:  # fewer axes than the spec names: the first alone
            parts = parts[:1]
        else:
            parts[where : where + 1] = [None] * fill
    used: set[str] = set()
    fitted = []
    for part, length in zip(parts, shape, strict=False):
        names = (part,) if isinstance(part, str) else (part or ())
        kept = []
        for name in names:
            if sizes.get(name, 1) > 1 and name not in used and not length % sizes[name]:
                kept.append(name)
                used.add(name)
                length //= sizes[name]
        fitted.append(tuple(kept) or None)
    return PartitionSpec(*fitted)
