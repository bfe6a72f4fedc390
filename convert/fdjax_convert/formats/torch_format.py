"""Reads what `torch.save` writes, without torch and without running anything.

The zip format of torch >= 1.6 (torch/serialization.py, `_save`): `<name>/data.pkl` is
a pickle in which storages are persistent ids `("storage", type, key, device, count)`,
and `<name>/data/<key>` holds the bytes of each. The pickle may name only what stands
in `_ALLOWED`; every name is answered by a stand-in of this module, so no code of the
file's choice is ever imported or called. Storages are mapped, not read.
"""

import _compat_pickle
import codecs
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.mapped import MappedFile, c_strides
from fdjax.checkpoint.tensors import LazyTensor

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of the format before 1.6: MAGIC_NUMBER of torch/serialization.py."""

RESAVE = (
    "python -c \"import torch; torch.save(torch.load('{path}', map_location='cpu', "
    "weights_only=True), '{new}')\""
)

_MAX_PICKLE = 1 << 28  # bytes; structure and names only, real ones stay below 1 MB

_STORAGES = {
    "BoolStorage": np.bool_,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "ShortStorage": np.int16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
}

_DTYPES = {
    "bool": np.bool_,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}


class _Name:
    """A stand-in for a name in the pickle: nothing can be done with it but call it."""

    __slots__ = ("_call", "_name", "dtype")
    _call: Callable[..., Any] | None
    _name: str
    dtype: np.dtype | None

    def __init__(
        self,
        name: str,
        call: Callable[..., Any] | None = None,
        dtype: np.dtype | None = None,
    ):
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_call", call)
        object.__setattr__(self, "dtype", dtype)

    def __setattr__(self, attribute: str, value: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"sets an attribute of {self._name}")

    def __call__(self, *args: Any) -> Any:
        if self._call is None:
            raise pickle.UnpicklingError(f"calls {self._name}, which is a type only")
        return self._call(*args)


class _Dict(dict):
    """Stands for OrderedDict: its attributes (`_metadata` of a state dict) are lost."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        del state


class _Storage:
    """A storage: where its bytes are."""

    __slots__ = ("dtype", "file", "length", "start")

    def __init__(self, file: MappedFile, start: int, length: int, dtype: np.dtype):
        self.file, self.start, self.length, self.dtype = file, start, length, dtype


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
) -> LazyTensor:
    """`torch._utils._rebuild_tensor` and `_v2`: a strided view of a storage."""
    # _v2: requires_grad, backward hooks, metadata. A negated or conjugated tensor
    # keeps the plain values in its storage and a flag in the metadata.
    if len(rest) > 2 and rest[2]:
        raise pickle.UnpicklingError(f"holds a tensor with the flags {rest[2]}")
    return _view(storage, storage, offset, size, stride)


def _rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> LazyTensor:
    """`torch._utils._rebuild_tensor_v3`: the view has a dtype of its own."""
    if metadata:
        raise pickle.UnpicklingError(f"holds a tensor with the flags {metadata}")
    return _view(storage, dtype, offset, size, stride)


def _view(storage: Any, typed: Any, offset: Any, size: Any, stride: Any) -> LazyTensor:
    dtype = getattr(typed, "dtype", None)
    numbers = (offset, *size, *stride)
    if (
        not isinstance(storage, _Storage)
        or not isinstance(dtype, np.dtype)
        or len(size) != len(stride)
        or any(type(number) is not int or number < 0 for number in numbers)
    ):
        raise pickle.UnpicklingError(f"holds a tensor of {size=}, {stride=}, {offset=}")
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    end = 0 if 0 in size else (offset + last + 1) * dtype.itemsize
    if end > storage.length:
        raise pickle.UnpicklingError(
            f"holds a tensor that ends at byte {end} of a storage of {storage.length}"
        )
    contiguous = tuple(stride) == c_strides(size)
    start = storage.start + (0 if 0 in size else offset * dtype.itemsize)
    return storage.file.tensor(start, dtype, size, None if contiguous else stride)


def _first(value: Any, *rest: Any) -> Any:
    """`torch._utils._rebuild_parameter` and its kin: the tensor itself."""
    return value


def _rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with Python attributes."""
    if not isinstance(function, _Name):
        raise pickle.UnpicklingError(f"calls {function!r}")
    return function(*args)


def _ordered_dict(*items: Any) -> _Dict:
    return _Dict(*items)


def _encode(text: Any, encoding: Any) -> bytes:
    """`_codecs.encode`: how protocol 2 spells bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "ascii", "utf-8"):
        raise pickle.UnpicklingError(f"encodes {type(text).__name__} as {encoding}")
    return codecs.encode(text, encoding)


_CALLS: dict[str, Callable[..., Any] | None] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": lambda sizes: tuple(sizes),
    "torch.device": lambda *names: ":".join(map(str, names)),
    "torch.Tensor": None,
    "torch.nn.parameter.Parameter": None,
    "torch.nn.parameter.Buffer": None,
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _encode,
    "builtins.set": lambda items=(): set(items),
    "builtins.complex": lambda real, imag: complex(real, imag),
}

_ALLOWED = {name: _Name(name, call) for name, call in _CALLS.items()} | {
    name: _Name(name, dtype=np.dtype(dtype))
    for name, dtype in (
        *((f"torch.{name}", dtype) for name, dtype in _DTYPES.items()),
        *((f"torch.{name}", dtype) for name, dtype in _STORAGES.items()),
        ("torch.storage.UntypedStorage", np.uint8),
    )
}


class _Unpickler(pickle.Unpickler):
    """Unpickles with `_ALLOWED` in place of every import."""

    def __init__(self, data: bytes, path: Path, storages: Callable[..., _Storage]):
        super().__init__(io.BytesIO(data))
        self._path, self._storages = path, storages

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, torch's default, spells names as Python 2 did.
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise CheckpointError(
                f"{self._path} is refused: its pickle asks for {full}, and a "
                "checkpoint may hold tensors and containers only. Nothing of it was "
                "run. If you trust its author, save its state_dict() again with torch"
            )
        return _ALLOWED[full]

    def persistent_load(self, pid: Any) -> _Storage:
        return self._storages(pid)


def read_torch(path: Path) -> Any:
    """Reads the structure of a file of `torch.save`.

    Returns:
        The saved object: dicts, lists, numbers, strings, with a `LazyTensor` in place
        of every tensor.

    Raises:
        CheckpointError: If the file is truncated or corrupt, is of the pre-1.6 format,
            or asks for anything but tensors and containers.
    """
    file = MappedFile(path)
    if file.bytes(0, len(LEGACY_MAGIC)) == LEGACY_MAGIC:
        new = path.with_name(path.stem + "-new" + path.suffix)
        raise CheckpointError(
            f"{path} has the format of torch before 1.6, which cannot be read safely; "
            f"save it again with\n  {RESAVE.format(path=path, new=new)}"
        )
    entries, root = _entries(file)
    storages: dict[tuple[str, np.dtype], _Storage] = {}

    def storage(pid: Any) -> _Storage:
        match pid:
            case ("storage", _Name(dtype=np.dtype() as dtype), str(key), str(), count):
                pass
            case _:
                raise pickle.UnpicklingError(f"holds the unknown reference {pid!r}")
        if type(count) is not int or count < 0:
            raise pickle.UnpicklingError(f"holds a storage of {count!r} elements")
        if (key, dtype) not in storages:
            length = count * dtype.itemsize
            start = _locate(file, entries, f"{root}/data/{key}", length)
            storages[key, dtype] = _Storage(file, start, length, dtype)
        return storages[key, dtype]

    if any(name.startswith(f"{root}/code/") for name in entries):
        raise CheckpointError(
            f"{path} is a TorchScript program (torch.jit.save), not a checkpoint"
        )
    order = _content(file, entries, f"{root}/byteorder", 16) or b"little"
    if order != b"little":
        raise CheckpointError(f"{path} must be little-endian, is {order!r}")
    data = _content(file, entries, f"{root}/data.pkl", _MAX_PICKLE)
    try:
        return _Unpickler(data, path, storage).load()
    except (CheckpointError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: its pickle {error}") from None
    except Exception as error:  # a damaged pickle fails in many ways
        raise CheckpointError(
            f"{path} is corrupt, its pickle cannot be read ({error!r}): fetch it again"
        ) from None


def _entries(file: MappedFile) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The entries of the archive by name, and the folder that holds them all."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file.path} is truncated or corrupt: it starts as a torch checkpoint, "
            f"but its table of contents (at byte {file.size}) is missing or damaged "
            f"({error}); the download did not finish, fetch the file again"
        ) from None
    roots = [
        name[: -len("/data.pkl")] for name in entries if name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise CheckpointError(
            f"{file.path} is a zip archive, but not one of torch.save: it must hold "
            f"one data.pkl, holds {len(roots)}"
        )
    return entries, roots[0]


def _locate(
    file: MappedFile, entries: dict[str, zipfile.ZipInfo], name: str, length: int
) -> int:
    """Byte at which an entry's content starts; it must be `length` bytes, stored."""
    entry = entries.get(name)
    if entry is None or entry.file_size != length:
        found = "is missing" if entry is None else f"has {entry.file_size} bytes"
        raise CheckpointError(
            f"{file.path} is corrupt: its entry {name} {found}, must have {length}"
        )
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise CheckpointError(
            f"{file.path} was packed again by another program: {name} is compressed or "
            "encrypted; use the file as torch.save wrote it"
        )
    # The local header repeats the name and has an extra field of its own length.
    header = file.bytes(entry.header_offset, 30)
    if header[:4] != b"PK\x03\x04":
        raise CheckpointError(
            f"{file.path} is corrupt: no header of {name} in its place"
        )
    names = int.from_bytes(header[26:28], "little")
    extra = int.from_bytes(header[28:30], "little")
    return entry.header_offset + 30 + names + extra


def _content(
    file: MappedFile, entries: dict[str, zipfile.ZipInfo], name: str, limit: int
) -> bytes:
    """The bytes of a small entry; none if there is no such entry."""
    if name not in entries:
        return b""
    length = entries[name].file_size
    if length > limit:
        raise CheckpointError(
            f"{file.path}: {name} has {length} bytes, at most {limit}"
        )
    return file.bytes(_locate(file, entries, name, length), length)
