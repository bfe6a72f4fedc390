"""Reads what `torch.save` writes, without torch and without running anything.

The zip format of torch >= 1.6 (torch/serialization.py, `_save`): `<name>/data.pkl` is
a pickle in which storages are persistent ids `("storage", type, key, device, count)`,
and `<name>/data/<key>` holds the bytes of each. The pickle may name only what stands
in `torch_names`; every name is answered by a stand-in, so no code of the file's choice
is ever imported or called. Storages are mapped, not read.
"""

import _compat_pickle
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.mapped import MappedFile
from fdjax_convert.formats.pickle_machine import Machine
from fdjax_convert.formats.torch_names import ALLOWED, Storage
from fdjax_convert.formats.values import Callee, brief, brief_text

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""First bytes of the format before 1.6: MAGIC_NUMBER of torch/serialization.py."""

RESAVE = (
    "python -c \"import torch; torch.save(torch.load('{path}', map_location='cpu', "
    "weights_only=True), '{new}')\""
)

_MAX_PICKLE = 1 << 28  # bytes; structure and names only, real ones stay below 1 MB


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
    storages: dict[tuple[str, np.dtype], Storage] = {}

    def storage(pid: Any) -> Storage:
        match pid:
            case (
                "storage",
                Callee(dtype=np.dtype() as dtype),
                str(key),
                _,
                int(size),
            ):
                pass
            case _:
                raise pickle.UnpicklingError(
                    f"refers to {brief(pid)}, which is no storage"
                )
        if not 0 <= size < 1 << 63:
            raise pickle.UnpicklingError(f"holds a storage of {brief(size)} elements")
        if (key, dtype) not in storages:
            length = size * dtype.itemsize
            start = _locate(file, entries, f"{root}/data/{key}", length)
            storages[key, dtype] = Storage(file, start, length, dtype)
        return storages[key, dtype]

    if any(name.startswith(f"{root}/code/") for name in entries):
        raise CheckpointError(
            f"{path} is a TorchScript program (torch.jit.save), not a checkpoint"
        )
    order = _content(file, entries, f"{root}/byteorder", 16) or b"little"
    if order != b"little":
        raise CheckpointError(f"{path} must be little-endian, is {order!r}")
    data = _content(file, entries, f"{root}/data.pkl", _MAX_PICKLE)
    return _unpickle(path, data, storage)


def _unpickle(path: Path, data: bytes, storage: Callable[[Any], Any]) -> Any:
    def find(module: str, name: str) -> Callee:
        # Protocol 2, torch's default, spells names as Python 2 did.
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        full = f"{module}.{name}"
        if full not in ALLOWED:
            raise pickle.UnpicklingError(
                f"asks for {brief_text(full)}, and a checkpoint may hold tensors and "
                "containers only. Nothing of it was run. If you trust its author, save "
                "its state_dict() again with torch"
            )
        return ALLOWED[full]

    try:
        return Machine(data, find, storage).load()
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: its pickle {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        # What the stand-ins make of arguments that torch never writes.
        reason = brief_text(f"{type(e).__name__}: {e}", 200)
        raise CheckpointError(
            f"{path} is corrupt, its pickle cannot be read ({reason}): fetch it again"
        ) from None


def _entries(file: MappedFile) -> tuple[dict[str, zipfile.ZipInfo], str]:
    """The entries of the archive by name, and the folder that holds them all."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            listed = archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        OSError,
        OverflowError,
        ValueError,
        struct.error,
    ) as error:
        raise CheckpointError(
            f"{file.path} is truncated or corrupt: it starts as a torch checkpoint, "
            f"but its table of contents (at byte {file.size}) is missing or damaged "
            f"({error}); the download did not finish, fetch the file again"
        ) from None
    entries = {entry.filename: entry for entry in listed}
    if len(entries) < len(listed):
        raise CheckpointError(
            f"{file.path} is refused: its table of contents names an entry twice"
        )
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
            f"{file.path} is corrupt: its entry {brief_text(name)} {found}, must have "
            f"{length}"
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
