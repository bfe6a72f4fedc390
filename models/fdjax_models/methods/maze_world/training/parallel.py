"""Data parallelism: every device trains on clips of its own, gradients are averaged."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fdjax.axes import PyTree

AXIS = "data"
SPLIT = PartitionSpec(AXIS)
SAME = PartitionSpec()


def mesh() -> Mesh:
    """Returns all devices of this host in a row."""
    return jax.make_mesh((jax.local_device_count(),), (AXIS,))


def sharding(spec: PartitionSpec) -> NamedSharding:
    """Returns where an array lies: `SPLIT` along its leading axis, or the `SAME`."""
    return NamedSharding(mesh(), spec)


def per_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
    """Returns `function` run by every device on its part of the arguments.

    Args:
        function: Sees only its device's part; averages with `mean`.
        in_specs: `SPLIT` or `SAME` for each argument.
        out_specs: The same for the result.
    """
    return jax.shard_map(
        function, mesh=mesh(), in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def own_key(key: jax.Array) -> jax.Array:
    """Returns a key that differs between devices; within `per_device`."""
    # By the device's place in the row, so that no two draw the same clips.
    return jax.random.fold_in(key, jax.lax.axis_index(AXIS))


def mean(tree: PyTree) -> PyTree:
    """Returns the mean over devices; within `per_device`."""
    return jax.lax.pmean(tree, AXIS)
