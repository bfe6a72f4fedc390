"""Parameters on disk: orbax directories, safetensors files, and atomic directories."""

import contextlib
import errno
import inspect
import json
import math
import os
import pathlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fdjax.axes import PyTree

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock between processes
    fcntl = None  # type: ignore[assignment]

_IN_FLIGHT_BYTES = 256 << 20
# Leaves of a save that are in memory at once, besides the largest: reading the next
# one overlaps with writing this one.

_BATCH_BYTES = 64 << 20  # of neighbours that are read together

_RESTORE_GB = 16  # more than any single array, less than the hosts of large models

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}


def dtype_name(kind: str) -> str:
    """numpy's name of a safetensors type; the type itself if it has none."""
    return _DTYPES.get(kind, kind)


class LazyArray:
    """A leaf of a save that is made when it is written, one after the other.

    Args:
        shape: Sizes.
        dtype: Element type.
        read: Returns the values, `dtype[shape]`.
        release: Called when they have been written.

    Attributes:
        nbytes: Size of the values in bytes.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        read: Callable[[], np.ndarray],
        release: Callable[[], None] = lambda: None,
    ):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        self.read, self.release = read, release


def write_orbax(path: pathlib.Path, params: PyTree) -> None:
    """Writes a tree of arrays and `LazyArray`s; `path` must not exist."""
    import orbax.checkpoint as ocp

    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (LazyArray, _lazy_handler()),
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


def write_safetensors(
    path: pathlib.Path, flat: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes arrays by name to one file; not atomic by itself."""
    import safetensors.numpy

    known = set(_DTYPES.values())
    unknown = {str(array.dtype) for array in flat.values()} - known
    if unknown:
        raise ValueError(f"safetensors files hold {sorted(known)}, got {unknown}.")
    arrays = {name: np.ascontiguousarray(array) for name, array in flat.items()}
    safetensors.numpy.save_file(arrays, path, dict(metadata))


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file into memory.

    Raises:
        ValueError: The file is damaged.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # checks the header and the size of the file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or truncated: {error}.") from None
    header = read_safetensors_header(path)
    header.pop("__metadata__", None)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kind = jax.numpy.dtype(dtype_name(entry["dtype"]))
        flat = np.frombuffer(data[start + begin : start + end], kind)
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


def read_safetensors_header(path: pathlib.Path) -> dict[str, Any]:
    """The JSON header of a safetensors file; empty if it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(path.stat().st_size - 8, 100 << 20):
            return {}
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return {}
    return header if isinstance(header, dict) else {}


def file_lengths(directory: pathlib.Path) -> dict[str, int]:
    """Length in bytes of every file under `directory`, by its path inside."""
    return {
        file.relative_to(directory).as_posix(): file.stat().st_size
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


@contextlib.contextmanager
def atomic_directory(
    path: pathlib.Path, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Gives an empty directory beside `path`, renamed to `path` on success.

    A failure removes it. What a killed process left behind is removed by the next
    write to the same path.

    Raises:
        FileExistsError: `path` exists and `overwrite` is off.
    """
    path = path.absolute()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; remove it or choose another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    prefix = f".{path.name}.partial-{host}-"
    for stale in path.parent.glob(f".{path.name}.partial-*"):
        process = stale.name.removeprefix(prefix).partition("-")[0]
        if stale.name.startswith(prefix) and not _is_alive(process):
            shutil.rmtree(stale, ignore_errors=True)
    partial = path.with_name(f"{prefix}{os.getpid()}-{threading.get_ident()}")
    partial.mkdir()
    try:
        yield partial
        replaced = path.with_name(partial.name + "-replaced")
        if overwrite and path.exists():
            path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        _remove_tree(partial)


def _remove_tree(path: pathlib.Path) -> None:
    """Removes a directory, in which threads of a failed save may still write."""
    absent = not path.exists()
    for _ in range(0 if absent else 40):
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)
        if absent and not path.exists():
            return
        absent = not path.exists()


@contextlib.contextmanager
def file_lock(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock that other processes wait for; the file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_free_space(path: pathlib.Path, num_bytes: int) -> None:
    """Checks that the disk of `path` has room for `num_bytes`.

    Raises:
        OSError: It has not; names the disk, what is needed and what is free.
    """
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < num_bytes:
        raise OSError(
            errno.ENOSPC,
            f"the disk of {path} is too full: {num_bytes / 1e9:.2f} GB are needed, "
            f"{free / 1e9:.2f} GB are free; make room, or choose another place",
        )


@contextlib.contextmanager
def explain_full_disk(path: pathlib.Path) -> Iterator[None]:
    """Turns the many errors of a full disk into one OSError that says so."""
    try:
        yield
    except Exception as error:
        text = f"{error}".lower()
        full = isinstance(error, OSError) and error.errno in _FULL
        if full or any(sign in text for sign in _FULL_SIGNS):
            raise OSError(
                errno.ENOSPC,
                f"the disk filled up while {path} was written, nothing of it was kept; "
                "make room, or choose another place",
            ) from error
        raise


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_SIGNS = ("no space left on device", "disk quota exceeded", "file too large")


def _is_alive(process: str) -> bool:
    """Whether a process id, written in decimal, is running on this host."""
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _accepted(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Those options that a function of this orbax version has."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def _lazy_handler() -> Any:
    """Writes `LazyArray`s as numpy arrays, a few at a time."""
    from orbax.checkpoint import type_handlers

    class LazyHandler(type_handlers.NumpyHandler):
        """Reads, writes and frees the leaves in order."""

        def __init__(self):
            # A copy guards against changes during the write; nobody else has these.
            super().__init__(
                **_accepted(
                    type_handlers.NumpyHandler.__init__, deepcopy_host_arrays=False
                )
            )

        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
            from orbax.checkpoint import SaveArgs

            pending: list[tuple[LazyArray, Any]] = []
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


def _complete(value: LazyArray, futures: Any) -> None:
    for future in futures:
        future.result()
    value.release()
