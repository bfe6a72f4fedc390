"""Saves and restores the parameters of components.

fdjax's own formats are a directory, `fdjax.json` beside an orbax tree `params/`, and a
safetensors file whose keys are paths such as `blocks_0/ffn/fc1/kernel`. Anything else
is a published checkpoint: see `load`.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from fdjax.axes import Array, Params, PyTree
from fdjax.checkpoint import (
    files,
    orbax_format,
    placement,
    safetensors_format,
    temporary,
)
from fdjax.checkpoint.metadata import Metadata, check_fit, check_label, describe
from fdjax.checkpoint.tensors import LazyTensor, as_lazy
from fdjax.contract.component import ParametricComponent
from fdjax.sharding import Placement

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
    """Writes parameters; they appear at `path` whole, read back, or not at all.

    Args:
        path: A directory to make (orbax), or a file that ends in `.safetensors`.
        params: Nested dict of arrays, or of `LazyTensor`s, which are made one after the
            other.
        component: Gives architecture and config; `params` must be its own.
        architecture: Which network it is, without a component.
        config: Its config, or the JSON tree of one.
        source: What converted parameters come from; or a function that is called when
            all leaves have been written, and may still refuse them by raising.
        overwrite: Replace what is at `path`.

    Raises:
        FileExistsError: There is something at `path`.
        OSError: The disk is full.
        ValueError: The parameters are not those of the component, or what was written
            cannot be read back.
    """
    path = pathlib.Path(os.path.expanduser(path)).absolute()
    temporary.settle(path)
    if component is not None:
        architecture, config = component.architecture, component.config
    metadata = describe(params, architecture=architecture, config=config)
    if component is not None:
        check_label(metadata, params, component, param_shapes(component))
    files.check_free_space(path, metadata.num_bytes)
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists; remove it or choose another path.")
    with files.explain_full_disk(path):
        if path.suffix == ".safetensors":
            metadata = _save_file(path, params, metadata, source)
        else:
            with files.atomic_directory(path, overwrite=overwrite) as partial:
                orbax_format.write_orbax(partial / _PARAMS, params)
                metadata = dataclasses.replace(
                    metadata,
                    source=dict((source() if callable(source) else source) or {}),
                    files=files.file_lengths(partial),
                )
                (partial / _METADATA).write_text(metadata.to_json(), encoding="utf-8")
                _read_back(partial, metadata, path)
    return metadata


def _save_file(
    path: pathlib.Path, params: PyTree, metadata: Metadata, source: Any
) -> Metadata:
    flat = traverse_util.flatten_dict(params, sep="/")
    if callable(source):  # it speaks when all is read, and stands before the values
        flat = {name: as_lazy(as_lazy(leaf).read()) for name, leaf in flat.items()}
        source = source()
    metadata = dataclasses.replace(metadata, source=dict(source or {}))
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_output(path) as place:
        safetensors_format.write_safetensors(
            place, flat, {"format": "fdjax", "fdjax": metadata.to_json()}
        )
        _read_back(place, metadata, path)
    return metadata


def _read_back(path: pathlib.Path, metadata: Metadata, target: pathlib.Path) -> None:
    """Checks that what is at `path`, later at `target`, is what was to be written.

    Raises:
        ValueError: It cannot be read, or is something else.
    """
    leaves = traverse_util.flatten_dict(_stored_shapes(metadata), sep="/")
    try:
        if path.is_dir():
            orbax_format.read_back(path / _PARAMS, leaves)
        else:
            safetensors_format.read_back(path, leaves)
        found = read_metadata(path)
        if found is None or found.to_json() != metadata.to_json():
            raise ValueError("the metadata differs")
    except MemoryError:
        raise
    except Exception as error:  # orbax and tensorstore have many
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise ValueError(
            f"{target} cannot be read back as it was written, nothing was kept "
            f"({reason}); choose another path"
        ) from error


def read_metadata(path: str | os.PathLike) -> Metadata | None:
    """The metadata of a checkpoint in fdjax's own format; None if it is none.

    Raises:
        ValueError: It is damaged, or of a newer version.
    """
    path = pathlib.Path(os.path.expanduser(path))
    temporary.settle(path)
    try:
        if (path / _METADATA).is_file():
            return Metadata.from_json((path / _METADATA).read_text("utf-8"))
        if path.is_file():
            return _read_file_metadata(path)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, its metadata: {error}.") from None
    return None


def _read_file_metadata(path: pathlib.Path) -> Metadata | None:
    header = safetensors_format.read_safetensors_header(path)
    stored = header.pop("__metadata__", {})
    if "fdjax" in stored:
        metadata = Metadata.from_json(stored["fdjax"])
        if metadata.shapes != {k: tuple(e["shape"]) for k, e in header.items()}:
            raise ValueError("its shapes are not those of its tensors")
        return metadata
    if not any("/" in name for name in header):
        return None
    # Written by other means, with our paths as keys.
    for name, entry in header.items():
        if entry["dtype"] not in safetensors_format.DTYPES:
            raise ValueError(f"{name[:80]} has the unknown type {entry['dtype'][:80]}")
    return Metadata(
        architecture="",
        shapes={name: tuple(entry["shape"]) for name, entry in header.items()},
        dtypes={
            name: str(safetensors_format.DTYPES[entry["dtype"]])
            for name, entry in header.items()
        },
    )


def restore(
    path: str | os.PathLike,
    target_shapes: PyTree | None = None,
    *,
    component: ParametricComponent | None = None,
    dtype: Any = None,
    sharding: Placement | None = None,
) -> Params:
    """Reads parameters in fdjax's own format, straight to the devices.

    Args:
        path: What `save` wrote.
        target_shapes: Tree of `jax.ShapeDtypeStruct`; arrays are cast to its dtypes.
            None: that of the component, or whatever is stored.
        component: Checked against what is stored: a mismatch names both.
        dtype: Type of all floating arrays, in place of that of `target_shapes`.
        sharding: One `jax.sharding.Sharding` for all, a dict of them by name, or
            None, the default device: see `fdjax.checkpoint.placement`.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is damaged, or belongs to another architecture or config.
    """
    path = pathlib.Path(os.path.expanduser(path))
    while True:
        temporary.settle(path)
        before = _place(path)
        try:
            params = _restore(path, target_shapes, component, dtype, sharding)
        except (ValueError, OSError):
            if _place(path) == before:
                raise
        else:
            if _place(path) == before:
                return params
        # It was replaced meanwhile: some files were read of the old one, some of the
        # new one.


def _place(path: pathlib.Path) -> tuple[int, int] | None:
    """Tells what is at a path from what is put there later."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _restore(
    path: pathlib.Path,
    target_shapes: PyTree | None,
    component: ParametricComponent | None,
    dtype: Any,
    sharding: Placement | None,
) -> Params:
    metadata = _existing_metadata(path)
    if component is not None and target_shapes is None:
        target_shapes = param_shapes(component)
    if target_shapes is None:
        target_shapes = _stored_shapes(metadata)
    check_fit(path, metadata, target_shapes, component)
    target = _target(target_shapes, dtype, sharding)
    if path.is_dir():
        return _restore_directory(path, target, metadata.files)
    tensors, _ = safetensors_format.read_safetensors(path)
    target = traverse_util.flatten_dict(target, sep="/")
    arrays = {name: _read_leaf(tensors[name], leaf) for name, leaf in target.items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


def _read_leaf(tensor: LazyTensor, leaf: jax.ShapeDtypeStruct) -> Array:
    """Reads, places and casts one tensor."""
    array = placement.to_device(tensor.read(), leaf.sharding).astype(leaf.dtype)
    array = jax.block_until_ready(placement.spread(array, leaf.sharding))
    tensor.release()
    return array


def _restore_directory(
    path: pathlib.Path, target: PyTree, lengths: Mapping[str, int]
) -> Params:
    if damage := _damage(path, lengths):
        raise ValueError(
            f"{path} is damaged: {damage}; delete the directory, so that it is made "
            "again."
        )
    try:
        return orbax_format.read_orbax(path / _PARAMS, target)
    except MemoryError:
        raise
    except Exception as error:  # orbax and tensorstore have many for a damaged file
        reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
        raise ValueError(
            f"{path} is damaged and cannot be restored ({reason}); delete it, so that "
            "it is made again."
        ) from error


def open_lazily(path: str | os.PathLike) -> tuple[Metadata, PyTree]:
    """Metadata and a tree of `LazyTensor`s, each read to the host when it is asked for.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is damaged, or no checkpoint of fdjax.
    """
    path = pathlib.Path(os.path.expanduser(path))
    metadata = _existing_metadata(path)
    if path.is_dir():
        if damage := _damage(path, metadata.files):
            raise ValueError(f"{path} is damaged: {damage}.")
        shapes = traverse_util.flatten_dict(_stored_shapes(metadata), sep="/")
        reader = orbax_format.OrbaxReader(path / _PARAMS, shapes)
        leaves = {
            name: LazyTensor(
                leaf.shape, np.dtype(leaf.dtype), functools.partial(reader.read, name)
            )
            for name, leaf in shapes.items()
        }
    else:
        leaves, _ = safetensors_format.read_safetensors(path)
    return metadata, traverse_util.unflatten_dict(leaves, sep="/")


def _existing_metadata(path: pathlib.Path) -> Metadata:
    temporary.settle(path)
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
    path = pathlib.Path(os.path.expanduser(path))
    try:
        metadata = read_metadata(path)
    except ValueError:
        return False
    return metadata is not None and not _damage(path, metadata.files)


def _damage(path: pathlib.Path, lengths: Mapping[str, int]) -> str:
    """What is wrong with the files of a directory; empty if nothing is."""
    found = files.file_lengths(path)
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


def _target(shapes: PyTree, dtype: Any, sharding: Placement) -> PyTree:
    """Adds dtype and sharding to a tree of shapes."""

    def make(leaf: Any, placed: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        floating = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        kind = dtype if dtype is not None and floating else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=placed)

    return jax.tree.map(make, shapes, placement.leaf_shardings(shapes, sharding))


@functools.lru_cache(maxsize=16)
def param_shapes(component: ParametricComponent) -> PyTree:
    """`component.param_shapes()`, kept: tracing a large network takes seconds."""
    return component.param_shapes()
