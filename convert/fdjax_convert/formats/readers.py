"""Opens checkpoints: which format, which files, which wrapper around the weights.

The content decides the format, not the name of the file. Nothing is read but headers
until a tensor is asked for.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fdjax.checkpoint.address import WEIGHT_SUFFIXES
from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.mapped import MappedFile
from fdjax.checkpoint.safetensors_format import read_safetensors
from fdjax.checkpoint.tensors import LazyTensor
from fdjax_convert.formats.torch_format import LEGACY_MAGIC, read_torch

WRAPPERS = (
    "generator_ema",
    "generator",
    "ema",
    "state_dict",
    "model_state",
    "model_state_dict",
    "model",
    "module",
    "net",
)
"""Entries of a training checkpoint that hold the weights, best first."""

PREFIXES = ("model.", "net.", "module.", "diffusion_model.")
"""Prefixes of keys that say nothing about the architecture."""

INFIXES = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""Names that torch's wrappers insert anywhere in a key."""


_MAX_ENTRIES = 100_000  # the largest models have a few thousand


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint, wrappers and prefixes removed.

    Attributes:
        path: What was opened: a file, an index or a directory.
        files: The files that hold the tensors.
        tensors: Tensors by key.
        wrapper: Entries that were entered to find the weights, outermost first.
        prefix: What was removed in front of every key; "" if the keys differ in that.
        skipped: Entries beside the weights, and values that are no tensors.
        metadata: The metadata of a safetensors file.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, LazyTensor]
    wrapper: tuple[str, ...] = ()
    prefix: str = ""
    skipped: tuple[str, ...] = ()
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_checkpoint(path: str | os.PathLike, wrapper: str | None = None) -> Checkpoint:
    """Opens a file, a sharded index or a directory of one of them.

    Args:
        path: `.safetensors`, `*.safetensors.index.json`, `.pt`/`.pth`/`.ckpt` of
            torch >= 1.6, or a directory that holds one checkpoint.
        wrapper: Entry of a training checkpoint that holds the weights, dots between
            levels; None looks for the usual ones (`WRAPPERS`).

    Raises:
        FileNotFoundError: If there is no such file, or a shard is missing.
        CheckpointError: If it cannot be read; says why and what to do.
    """
    path = Path(path)
    if path.is_dir():
        path = find_in_directory(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    kind = sniff(path)
    metadata: dict[str, str] = {}
    files: tuple[Path, ...] = (path,)
    content: Any
    if kind == "index":
        content, files = _read_index(path)
    elif kind == "safetensors":
        content, metadata = read_safetensors(path)
    else:
        content = read_torch(path)
    found, entered, skipped = _unwrap(path, content, wrapper)
    tensors, prefix = _strip_prefixes(path, found)
    return Checkpoint(path, files, tensors, entered, prefix, skipped, metadata)


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
    else:
        what = f"starts with {start[:12]!r}"
    raise CheckpointError(
        f"{path} is neither a safetensors file nor a file of torch.save (zip format): "
        f"it {what}"
    )


def find_in_directory(directory: Path) -> Path:
    """The one checkpoint of a directory: an index, else the only weight file."""
    candidates = list_checkpoints(directory)
    if len(candidates) == 1:
        return candidates[0]
    inside = sorted(
        child.name
        for child in directory.iterdir()
        if child.is_dir() and list_checkpoints(child)
    )
    if candidates:
        names = ", ".join(candidate.name for candidate in candidates)
        raise CheckpointError(
            f"{directory} holds several checkpoints, name one of them: {names}"
        )
    hint = f"; its folders {', '.join(inside)} do, name one of them" if inside else ""
    raise FileNotFoundError(f"{directory} holds no checkpoint{hint}")


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a directory; the shards of an index are one checkpoint."""
    names = sorted(child for child in directory.iterdir() if child.is_file())
    indices = [child for child in names if child.name.endswith(".index.json")]
    shards: set[str] = set()
    for index in indices:
        shards.update(_weight_map(index).values())
    return indices + [
        child
        for child in names
        if child.name.endswith(WEIGHT_SUFFIXES) and child.name not in shards
    ]


def _weight_map(path: Path) -> dict[str, str]:
    """Key -> file name, from a sharded index."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{path} must hold a `weight_map` of key to file name")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(
                f"{path} names the shard {name!r}, which is not a file beside it"
            )
    return names


def _read_index(path: Path) -> tuple[dict[str, LazyTensor], tuple[Path, ...]]:
    """Merges the shards of an index; all that is missing is named at once."""
    names = _weight_map(path)
    files = tuple(path.with_name(name) for name in sorted(set(names.values())))
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise FileNotFoundError(
            f"{path} has {len(files)} shards, {len(missing)} of them are missing from "
            f"{path.parent}: {', '.join(missing)}"
        )
    shards: dict[str, Mapping[str, Any]] = {}
    for file in files:
        safe = sniff(file) == "safetensors"
        content = read_safetensors(file)[0] if safe else read_torch(file)
        shards[file.name] = content if isinstance(content, dict) else {}
    lost = [f"{key} ({name})" for key, name in names.items() if key not in shards[name]]
    if lost:
        raise CheckpointError(
            f"{path}: the shards do not belong to it, they lack {len(lost)} of its "
            f"{len(names)} tensors: {', '.join(lost[:8])}{' …' * (len(lost) > 8)}"
        )
    return {key: shards[name][key] for key, name in names.items()}, files


def _unwrap(
    path: Path, content: Any, wrapper: str | None
) -> tuple[dict[str, LazyTensor], tuple[str, ...], tuple[str, ...]]:
    """Finds the weights: (tensors by key, entries entered, what was left out)."""
    entered: list[str] = []
    skipped: list[str] = []
    wanted = wrapper.split(".") if wrapper else []
    if isinstance(content, LazyTensor):
        return {"tensor": content}, (), ()  # saved on its own, without a key
    while isinstance(content, dict):
        inner = [name for name, value in content.items() if _holds_tensors(value)]
        if wanted:
            name = wanted.pop(0)
            if name not in content:
                raise CheckpointError(
                    f"{path} has no entry {wrapper!r}; the entries with weights are: "
                    + (", ".join(map(str, inner)) or "none")
                )
        elif any(isinstance(value, LazyTensor) for value in content.values()):
            break
        else:
            name = _choose(path, inner)
        entered.append(str(name))
        skipped += [str(other) for other in content if other != name]
        content = content[name]
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, must hold tensors by key"
        )
    tensors: dict[str, LazyTensor] = {}
    try:
        for key, value in _flatten(content):
            if isinstance(value, LazyTensor):
                tensors[key] = value
            else:
                skipped.append(f"{key}: {type(value).__name__}")
            if len(tensors) + len(skipped) > _MAX_ENTRIES:
                raise CheckpointError(f"{path} has more than {_MAX_ENTRIES} entries")
    except RecursionError:
        raise CheckpointError(f"{path} has a structure that contains itself") from None
    for name in WRAPPERS[:2] if not entered else ():
        members = [key for key in tensors if key.startswith(f"{name}.")]
        if members:  # a training checkpoint whose levels were joined by dots
            skipped += [key for key in tensors if not key.startswith(f"{name}.")]
            tensors = {key.removeprefix(f"{name}."): tensors[key] for key in members}
            entered.append(name)
            break
    return tensors, tuple(entered), tuple(skipped)


def _choose(path: Path, inner: list[Any]) -> Any:
    """The entry to enter: the best known wrapper, else the only one with weights."""
    for name in WRAPPERS:
        if name in inner:
            return name
    if len(inner) == 1:
        return inner[0]
    raise CheckpointError(
        f"{path} holds no tensors"
        if not inner
        else f"{path} holds several sets of weights, choose one with --wrapper: "
        + ", ".join(map(str, inner))
    )


def _holds_tensors(value: Any, depth: int = 4) -> bool:
    """Whether a nested dict has a tensor in one of its first levels."""
    if isinstance(value, LazyTensor):
        return True
    if not isinstance(value, dict) or not depth:
        return False
    return any(_holds_tensors(inner, depth - 1) for inner in value.values())


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of nested dicts and lists."""
    if isinstance(content, dict):
        items: Any = content.items()
    elif isinstance(content, list | tuple) and any(map(_holds_tensors, content)):
        items = enumerate(content)
    else:
        yield prefix, content
        return
    for name, value in items:
        yield from _flatten(value, f"{prefix}.{name}" if prefix else str(name))


def _strip_prefixes(
    path: Path, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, LazyTensor], str]:
    """Removes the names that wrappers put into keys; they must stay distinct."""
    stripped: dict[str, LazyTensor] = {}
    origins: dict[str, str] = {}
    for key, tensor in tensors.items():
        name = key
        for infix in INFIXES:
            name = name.replace(infix, "")
        while name.startswith(PREFIXES):
            name = name[name.index(".") + 1 :]
        if name in stripped:
            raise CheckpointError(
                f"{path}: {origins[name]} and {key} are the same key, {name}, without "
                "the prefixes of their wrappers"
            )
        stripped[name], origins[name] = tensor, key
    prefixes = {origins[name].removesuffix(name) for name in stripped}
    return stripped, prefixes.pop() if len(prefixes) == 1 else ""
