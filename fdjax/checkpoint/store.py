"""Saves, restores and finds the parameters of components.

fdjax's own formats are a directory, `fdjax.json` beside an orbax tree `params/`, and a
safetensors file whose keys are paths such as `blocks_0/ffn/fc1/kernel`. Anything else
is a published checkpoint: a converter, found through the entry-point group
`fdjax.checkpoint_converters`, turns it into fdjax's format once and keeps the result.
"""

import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

import fdjax
from fdjax.axes import Params, PyTree
from fdjax.checkpoint import files
from fdjax.checkpoint import io as checkpoint_io
from fdjax.checkpoint.metadata import Metadata, check_fit, config_hash, describe
from fdjax.contract.component import ParametricComponent

__all__ = [
    "Metadata",
    "check_fit",
    "config_hash",
    "describe",
    "is_intact",
    "load_params",
    "open_lazily",
    "param_shapes",
    "read_metadata",
    "restore",
    "save",
]

CONVERTERS = "fdjax.checkpoint_converters"
"""Entry-point group. An entry is called as `converter(component, source, sharding=…)`
and returns params, or None if it does not know the component's architecture."""

_METADATA = "fdjax.json"
_PARAMS = "params"


def save(
    path: str | os.PathLike,
    params: PyTree,
    *,
    component: ParametricComponent | None = None,
    architecture: str = "",
    config: Any = None,
    source: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    overwrite: bool = False,
) -> Metadata:
    """Writes parameters; they appear at `path` whole or not at all.

    Args:
        path: A directory to make (orbax), or a file that ends in `.safetensors`.
        params: Nested dict of arrays, or of `checkpoint_io.LazyArray`s, which are made
            one after the other.
        component: Gives architecture and config.
        architecture: Which network it is, without a component.
        config: Its config, or the JSON tree of one.
        source: What converted parameters come from; or a function that is called when
            all leaves have been written, and may still refuse them by raising.
        overwrite: Replace what is at `path`.

    Raises:
        FileExistsError: There is something at `path`.
        OSError: The disk is full.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if component is not None:
        architecture, config = component.architecture, component.config
    metadata = describe(params, architecture=architecture, config=config)
    checkpoint_io.check_free_space(path, metadata.num_bytes)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; remove it or choose another path.")
    with checkpoint_io.explain_full_disk(path):
        if path.suffix == ".safetensors":
            metadata = _save_file(path, params, metadata, source)
        else:
            with checkpoint_io.atomic_directory(path, overwrite=overwrite) as partial:
                checkpoint_io.write_orbax(partial / _PARAMS, params)
                metadata = dataclasses.replace(
                    metadata,
                    source=dict((source() if callable(source) else source) or {}),
                    files=checkpoint_io.file_lengths(partial),
                )
                (partial / _METADATA).write_text(metadata.to_json(), encoding="utf-8")
    return metadata


def _save_file(
    path: pathlib.Path, params: PyTree, metadata: Metadata, source: Any
) -> Metadata:
    flat = traverse_util.flatten_dict(params, sep="/")
    arrays = {
        name: leaf.read() if isinstance(leaf, checkpoint_io.LazyArray) else leaf
        for name, leaf in flat.items()
    }
    metadata = dataclasses.replace(
        metadata, source=dict((source() if callable(source) else source) or {})
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_output(path) as temporary:
        checkpoint_io.write_safetensors(
            temporary,
            {name: np.asarray(array) for name, array in arrays.items()},
            {"format": "fdjax", "fdjax": metadata.to_json()},
        )
    return metadata


def read_metadata(path: str | os.PathLike) -> Metadata | None:
    """The metadata of a checkpoint in fdjax's own format; None if it is none.

    Raises:
        ValueError: It is damaged, or of a newer version.
    """
    path = pathlib.Path(path).expanduser()
    try:
        if (path / _METADATA).is_file():
            return Metadata.from_json((path / _METADATA).read_text("utf-8"))
        if path.is_file():
            return _read_file_metadata(path)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, its metadata: {error}.") from None
    return None


def _read_file_metadata(path: pathlib.Path) -> Metadata | None:
    header = checkpoint_io.read_safetensors_header(path)
    stored = header.pop("__metadata__", {})
    if "fdjax" in stored:
        return Metadata.from_json(stored["fdjax"])
    if not any("/" in name for name in header):
        return None
    # Written by other means, with our paths as keys.
    return Metadata(
        architecture="",
        shapes={name: tuple(entry["shape"]) for name, entry in header.items()},
        dtypes={
            name: checkpoint_io.dtype_name(entry["dtype"])
            for name, entry in header.items()
        },
    )


def restore(
    path: str | os.PathLike,
    target_shapes: PyTree | None = None,
    *,
    component: ParametricComponent | None = None,
    dtype: Any = None,
    sharding: Any = None,
) -> Params:
    """Reads parameters in fdjax's own format, straight to the devices.

    Args:
        path: What `save` wrote.
        target_shapes: Tree of `jax.ShapeDtypeStruct`; arrays are cast to its dtypes.
            None: that of the component, or whatever is stored.
        component: Checked against what is stored: a mismatch names both.
        dtype: Type of all floating arrays, in place of that of `target_shapes`.
        sharding: One `jax.sharding.Sharding` for all, or a tree of them; None: the
            default device.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is damaged, or belongs to another architecture or config.
    """
    path = pathlib.Path(path).expanduser()
    metadata = _existing_metadata(path)
    if component is not None and target_shapes is None:
        target_shapes = param_shapes(component)
    if target_shapes is None:
        target_shapes = _stored_shapes(metadata)
    check_fit(path, metadata, target_shapes, component)
    target = _target(target_shapes, dtype, sharding)
    if path.is_dir():
        return _restore_directory(path, target, metadata.files)
    flat = checkpoint_io.read_safetensors(path)
    target = traverse_util.flatten_dict(target, sep="/")
    arrays = {
        name: jax.device_put(flat[name].astype(leaf.dtype), leaf.sharding)
        for name, leaf in target.items()
    }
    return traverse_util.unflatten_dict(arrays, sep="/")


def _restore_directory(
    path: pathlib.Path, target: PyTree, lengths: Mapping[str, int]
) -> Params:
    if damage := _damage(path, lengths):
        raise ValueError(
            f"{path} is damaged: {damage}; delete the directory, so that it is made "
            "again."
        )
    try:
        return checkpoint_io.read_orbax(path / _PARAMS, target)
    except MemoryError:
        raise
    except Exception as error:  # orbax and tensorstore have many for a damaged file
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise ValueError(
            f"{path} is damaged and cannot be restored ({reason}); delete it, so that "
            "it is made again."
        ) from error


def open_lazily(path: str | os.PathLike) -> tuple[Metadata, PyTree]:
    """Metadata and a tree of `LazyArray`s, each read to the host when it is asked for.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is damaged, or no checkpoint of fdjax.
    """
    path = pathlib.Path(path).expanduser()
    metadata = _existing_metadata(path)
    read: Callable[[str], np.ndarray]
    if path.is_dir():
        if damage := _damage(path, metadata.files):
            raise ValueError(f"{path} is damaged: {damage}.")
        shapes = traverse_util.flatten_dict(_stored_shapes(metadata), sep="/")
        reader = checkpoint_io.OrbaxReader(path / _PARAMS, shapes)
        read = reader.read
    else:
        read = checkpoint_io.read_safetensors(path).__getitem__
    leaves = {
        name: checkpoint_io.LazyArray(
            shape,
            jax.numpy.dtype(metadata.dtypes[name]),
            functools.partial(read, name),
        )
        for name, shape in metadata.shapes.items()
    }
    return metadata, traverse_util.unflatten_dict(leaves, sep="/")


def _existing_metadata(path: pathlib.Path) -> Metadata:
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    metadata = read_metadata(path)
    if metadata is None:
        raise ValueError(
            f"{path} is no complete checkpoint of fdjax: it has no {_METADATA}."
        )
    return metadata


def is_intact(path: str | os.PathLike) -> bool:
    """Whether there is a whole directory of fdjax's own format."""
    path = pathlib.Path(path).expanduser()
    try:
        metadata = read_metadata(path)
    except ValueError:
        return False
    return metadata is not None and not _damage(path, metadata.files)


def _damage(path: pathlib.Path, lengths: Mapping[str, int]) -> str:
    """What is wrong with the files of a directory; empty if nothing is."""
    found = checkpoint_io.file_lengths(path)
    for name, length in lengths.items():
        if found.get(name) != length:
            state = f"has {found[name]} bytes" if name in found else "is missing"
            return f"its file {name} {state}, must have {length} bytes"
    return ""


def _stored_shapes(metadata: Metadata) -> PyTree:
    flat = {
        name: jax.ShapeDtypeStruct(shape, jax.numpy.dtype(metadata.dtypes[name]))
        for name, shape in metadata.shapes.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def _target(shapes: PyTree, dtype: Any, sharding: Any) -> PyTree:
    """Adds dtype and sharding to a tree of shapes."""
    if sharding is None:
        device = getattr(jax.config, "jax_default_device", None)
        device = device or jax.local_devices()[0]
        if isinstance(device, str):
            device = jax.local_devices(backend=device)[0]
        sharding = jax.sharding.SingleDeviceSharding(device)
    if isinstance(sharding, jax.sharding.Sharding):
        sharding = jax.tree.map(lambda _: sharding, shapes)

    def make(leaf: Any, placed: Any) -> jax.ShapeDtypeStruct:
        floating = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        kind = dtype if dtype is not None and floating else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=placed)

    return jax.tree.map(make, shapes, sharding)


@functools.lru_cache(maxsize=16)
def param_shapes(component: ParametricComponent) -> PyTree:
    """`component.param_shapes()`, kept: tracing a large network takes seconds."""
    return component.param_shapes()


def load_params(component: ParametricComponent, *, sharding: Any = None) -> Params:
    """Parameters from what `component.config.checkpoint_path` names.

    Args:
        component: Has `architecture`, `param_shapes()` and a config.
        sharding: See `restore`.

    Returns:
        Params in the dtypes of `param_shapes()`, on the devices.

    Raises:
        ValueError: No checkpoint is named, or it does not fit.
        FileNotFoundError: It is missing, or cannot be downloaded.
    """
    name = type(component.config).__name__
    source = getattr(component.config, "checkpoint_path", None)
    if source is None:
        raise ValueError(
            f"{name} names no checkpoint: set its checkpoint_path to a file, a "
            "directory, a URL or hf://owner/repo/file, or ask for random weights."
        )
    path = files.local_path(source)
    if path.exists() and read_metadata(path) is not None:
        return restore(path, component=component, sharding=sharding)
    for entry in _converters():
        params = entry.load()(component, os.fspath(source), sharding=sharding)
        if params is not None:
            return params
    if not path.exists():
        raise FileNotFoundError(
            f"There is no checkpoint at {path} ({name}.checkpoint_path)."
        )
    raise ValueError(
        f"{path} is no checkpoint of fdjax, and no converter knows the architecture "
        f"{component.architecture!r} of {name}."
    )


def _converters() -> list[importlib.metadata.EntryPoint]:
    """The converters that are installed; in a clone, also those of its pyproject."""
    points = list(importlib.metadata.entry_points(group=CONVERTERS))
    path = pathlib.Path(fdjax.__file__).parent.parent / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return points
    if project.get("name") != "fdjax":
        return points
    known = {point.value for point in points}
    own = project.get("entry-points", {}).get(CONVERTERS, {})
    return points + [
        importlib.metadata.EntryPoint(name, value, CONVERTERS)
        for name, value in own.items()
        if value not in known
    ]
