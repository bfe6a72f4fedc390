"""Writes `.safetensors` and torch's zip format, tensor by tensor, without torch."""

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fdjax.checkpoint import files, safetensors_format
from fdjax.checkpoint.mapped import c_strides
from fdjax.checkpoint.tensors import LazyTensor, contiguous
from fdjax_convert.formats.torch_format import read_torch

_ALIGNMENT = 64  # bytes; torch aligns storages alike, so that it can map the file

_STORAGES = {
    np.dtype(np.bool_): "BoolStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
}


def _ignore(num_bytes: int) -> None:
    pass


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    wrapper: Sequence[str] = (),
    prefix: str = "",
    progress: Callable[[int], None] = _ignore,
) -> None:
    """Writes tensors by key; the file appears whole or not at all.

    Args:
        path: Ends in `.safetensors`, `.pt`, `.pth` or `.ckpt`, which is the format.
        tensors: Read one after the other.
        wrapper: Names of nested dicts around the keys, outermost first; the torch
            format only.
        prefix: Put in front of every key.
        progress: Called with the bytes of each tensor when it has been written.

    Raises:
        ValueError: The format cannot hold this.
    """
    named = {prefix + key: tensor for key, tensor in tensors.items()}
    safe = path.suffix == ".safetensors"
    if safe and wrapper:
        raise ValueError(
            f"{path}: safetensors files have no levels such as {'.'.join(wrapper)}; "
            "write a .pt file, or leave the wrapper out"
        )
    if not safe and path.suffix not in (".pt", ".pth", ".ckpt"):
        raise ValueError(
            f"{path} must end in .safetensors, .pt, .pth or .ckpt: that is its format"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_output(path) as temporary:
        if safe:
            metadata = {"format": "pt"}
            safetensors_format.write_safetensors(temporary, named, metadata, progress)
        else:
            _write_torch(temporary, named, wrapper, progress)
        _read_back(temporary, named, wrapper, path)


def _read_back(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    wrapper: Sequence[str],
    target: Path,
) -> None:
    """Checks keys, shapes and types of what was written, by its headers."""
    if path.suffix == ".safetensors":
        safetensors_format.read_back(path, tensors)
        return
    content = read_torch(path)
    for name in wrapper:
        content = content[name]
    found = {key: (one.shape, one.dtype) for key, one in content.items()}
    if found != {key: (one.shape, one.dtype) for key, one in tensors.items()}:
        raise ValueError(f"{target} cannot be read back as it was written")


def _write_torch(
    path: Path,
    tensors: Mapping[str, LazyTensor],
    wrapper: Sequence[str],
    progress: Callable[[int], None],
) -> None:
    root = "archive"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", _pickle(tensors, wrapper))
        archive.writestr(f"{root}/byteorder", sys.byteorder)
        for number, tensor in enumerate(tensors.values()):
            entry = zipfile.ZipInfo(f"{root}/data/{number}")
            # Local header: 30 bytes, the name, 20 of zip64, then this padding.
            assert archive.fp is not None
            start = archive.fp.tell() + 30 + len(entry.filename) + 20 + 4
            padding = -start % _ALIGNMENT
            entry.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            with archive.open(entry, "w", force_zip64=True) as file:
                _write_values(file, tensor)
            progress(tensor.nbytes)
        archive.writestr(f"{root}/version", "3\n")


def _write_values(file: Any, tensor: LazyTensor) -> None:
    array = contiguous(tensor.read())
    file.write(array.reshape(-1).view(np.uint8).data)
    tensor.release()


def _pickle(tensors: Mapping[str, LazyTensor], wrapper: Sequence[str]) -> bytes:
    """The pickle of nested dicts of tensors, as torch writes it.

    The opcodes are written here, since a pickler would have to import torch for the
    names. Numbers, strings and tuples are left to the standard one.
    """
    out = io.BytesIO()
    out.write(pickle.PROTO + b"\x02")
    for name in wrapper:
        out.write(pickle.EMPTY_DICT + _plain(name))
    out.write(pickle.EMPTY_DICT + pickle.MARK)
    for number, (key, tensor) in enumerate(tensors.items()):
        if tensor.dtype not in _STORAGES:
            raise ValueError(f"{key}: this writer has no storage for {tensor.dtype}")
        out.write(_plain(key))
        out.write(b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK)
        out.write(pickle.MARK + _plain("storage"))
        out.write(b"ctorch\n" + _STORAGES[tensor.dtype].encode() + b"\n")
        out.write(_plain(str(number)) + _plain("cpu") + _plain(tensor.size))
        out.write(pickle.TUPLE + pickle.BINPERSID)
        shape = tuple(int(size) for size in tensor.shape)
        out.write(_plain(0) + _plain(shape) + _plain(c_strides(shape)) + _plain(False))
        out.write(b"ccollections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE)
        out.write(pickle.TUPLE + pickle.REDUCE)
    out.write(pickle.SETITEMS + pickle.SETITEM * len(wrapper) + pickle.STOP)
    return out.getvalue()


def _plain(value: Any) -> bytes:
    """The opcodes of a number, a string or a tuple, without memo."""
    buffer = io.BytesIO()
    pickler = pickle._Pickler(buffer, 2)  # type: ignore[attr-defined]
    pickler.fast = True  # no memo: several pickles share one stream
    pickler.dump(value)
    return buffer.getvalue()[2:-1]
