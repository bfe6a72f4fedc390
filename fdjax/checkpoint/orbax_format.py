"""Parameters as an orbax directory: written and read leaf by leaf."""

import contextlib
import inspect
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
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

_ODD = re.compile("[][*?\\\\\ud800-\udfff]")
# Letters that mean something else to orbax, which looks for files by patterns, and to
# tensorstore, which takes a backslash for a slash and wants UTF-8.


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
    with _plain(path) as plain, ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(plain, ocp.args.PyTreeSave(params))


def read_back(path: pathlib.Path, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Checks that a directory holds these arrays, and reads the smallest of them.

    A path or a format that cannot be read shows in any array; single values that the
    disk loses are its own to report. Names, shapes and types take a millisecond an
    array, values as long as writing did.

    Raises:
        ValueError: It holds others; other errors of orbax, if it cannot be read.
    """
    from flax import traverse_util

    with _plain(path) as plain, _reader() as checkpointer:
        tree = checkpointer.metadata(plain)
        tree = getattr(getattr(tree, "item_metadata", tree), "tree", tree)
    flat = traverse_util.flatten_dict(tree, sep="/")
    found = {name: (tuple(a.shape), np.dtype(a.dtype)) for name, a in flat.items()}
    wanted = {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
    if found != wanted:
        wrong = sorted(set(found.items()) ^ set(wanted.items()))
        raise ValueError(f"{len(wrong)} arrays differ, such as {wrong[0][0]}")
    if leaves:
        name = min(leaves, key=lambda name: leaves[name].size)
        array = OrbaxReader(path, {name: leaves[name]}).read(name)
        if (array.shape, array.dtype) != wanted[name]:
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")


def _reader(**options: Any) -> Any:
    import orbax.checkpoint as ocp

    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))


@contextlib.contextmanager
def _plain(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to the same directory without odd letters: by a link, if need be."""
    path = path.absolute()
    if not _ODD.search(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="fdjax-") as folder:
        link = pathlib.Path(folder) / "parent"
        link.symlink_to(path.parent, target_is_directory=True)
        yield link / path.name


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
    with _plain(path) as plain, _reader(**options) as checkpointer:
        return checkpointer.restore(
            plain,
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
        self._path, self._leaves = path.absolute(), leaves
        self._names = list(leaves)
        self._batch: dict[str, np.ndarray] = {}

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
        item = {name: self._leaves[name] for name in names}
        with _plain(self._path) as plain, _reader() as checkpointer:
            restored = checkpointer.restore(
                plain,
                ocp.args.PyTreeRestore(
                    item=traverse_util.unflatten_dict(item, sep="/"),
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
