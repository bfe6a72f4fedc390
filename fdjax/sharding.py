"""Where arrays live: tables of patterns for trees, and letters for activations.

A mesh names its axes by what is cut over them:

    data        sessions, B
    guidance    a session's branches of guidance, G
    sequence    the tokens of a chunk, L, in the dense layers; in self-attention, and so
                in the key/value cache, the heads (arXiv:2309.14509, "Ulysses")
    heads       the heads of self-attention, and nothing else
    tensor      heads and MLP width, N and F: weights that do not fit one card

A model says which letters an activation has, `constrain(x, "BLM")`, and never names a
mesh axis. Without a mesh (`jax.set_mesh`, or `home` of placed weights) nothing happens.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from fdjax.axes import Array, PyTree

Placement = Sharding | Mesh | PyTree
"""One sharding for all leaves, a tree of them, or a mesh: the tables then decide."""

Spec = tuple[Any, ...]
"""As a `PartitionSpec`; what is missing at its end is held whole."""

Table = Sequence[tuple[str, Spec]]
"""Ordered (pattern, spec): the first whose pattern is found in a leaf's name holds.

A name is the path, the dtype and the number of axes: "kv/keys/0:bfloat16[4]".
"""

AXES = ("data", "guidance", "sequence", "heads", "tensor")
"""The names that a mesh may give its axes."""

HEADS = ("heads", "tensor", "sequence")
"""Mesh axes over which self-attention cuts heads, the coarsest first."""

LETTERS: dict[str, tuple[str, ...]] = {
    # The network's rows: sessions, and in each the branches of guidance.
    "B": ("data", "guidance"),
    "L": ("sequence",),
    "N": ("tensor",),
    "F": ("tensor",),
}
"""Mesh axes over which an activation's axis is cut, those that the mesh has."""

_HOST = "pinned_host"

PARAMS: Table = (
    # Fused projection [M, 3, N, D], separate ones [M, N, D] and [M, 2, N, D].
    (r"(^|/)qkv/kernel:", (None, None, "tensor", None)),
    (r"(^|/)qkv/bias:", (None, "tensor", None)),
    (r"self_attn/q/kernel:", (None, "tensor", None)),
    (r"self_attn/q/bias:", ("tensor", None)),
    (r"self_attn/kv/kernel:", (None, None, "tensor", None)),
    (r"self_attn/kv/bias:", (None, "tensor", None)),
    (r"cross_attn/(q|k|v|k_img|v_img)/kernel:", (None, "tensor")),
    (r"cross_attn/(q|k|v|k_img|v_img)/bias:", ("tensor",)),
    # The way back sums over what was cut.
    (r"_attn/o/kernel:", ("tensor", None)),
    # What is as large as a block's attention, once a chunk.
    (r"(^|/)camera/(fc1|scale|shift)/kernel:", (None, "tensor")),
    (r"(^|/)camera/(fc1|scale|shift)/bias:", ("tensor",)),
    (r"(^|/)camera/fc2/kernel:", ("tensor", None)),
    (r"(^|/)(ffn|mlp)/fc1/kernel:", (None, "tensor")),
    (r"(^|/)(ffn|mlp)/fc1/bias:", ("tensor",)),
    (r"(^|/)(ffn|mlp)/fc2/kernel:", ("tensor", None)),
)
"""Weights that are cut; all others are held whole by every device."""

CACHE: Table = (
    # [B, S, N, D], with rows [B, G V, S, N, D]; values in 8 bits end in [N, D, S].
    (r"(^|/)kv/values/\d+:float8\w*\[4\]", ("data", HEADS, None, None)),
    (r"(^|/)kv/values/\d+:float8\w*\[5\]", ("data", "guidance", HEADS, None, None)),
    (r"(^|/)kv/(keys|values)/\d+:\w+\[4\]", ("data", None, HEADS, None)),
    (r"(^|/)kv/(keys|values)/\d+:\w+\[5\]", ("data", "guidance", None, HEADS, None)),
    # Cross-attention: [B, P, N, D] and [B, G V, P, N, D].
    (r"(^|/)context/(.*/)?\w*(keys|values):\w+\[4\]", ("data", None, "tensor", None)),
    (
        r"(^|/)context/(.*/)?\w*(keys|values):\w+\[5\]",
        ("data", "guidance", None, "tensor", None),
    ),
    # What a finished chunk keeps of its keys and values.
    (r"(^|/)residue/chunk/\d+/\d+:\w+\[4\]", ("data", None, HEADS, None)),
    (r"(^|/)residue/chunk/\d+/\d+:\w+\[5\]", ("data", "guidance", None, HEADS, None)),
    (r"", ("data",)),
)
"""Leaves of a cache: sessions are cut, branches, and heads where there are any."""


def constrain(x: Array, axes: str) -> Array:
    """Cuts an activation over the mesh in force; `x` itself without one.

    Tokens L are cut, whatever their number: the compiler pads them. Another axis that
    the mesh does not divide is left whole.

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
    # 0 is divided by all: tokens alone need not fit, as what is missing is padded.
    shape = [0 if letter == "L" else n for letter, n in zip(axes, x.shape, strict=True)]
    return jax.lax.with_sharding_constraint(x, spec_of(axes, shape))


def gathered(x: Array) -> Array:
    """An activation [B, ...] that all devices hold whole, but for their sessions."""
    if not in_mesh():
        return x
    spec = _fit(("data",), x.shape, mesh_sizes())
    return jax.lax.with_sharding_constraint(x, spec)


def constrain_tree(tree: PyTree, table: Table) -> PyTree:
    """Cuts a tree over the mesh in force as a table says; as it is without one."""
    sizes = mesh_sizes()
    if not sizes:
        return tree
    return jax.lax.with_sharding_constraint(tree, _specs(sizes, tree, table))


def spec_of(axes: str, shape: Sequence[int]) -> PartitionSpec:
    """How the mesh in force cuts an activation with these letters.

    An axis that a mesh axis does not divide is left whole.
    """
    return _fit(tuple(LETTERS.get(letter) for letter in axes), shape, mesh_sizes())


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
    """Whether arrays are cut over a mesh here, by the compiler.

    Not within `by_device`, where each device sees its own part.
    """
    return bool(mesh_sizes())


def mesh_sizes() -> dict[str, int]:
    """Axes of the mesh in force that the compiler cuts over, none without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh is None or mesh.empty:
        return {}
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return {
        name: size
        for name, size in mesh.shape.items()
        if size > 1 and kinds[name] == AxisType.Auto
    }


def cuts_weights() -> bool:
    """Whether the mesh in force cuts weights."""
    return "tensor" in mesh_sizes()


def by_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
    """The function run by each device on its own part (`jax.shard_map`).

    A kernel's call cannot be cut by the compiler; within, there is nothing to cut.
    """
    return jax.shard_map(
        function, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


# Meshes


def parse_sizes(text: str) -> dict[str, int]:
    """The axes of a mesh from "sequence=2" or "data=2,sequence=4".

    Raises:
        ValueError: It is no such text, or names an axis that there is not.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in AXES:
            raise ValueError(
                f"a mesh has the axes {', '.join(AXES)}, e.g. sequence=2 or "
                f"data=2,sequence=4; got {name!r} in {text!r}."
            )
        if not (size.isascii() and size.isdigit() and int(size) >= 1) or name in sizes:
            raise ValueError(
                f"each axis of a mesh must be given once, as {name}=NUMBER from 1 on; "
                f"got {text!r}."
            )
        sizes[name] = int(size)
    return sizes


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the first devices, axes in the order given.

    Args:
        sizes: Devices along each axis; see `AXES`.
        devices: All there are; by default those of jax.

    Raises:
        ValueError: There are fewer devices, or they are of different kinds.
    """
    devices = jax.devices() if devices is None else devices
    count = math.prod(sizes.values())
    text = ",".join(f"{name}={size}" for name, size in sizes.items())
    if count > len(devices):
        raise ValueError(
            f"the mesh {text} needs {count} devices, there are {len(devices)} "
            f"({devices[0].device_kind}); make it smaller."
        )
    kinds = sorted({device.device_kind for device in devices[:count]})
    if len(kinds) > 1:
        raise ValueError(
            f"the devices of a mesh must be alike, the first {count} are "
            f"{' and '.join(kinds)}; hide some, e.g. with CUDA_VISIBLE_DEVICES."
        )
    return Mesh(np.array(devices[:count]).reshape(*sizes.values()), tuple(sizes))


def mesh_of(tree: PyTree) -> Mesh | None:
    """The devices of a tree that was placed; None where jax's default may be taken.

    A tree on one device that was asked for has a mesh of that device alone.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
            return None
        if isinstance(leaf.sharding, NamedSharding):
            mesh: Any = leaf.sharding.mesh
            return _compiler_cuts(mesh)
        [device, *others] = leaf.sharding.device_set
        return Mesh(np.array([device]), ("data",)) if not others else None
    return None


@contextlib.contextmanager
def home(tree: PyTree, *arguments: PyTree) -> Iterator[None]:
    """Makes the mesh of placed weights the one in force.

    Nothing changes while a function is traced, where its caller's mesh is in force.

    Args:
        tree: Weights.
        *arguments: What the function is called with besides.
    """
    leaves = jax.tree.leaves(arguments)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    mesh = None if traced else mesh_of(tree)
    if mesh is None or (mesh.size == 1 and jax.sharding.get_abstract_mesh().empty):
        yield
        return
    with jax.set_mesh(mesh):
        yield


def moved(tree: PyTree, weights: PyTree) -> PyTree:
    """A tree on the devices of placed weights: each array that is elsewhere is moved.

    What is on these devices stays as it is cut, what comes is held whole by each.
    """
    mesh = mesh_of(weights)
    if mesh is None:
        return tree
    there, whole = set(mesh.devices.flat), NamedSharding(mesh, PartitionSpec())

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
            return leaf
        here = leaf.sharding.device_set
        return leaf if here == there or not leaf.committed else _put(leaf, mesh, whole)

    return jax.tree.map(move, tree)


def _put(leaf: Array, mesh: Mesh, whole: NamedSharding) -> Array:
    if mesh.size == 1:
        return jax.device_put(leaf, mesh.devices.flat[0])
    return jax.device_put(leaf, whole)


def _compiler_cuts(mesh: Mesh) -> Mesh:
    """The mesh with axes over which the compiler cuts, as `jax.make_mesh` has not."""
    if all(kind == AxisType.Auto for kind in mesh.axis_types):
        return mesh
    return Mesh(mesh.devices, mesh.axis_names)


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

    mesh = _compiler_cuts(mesh)
    specs = _specs(mesh.shape, shapes, table)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def _specs(sizes: Mapping[str, int], shapes: PyTree, table: Table) -> PyTree:
    """A `PartitionSpec` for every leaf."""

    def choose(path: Any, leaf: Any) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        name += f":{leaf.dtype}[{len(leaf.shape)}]"
        spec = next((spec for pattern, spec in table if re.search(pattern, name)), ())
        return _fit(spec, leaf.shape, sizes)

    return jax.tree_util.tree_map_with_path(choose, shapes)


def _fit(spec: Spec, shape: Sequence[int], sizes: Any) -> PartitionSpec:
    """A spec for one shape, without mesh axes that are absent or do not divide it."""
    used: set[str] = set()
    fitted = []
    for part, length in zip(spec, shape, strict=False):
        names = (part,) if isinstance(part, str) else (part or ())
        kept = []
        for name in names:
            if sizes.get(name, 1) > 1 and name not in used and not length % sizes[name]:
                kept.append(name)
                used.add(name)
                length //= sizes[name]
        fitted.append(tuple(kept) or None)
    return PartitionSpec(*fitted)
