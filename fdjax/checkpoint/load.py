"""Finds the parameters of a component, and reads them onto the devices.

A checkpoint in fdjax's own format is restored. Anything else is a published one: a
converter, found through the entry-point group `fdjax.checkpoint_converters`, maps it.
Files of `torch.save` are read by whoever is found through `fdjax.torch_readers`.
"""

import importlib.metadata
import os
import pathlib
import tomllib
from typing import Any

import jax

from fdjax.axes import Params
from fdjax.checkpoint import address, placement
from fdjax.checkpoint.fetch import fetch
from fdjax.checkpoint.metadata import check_fit
from fdjax.checkpoint.store import param_shapes, read_metadata, restore
from fdjax.contract.component import ParametricComponent
from fdjax.sharding import Placement

CONVERTERS = "fdjax.checkpoint_converters"
"""Entry-point group. An entry is called as `converter(component, source, sharding=…)`
and returns params, or None if it does not know the component's architecture. With
`only_check=True` it returns an empty dict once headers and sizes are found to fit."""

TORCH_READERS = "fdjax.torch_readers"
"""Entry-point group. An entry is called as `reader(path)` and returns the structure of
a file of `torch.save`, a `LazyTensor` in place of every tensor."""


def load_params(
    component: ParametricComponent, *, sharding: Placement | None = None
) -> Params:
    """Parameters from what `component.checkpoint_path` names.

    A component without parameters gives an empty dict and needs no checkpoint.

    Args:
        component: What has to be filled.
        sharding: One `jax.sharding.Sharding` for all, a dict of them by name, or
            None, the default device: see `fdjax.checkpoint.placement`.

    Returns:
        Params in the dtypes of `param_shapes()`, on the devices.

    Raises:
        ValueError: No checkpoint is named, or it does not fit.
        FileNotFoundError: It is missing, or cannot be downloaded.
    """
    component = component.params_owner
    if component.parts:
        placement.check_names(sharding, list(component.parts))
        component.check_files()
        return {
            name: load_params(part, sharding=placement.part_of(sharding, name))
            for name, part in component.parts.items()
        }
    if not jax.tree.leaves(param_shapes(component)):
        return {}
    component.check_files()
    name = type(component.config).__name__
    source = component.checkpoint_path
    if source is None:
        raise ValueError(
            f"{name} names no checkpoint: set its checkpoint_path to a file, a "
            "directory, a URL or hf://owner/repo/file, or ask for random weights."
        )
    path = address.local_path(source)
    if path is not None and path.exists() and read_metadata(path) is not None:
        return restore(path, component=component, sharding=sharding)
    for entry in _converters():
        params = entry.load()(component, os.fspath(source), sharding=sharding)
        if params is not None:
            return params
    path = fetch(source, flag=f"checkpoint_path of {name}")
    if read_metadata(path) is not None:
        return restore(path, component=component, sharding=sharding)
    raise ValueError(
        f"{path} is no checkpoint of fdjax, and no converter knows the architecture "
        f"{component.architecture!r} of {name}."
    )


def check_local(component: ParametricComponent) -> None:
    """Finds out from headers whether the files of a component fit it.

    Looks at checkpoints that are on this machine by their path; fetches nothing.

    Raises:
        ValueError: One does not fit, or is damaged.
    """
    component = component.params_owner
    component.check_files()
    for part in component.parts.values():
        check_local(part)
    source = None if component.parts else component.checkpoint_path
    path = None if source is None else address.local_path(source)
    if source is None or path is None or not path.exists():
        return
    if (metadata := read_metadata(path)) is not None:
        check_fit(path, metadata, param_shapes(component), component)
        return
    for entry in _converters():
        if entry.load()(component, os.fspath(source), only_check=True) is not None:
            return


def origin(source: str) -> str:
    """What a checkpoint was converted from; the address itself where none tells.

    Weights of one architecture do not tell which model they are; their names may.

    Args:
        source: An address: see `fdjax.checkpoint.address`. Nothing is fetched.

    Raises:
        ValueError: It is a damaged checkpoint, or of a newer version.
    """
    path = address.local_path(source)
    metadata = read_metadata(path) if path is not None and path.exists() else None
    return source if metadata is None else str(metadata.source.get("path", source))


def read_torch(path: pathlib.Path) -> Any:
    """The structure of a file of `torch.save`, a `LazyTensor` in place of every tensor.

    Raises:
        ValueError: It cannot be read, or nothing is installed that reads it.
    """
    for entry in _entries(TORCH_READERS):
        return entry.load()(path)
    raise ValueError(
        f"{path} is a file of torch.save, and nothing is installed that reads it."
    )


def _converters() -> list[importlib.metadata.EntryPoint]:
    return _entries(CONVERTERS)


def _entries(group: str) -> list[importlib.metadata.EntryPoint]:
    """What is installed in a group; in a clone, also what its pyproject lists."""
    points = list(importlib.metadata.entry_points(group=group))
    path = pathlib.Path(__file__).parents[2] / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return points
    if project.get("name") != "fdjax":
        return points
    known = {point.value for point in points}
    own = project.get("entry-points", {}).get(group, {})
    return points + [
        importlib.metadata.EntryPoint(name, value, group)
        for name, value in own.items()
        if value not in known
    ]
