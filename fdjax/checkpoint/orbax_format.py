"""Parameters as an orbax directory: written and read leaf by leaf."""

import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fdjax.axes import PyTree
from fdjax.checkpoint.tensors import LazyTensor

_IN_FLIGHT_BYTES = 256 << 20
# Leaves of a save that are in memory at once, besides the largest: reading the next
# one overlaps with writing this one.

_BATCH_BYTES = 64 << 20  # of neighbours that are read together

_RESTORE_GB = 16  # more than any single array, less than the hosts of large models


def write_orbax(path: pathlib.Path, params: PyTree) -> None:
    """Writes a tree of arrays and `LazyTensor`s; `path` must not exist."""
    import orbax.checkpoint as ocp

    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (LazyTensor, _lazy_handler()),
        (np.ndarray, handlers.NumpyHandler()),
        (jax.Array, handlers.ArrayHandler()),
    )
    # Weights hardly compress, and reading them back is what users wait for.
    options = _accepted(ocp.PyTreeCheckpointHandler.__init__, use_compression=False)
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry, **options)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path.absolute(), ocp.args.PyTreeSave(params))


def read_orbax(path: pathlib.Path, target: PyTree) -> PyTree:
    """Reads the arrays of `target` (structs with shape, dtype, sharding) to devices."""
    import orbax.checkpoint as ocp

    arguments = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding, dtype=leaf.dtype),
        target,
    )
    options = _accepted(
        ocp.PyTreeCheckpointHandler.__init__, restore_concurrent_gb=_RESTORE_GB
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        return checkpointer.restore(
            path.absolute(),
            ocp.args.PyTreeRestore(item=target, restore_args=arguments),
        )


class OrbaxReader:
    """Reads single arrays of an orbax directory to the host.

    Args:
        path: What `write_orbax` wrote.
        leaves: Shapes and dtypes by path, levels joined by slashes. Neighbours are
            read together, as asking for one takes 16 ms whatever its size.
    """

    def __init__(self, path: pathlib.Path, leaves: Mapping[str, jax.ShapeDtypeStruct]):
        import orbax.checkpoint as ocp

        self._path, self._leaves = path.absolute(), leaves
        self._names = list(leaves)
        self._batch: dict[str, np.ndarray] = {}
        self._checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())

    def read(self, name: str) -> np.ndarray:
        """One array; the last few stay in memory."""
        if name not in self._batch:
            self._batch = {}
            self._batch = self._read_batch(name)
        return self._batch[name]

    def _read_batch(self, first: str) -> dict[str, np.ndarray]:
        import orbax.checkpoint as ocp
        from flax import traverse_util

        names, size = [first], 0
        for name in self._names[self._names.index(first) + 1 :]:
            leaf = self._leaves[name]
            size += leaf.size * leaf.dtype.itemsize
            if size > _BATCH_BYTES:
                break
            names.append(name)
        arguments = {
            name: ocp.RestoreArgs(
                restore_type=np.ndarray, dtype=self._leaves[name].dtype
            )
            for name in names
        }
        restored = self._checkpointer.restore(
            self._path,
            ocp.args.PyTreeRestore(
                item=traverse_util.unflatten_dict(
                    {name: self._leaves[name] for name in names}, sep="/"
                ),
                restore_args=traverse_util.unflatten_dict(arguments, sep="/"),
                partial_restore=True,
            ),
        )
        return traverse_util.flatten_dict(restored, sep="/")


def _accepted(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those options that a function of this orbax version has."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def _lazy_handler() -> Any:
    """Writes `LazyTensor`s as numpy arrays, a few at a time."""
    from orbax.checkpoint import type_handlers

    class LazyHandler(type_handlers.NumpyHandler):
        """Reads, writes and frees the leaves in order."""

        def __init__(self) -> None:
            # A copy guards against changes during the write; nobody else has these.
            super().__init__(
                **_accepted(
                    type_handlers.NumpyHandler.__init__, deepcopy_host_arrays=False
                )
            )

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
            from orbax.checkpoint import SaveArgs

            pending: list[tuple[LazyTensor, Any]] = []
            args = args or [SaveArgs()] * len(values)
            for value, info, arg in zip(values, infos, args, strict=True):
                while pending and (
                    sum(other.nbytes for other, _ in pending) + value.nbytes
                    > _IN_FLIGHT_BYTES
                ):
                    _complete(*pending.pop(0))
                array = np.ascontiguousarray(value.read())
                written = await super().serialize([array], [info], [arg])
                pending.append((value, written))
            for value, written in pending:
                _complete(value, written)
            return []

    return LazyHandler()


def _complete(value: LazyTensor, futures: Any) -> None:
    for future in futures:
        future.result()
    value.release()
