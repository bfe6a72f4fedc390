"""Reads `.safetensors` files lazily.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON
header of dtype, shape and byte range by key, then the values). The package checks
the header; the values are mapped here, so that bfloat16 and float8 need no framework.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from fdjax_convert.formats.tensors import LazyTensor
from fdjax_convert.rules.mapped import MappedFile
from fdjax_convert.rules.problems import CheckpointError

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


def read_safetensors(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Reads the header.

    Returns:
        The tensors by key, and the file's own metadata.

    Raises:
        CheckpointError: If the file is truncated or is no safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise CheckpointError(_explain(path, str(error))) from None
    file = MappedFile(path)
    length = int.from_bytes(file.bytes(0, 8), "little")
    header: dict[str, Any] = json.loads(file.bytes(8, length))
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for key, entry in header.items():
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(
                f"{path}: {key} has type {entry['dtype']}, must be one of "
                + ", ".join(DTYPES)
            )
        start = 8 + length + entry["data_offsets"][0]
        tensors[key] = file.tensor(start, dtype, entry["shape"])
    return tensors, metadata


def _explain(path: Path, reason: str) -> str:
    """Says what is wrong with a file that the safetensors package refuses."""
    if "IncompleteBuffer" in reason or "incomplete metadata" in reason.lower():
        return (
            f"{path} is truncated ({path.stat().st_size} bytes; {reason}): the "
            "download did not finish, fetch the file again"
        )
    return f"{path} is not a valid safetensors file: {reason}"
