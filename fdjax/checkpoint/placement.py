"""Where the leaves of parameters go: shardings of a tree, and the way there.

A placement may be a nested dict that ends above the leaves (what it ends on holds for
all below) and leaves names out: those go to the default device.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, Sharding

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.component import ParametricComponent
from fdjax.sharding import PARAMS, Placement, resolve

_WHOLE = (Mesh, Sharding, type(None))


def part_of(placement: Placement | None, name: str) -> Placement | None:
    """The placement of one subtree."""
    return placement if isinstance(placement, _WHOLE) else placement.get(name)


def check_names(
    placement: Placement | None, names: Sequence[str], where: str = ""
) -> None:
    """Checks that a placement names nothing but what there is.

    Raises:
        ValueError: It names something else, or holds no sharding.
    """
    if isinstance(placement, _WHOLE):
        return
    place = f" of {where}" if where else ""
    if not isinstance(placement, Mapping):
        raise ValueError(
            f"sharding{place} must be a Mesh, a Sharding or a dict by name, got "
            f"{placement!r}."
        )
    if unknown := sorted(set(placement) - set(names)):
        raise ValueError(f"sharding{place} names {unknown}; there are {sorted(names)}.")


def leaf_shardings(shapes: PyTree, placement: Placement | None) -> dict:
    """A sharding for every leaf of a nested dict.

    Raises:
        ValueError: The placement names something that is not there.
    """
    if isinstance(placement, Mesh):
        placement = resolve(placement, shapes, PARAMS)
    _check_tree(shapes, placement, ())
    default = default_sharding()
    found = {}
    for path in traverse_util.flatten_dict(shapes):
        part = functools.reduce(part_of, path, placement)
        found[path] = default if part is None else part
    return traverse_util.unflatten_dict(found)


def _check_tree(shapes: Any, placement: Any, path: tuple[str, ...]) -> None:
    is_dict = isinstance(shapes, Mapping)
    check_names(placement, list(shapes) if is_dict else [], "/".join(path))
    if isinstance(placement, Mapping):
        for name, part in placement.items():
            _check_tree(shapes[name], part, (*path, name))


def init_params(
    component: ParametricComponent, key: jax.Array, placement: Placement | None
) -> Params:
    """Random parameters of a component, where a placement says.

    Parts are made one after the other: the devices need not hold all of them.

    Raises:
        ValueError: The placement names something that is not there.
    """
    if placement is None:
        return component.init_params(key)
    if component.parts:
        check_names(placement, list(component.parts))
        keys = component.part_keys(key)
        return {
            name: jax.block_until_ready(
                init_params(part, keys[name], part_of(placement, name))
            )
            for name, part in component.parts.items()
        }
    placed = leaf_shardings(component.param_shapes(), placement)
    if all(len(each.device_set) == 1 for each in jax.tree.leaves(placed)):
        # Leaf by leaf: one program of a thousand outputs takes long to compile.
        return jax.device_put(component.init_params(key), placed)
    return jax.jit(component.init_params, out_shardings=placed)(key)


def default_sharding() -> Sharding:
    """The device that JAX would use."""
    device = getattr(jax.config, "jax_default_device", None) or jax.local_devices()[0]
    if isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return jax.sharding.SingleDeviceSharding(device)


def to_device(array: np.ndarray, sharding: Sharding) -> Array:
    """A copy of values of the host on the first device here of a sharding.

    Never a view: a view of a mapped file would change, or end the process, with it.
    """
    # By number, so that every run takes the same one.
    devices: Any = sharding.addressable_devices
    device = min(devices, key=lambda device: device.id)
    # 64 bits are narrowed by JAX unless it is told otherwise; it does not say so here.
    with np.errstate(over="ignore"):
        array = np.require(array, jax.dtypes.canonicalize_dtype(array.dtype), "A")
    return jax.device_put(array, device, may_alias=False)


def spread(array: Array, sharding: Sharding) -> Array:
    """An array that one device here holds whole, placed as a sharding says."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    # Of several processes, each holds the whole array and keeps its own part.
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: array[index]
    )
