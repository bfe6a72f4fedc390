"""Writes torch's zip format by hand, for tests that must not need torch."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}


class Global:
    """Pickles as the name `module.name`, whatever that is."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self):  # makes it acceptable as the callable of a reduce
        raise NotImplementedError


class Call:
    """Pickles as a call of a `Global`."""

    def __init__(self, function: Global, *args: Any):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Reference:
    """Pickles as a persistent id."""

    def __init__(self, *pid: Any):
        self.pid = pid


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """The Python pickler, taught to write any global."""

    def persistent_id(self, value):
        return value.pid if isinstance(value, Reference) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Global):
            self.write(f"c{value.module}\n{value.name}\n".encode())
            return None
        return super().save(value, save_persistent_id)


def dumps(value: Any) -> bytes:
    """Pickles with protocol 2, as torch does."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue()


def storage(key: str, array: np.ndarray, count: int | None = None) -> Reference:
    """The persistent id of a storage that holds `array`."""
    kind = Global("torch", _STORAGES[array.dtype])
    return Reference(
        "storage", kind, key, "cpu", array.size if count is None else count
    )


def tensor(reference: Reference, shape, stride=None, offset=0) -> Call:
    """A tensor as torch pickles it."""
    if stride is None:
        stride = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    hooks = Call(Global("collections", "OrderedDict"))
    return Call(rebuild, reference, offset, tuple(shape), stride, False, hooks)


def write(
    path: Path, data: bytes, storages: dict[str, np.ndarray] | None = None
) -> Path:
    """Writes `data.pkl` and the storages as a zip archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, array in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def save(path: Path, content: Any) -> Path:
    """`torch.save` for nested dicts of arrays, one storage per array."""
    storages: dict[str, np.ndarray] = {}

    def replace(value):
        if isinstance(value, dict):
            return {key: replace(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [replace(inner) for inner in value]
        if isinstance(value, np.ndarray):
            key = str(len(storages))
            storages[key] = value
            return tensor(storage(key, value), value.shape)
        return value

    return write(path, dumps(replace(content)), storages)
