"""Reads and writes `.safetensors` files, tensor by tensor.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON
header of dtype, shape and byte range by key, then the values). The package checks
the header; the values are mapped here, so that bfloat16 and float8 need no framework.
"""

import json
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.mapped import MappedFile
from fdjax.checkpoint.tensors import LazyTensor, as_lazy, contiguous
from fdjax.config import strict_json

DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "C64": np.dtype(np.complex64),
}
"""Element types by the name that the format gives them."""


def dtype_name(dtype: np.dtype) -> str:
    """The format's name of an element type.

    Raises:
        ValueError: It has none.
    """
    if dtype not in _NAMES:
        raise ValueError(f"files hold no {dtype}; they hold {', '.join(DTYPES)}.")
    return _NAMES[dtype]


class Writable(Protocol):
    """What bytes can be written to."""

    def write(self, data: Any, /) -> Any:
        """Takes bytes, or a buffer of them."""


_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100 << 20  # bytes, the limit of the safetensors package


def read_safetensors(
    path: pathlib.Path,
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Reads the header.

    Returns:
        The tensors by key, and the file's own metadata.

    Raises:
        CheckpointError: If the file is truncated or is no safetensors file.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise CheckpointError(_explain(path, str(error)[:200])) from None
    return read_mapped(MappedFile(path))


def read_mapped(file: MappedFile) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """As `read_safetensors`, of a file that is mapped or in memory.

    Raises:
        CheckpointError: If its header is none, or a tensor lies outside of it.
    """
    length = int.from_bytes(file.bytes(0, 8), "little")
    try:
        header = _checked_header(strict_json.parse(file.bytes(8, length)))
    except ValueError as error:
        raise CheckpointError(_explain(file.path, f"its header: {error}")) from None
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for key, entry in header.items():
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(
                f"{file.path}: {key[:80]} has type {entry['dtype'][:80]}, must be one "
                "of " + ", ".join(DTYPES)
            )
        start = 8 + length + entry["data_offsets"][0]
        tensors[key] = file.tensor(start, dtype, entry["shape"])
    return tensors, metadata


def read_safetensors_header(path: pathlib.Path) -> dict[str, Any]:
    """The JSON header of a safetensors file; empty if it is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(path.stat().st_size - 8, _MAX_HEADER):
            return {}
        start = file.read(1)
        if start != b"{":
            return {}
        try:
            return _checked_header(strict_json.parse(start + file.read(length - 1)))
        except ValueError:
            return {}


def _checked_header(header: Any) -> dict[str, Any]:
    """A header whose entries have the form that the format gives them.

    Raises:
        ValueError: One has not.
    """
    if not isinstance(header, dict):
        raise ValueError("it must be an object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise ValueError("its __metadata__ must be texts by name")
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        match entry:
            case {"dtype": str(), "shape": list() as shape, "data_offsets": [a, b]}:
                numbers = (a, b, *shape)
            case _:
                raise ValueError(f"{key[:80]} must have dtype, shape and data_offsets")
        if any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers):
            raise ValueError(
                f"{key[:80]} must have sizes and offsets that are integers"
            )
    return header


def write_safetensors(
    path: pathlib.Path,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Writes tensors by key to one file; not atomic by itself.

    Args:
        path: The file.
        tensors: As in `write_to`.
        metadata: The file's own.
        progress: As in `write_to`.

    Raises:
        ValueError: The format has no such element type.
    """
    with path.open("wb") as file:
        write_to(file, tensors, metadata, progress)


def write_to(
    file: Writable,
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str],
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Writes tensors by key to an open file, in one pass; its metadata comes first.

    Args:
        file: Takes bytes.
        tensors: Arrays, or `LazyTensor`s, which are read one after the other.
        metadata: The file's own.
        progress: Called with the bytes of each tensor when it has been written.

    Raises:
        ValueError: The format has no such element type.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    lazy = {key: as_lazy(value) for key, value in tensors.items()}
    position = 0
    for key, tensor in lazy.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(
                f"{key}: safetensors files hold no {tensor.dtype}; they hold "
                + ", ".join(map(str, _NAMES))
            )
        end = position + tensor.nbytes
        header[key] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in lazy.values():
        array = contiguous(tensor.read())
        file.write(array.reshape(-1).view(np.uint8).data)
        tensor.release()
        progress(tensor.nbytes)


def read_back(path: pathlib.Path, tensors: Mapping[str, Any]) -> None:
    """Checks that a file holds tensors of these shapes and types, by its header.

    Raises:
        ValueError: It does not, or cannot be read.
    """
    found, _ = read_safetensors(path)
    wanted = {key: (tuple(t.shape), np.dtype(t.dtype)) for key, t in tensors.items()}
    if {key: (t.shape, t.dtype) for key, t in found.items()} != wanted:
        raise ValueError("its tensors differ")


def _explain(path: pathlib.Path | str, reason: str) -> str:
    """Says what is wrong with a file that the safetensors package refuses."""
    if "IncompleteBuffer" in reason or "incomplete metadata" in reason.lower():
        return (
            f"{path} is truncated ({pathlib.Path(path).stat().st_size} bytes; "
            f"{reason}): the "
            "download did not finish, fetch the file again"
        )
    return f"{path} is not a valid safetensors file: {reason}"
