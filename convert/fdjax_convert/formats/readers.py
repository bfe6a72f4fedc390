"""Opens checkpoints: which format, which files, which wrapper around the weights.

The content decides the format, not the name of the file. Nothing is read but headers
until a tensor is asked for.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.mapped import MappedFile
from fdjax.checkpoint.safetensors_format import read_safetensors
from fdjax.checkpoint.tensors import LazyTensor
from fdjax_convert.formats import folders
from fdjax_convert.formats.scales import apply_scales
from fdjax_convert.formats.torch_format import LEGACY_MAGIC, read_torch
from fdjax_convert.formats.unwrap import find_weights


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, wrappers and prefixes removed.

    Attributes:
        path: What was opened: a file, an index or a directory.
        files: The files that hold the tensors.
        tensors: Tensors by key.
        wrapper: Entries that were entered to find the weights, outermost first.
        skipped: Entries beside the weights, and values that are no tensors.
        metadata: The metadata of a safetensors file.
        alternatives: Other sets of the same weights that the file holds.
        origins: What was removed is there in front of each key; the key itself if
            nothing was.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, LazyTensor]
    wrapper: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    alternatives: tuple[str, ...] = ()
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def prefix(self) -> str:
        """What was removed in front of every key; "" if the keys differ in that."""
        found = {self.origins.get(key, key).removesuffix(key) for key in self.tensors}
        return found.pop() if len(found) == 1 else ""


def open_checkpoint(path: str | os.PathLike, wrapper: str | None = None) -> Checkpoint:
    """Opens a file, a sharded index or a directory of one of them.

    Args:
        path: `.safetensors`, `*.safetensors.index.json`, `.pt`/`.pth`/`.ckpt` of
            torch >= 1.6, one of several shards (`…-00001-of-00007…`), which stands for
            all, or a directory that holds one checkpoint.
        wrapper: Entry of a training checkpoint that holds the weights, dots between
            levels; None looks for the usual ones: see `unwrap`.

    Raises:
        FileNotFoundError: If there is no such file, or a shard is missing.
        CheckpointError: If it cannot be read; says why and what to do.
    """
    path = Path(path)
    if path.is_dir():
        path = folders.find_in_directory(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    metadata: dict[str, str] = {}
    files: tuple[Path, ...] = (path,)
    content: Any
    if sniff(path) == "index":
        content, files = _read_index(path)
    elif len(files := folders.files_of(path)) > 1:
        content = _read_shards(path, files)
    else:
        content, metadata = _read(path)
    found = find_weights(path, content, wrapper)
    tensors, beside = apply_scales(path, found.tensors)
    return Checkpoint(
        path,
        files,
        tensors,
        found.wrapper,
        (*found.skipped, *beside),
        metadata,
        found.alternatives,
        found.origins,
    )


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    """The content of one file, and the metadata of a safetensors file."""
    kind = sniff(path)
    if kind == "index":
        raise CheckpointError(f"{path} must hold tensors, is an index or other JSON")
    return read_safetensors(path) if kind == "safetensors" else (read_torch(path), {})


def _read_index(path: Path) -> tuple[dict[str, LazyTensor], tuple[Path, ...]]:
    """Merges the shards of an index; all that is missing is named at once."""
    names = folders.weight_map(path)
    files = folders.index_files(path, names)
    shards: dict[str, Mapping[str, Any]] = {}
    for file in files:
        content, _ = _read(file)
        shards[file.name] = content if isinstance(content, dict) else {}
    lost = [f"{key} ({name})" for key, name in names.items() if key not in shards[name]]
    if lost:
        raise CheckpointError(
            f"{path}: the shards do not belong to it, they lack {len(lost)} of its "
            f"{len(names)} tensors: {folders.name_list(lost, 8)}"
        )
    return {key: shards[name][key] for key, name in names.items()}, files


def _read_shards(path: Path, files: tuple[Path, ...]) -> dict[Any, Any]:
    """Merges shards that no index lists; each key stands in one of them."""
    merged: dict[Any, Any] = {}
    for file in files:
        content, _ = _read(file)
        if not isinstance(content, dict):
            raise CheckpointError(f"{file} is a shard and must hold tensors by key")
        twice = sorted(str(key) for key in content if key in merged)
        if twice:
            raise CheckpointError(
                f"{path}: its shards hold keys twice: {folders.name_list(twice, 8)}"
            )
        merged |= content
    return merged


def sniff(path: Path) -> str:
    """The format of a file by its content: "safetensors", "torch" or "index".

    Raises:
        CheckpointError: If it is none of them; says what it seems to be.
    """
    file = MappedFile(path)
    start = file.bytes(0, 512)
    header = int.from_bytes(start[:8], "little")
    if start[:4] == b"PK\x03\x04" or start.startswith(LEGACY_MAGIC):
        return "torch"
    if start[8:9] == b"{" and header < 1 << 32:
        return "safetensors"
    text = start.lstrip()
    if text[:1] == b"{":
        return "index"
    if text[:1] == b"<":
        what = (
            "is a web page: take the link that downloads the file (…/resolve/…), and "
            "check that you have access to it"
        )
    elif text.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, not the file itself: run `git lfs pull`"
    elif start[:1] == b"\x80":
        what = "is a plain pickle, which may run any code when it is loaded"
    elif b"ustar" in start:
        what = "is a tar archive: unpack it, or save the weights with torch >= 1.6"
    elif not start.strip(b"\0"):
        what = "starts with zeros: the download did not finish"
    elif start[:4] == b"GGUF":
        what = (
            "starts with b'GGUF', it is a GGUF file, a quantised checkpoint of "
            "llama.cpp and ComfyUI-GGUF: take the published .safetensors or .pth file"
        )
    else:
        what = f"starts with {start[:12]!r}"
    raise CheckpointError(
        f"{path} is neither a safetensors file nor a file of torch.save (zip format): "
        f"it {what}"
    )
