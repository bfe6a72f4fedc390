"""Says what a checkpoint is, from its headers."""

import collections
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from fdjax import checkpoint as checkpoints
from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.tensors import LazyTensor
from fdjax_convert import kinds, recognise
from fdjax_convert.formats import folders, readers
from fdjax_convert.formats.readers import Checkpoint
from fdjax_convert.formats.values import brief_text
from fdjax_convert.rules.problems import SUMMARIZED, summarize
from fdjax_convert.rules.rules import Layout
from fdjax_convert.tables import layouts

_LONGEST = 1000  # letters of a value
_LINES = 12  # of keys that are listed at a place


def inspect(path: Path, wrapper: str | None = None) -> str:
    """A report on a file, an index, a directory, or one of fdjax's own checkpoints.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It cannot be read as a checkpoint.
    """
    metadata = checkpoints.read_metadata(path) if path.exists() else None
    if metadata is not None:
        return _own(path, metadata)
    if path.is_dir():
        found = folders.list_checkpoints(path)
        if len(found) > 1:
            return "\n\n".join(_neighbour(one, wrapper) for one in found)
    return _published(readers.open_checkpoint(path, wrapper))


def _neighbour(path: Path, wrapper: str | None) -> str:
    """The report on one of several files; what cannot be read is told."""
    try:
        return _published(readers.open_checkpoint(path, wrapper))
    except (CheckpointError, FileNotFoundError) as error:
        return _table({"file": str(path), "is": f"unreadable: {error}"})


def _own(path: Path, metadata: checkpoints.Metadata) -> str:
    """The report on a checkpoint in fdjax's own format."""
    source = metadata.source
    lines = {
        "file": str(path),
        "format": "fdjax" + ("" if checkpoints.is_intact(path) else ", damaged"),
        "is": source.get("description", metadata.architecture or "of no stated kind"),
        "architecture": metadata.architecture or "not stated",
        "parameters": _size(
            len(metadata.shapes), metadata.num_parameters, metadata.num_bytes
        ),
        "types": metadata.dtype,
        "config": f"hash {checkpoints.weights_hash(metadata)[:12]}",
    }
    if source:
        lines["converted from"] = f"{source.get('path')}, {source.get('layout')} layout"
        lines["sha256"] = str(source.get("sha256"))
        lines["wrapper"] = _wrapper(source.get("wrapper", ()), source.get("prefix", ""))
    return _table(lines)


def _published(opened: Checkpoint) -> str:
    """The report on a published checkpoint."""
    tensors = opened.tensors
    found = recognise.describe_parts(opened)
    foreign = kinds.foreign_kind(tensors)
    guess = None if found else recognise.closest(tensors, layouts.layouts())
    if foreign is not None:
        told = [foreign]
    elif found:
        told = [f"{text} ({_name(part.layout)})" for part, text in found]
    elif guess is not None:
        told = [f"perhaps {recognise.describe(guess, tensors)} ({_name(guess)})"]
    else:
        told = ["nothing that fdjax knows"]
    num_parameters = sum(tensor.size for tensor in tensors.values())
    lines = {
        "file": str(opened.path),
        "format": _format(opened),
        "is": " and ".join(told),
        "wrapper": _wrapper(opened.wrapper, opened.prefix),
        "parameters": _size(len(tensors), num_parameters, opened.num_bytes),
        "types": _types(tensors),
    }
    if opened.alternatives:
        names = folders.name_list(opened.alternatives)
        lines["wrapper"] += f"; the file also holds {names}: --wrapper takes another"
    parts = [part for part, _ in found]
    if not parts and guess is not None:
        parts = [layouts.Part(guess)]
    return _table(lines) + _keys(opened, parts)


def _keys(opened: Checkpoint, parts: list[layouts.Part]) -> str:
    """The keys that are not used, and why."""
    unknown: list[str] = [] if parts else list(opened.tensors)
    beside = list(opened.skipped)
    rest = set(opened.tensors)
    text = ""
    for prefix in dict.fromkeys(part.prefix for part in parts):
        here = [part.layout for part in parts if part.prefix == prefix]
        inside = layouts.members(parts, prefix, opened.tensors)
        rest -= set(inside)
        keys = [key.removeprefix(prefix) for key in inside]
        rules = [rule for layout in here for rule in layout.rules]
        unknown += [prefix + key for key in recognise.unknown_keys(rules, keys)]
        if len(here) == 1:  # what one part drops is what the other is made of
            for reason, dropped in recognise.dropped_keys(here[0], keys).items():
                named = [prefix + key for key in dropped]
                text += _section(f"not used, {reason}", named)
    if parts:
        beside += [key for key in opened.tensors if key in rest]
    title = "unknown keys" if parts else "keys"
    return _section(title, unknown) + text + _section("beside the weights", beside)


def _format(opened: Checkpoint) -> str:
    kind = {"safetensors": "safetensors", "torch": "torch zip, not executed"}[
        readers.sniff(opened.files[0])
    ]
    if len(opened.files) > 1:
        return f"{kind}, {len(opened.files)} shards"
    return kind


def _name(layout: Layout) -> str:
    return f"{layout.architecture}, {layout.name} layout"


def _wrapper(levels: Iterable[str], prefix: str) -> str:
    parts = [*levels, *([f'prefix "{prefix}"'] if prefix else [])]
    return " > ".join(parts) or "none"


def _size(num_tensors: int, num_parameters: int, num_bytes: int) -> str:
    return f"{num_parameters:,} in {num_tensors} tensors, {format_bytes(num_bytes)}"


def _types(tensors: Mapping[str, LazyTensor]) -> str:
    counts = collections.Counter(tensor.dtype for tensor in tensors.values())
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())


def format_bytes(count: float) -> str:
    """A size with its unit: 5.68 GB."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(int(math.log(count, 1000)) if count >= 1 else 0, len(units) - 1)
    return f"{count / 1000**power:.{2 if power else 0}f} {units[power]}"


def _table(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(
        f"{name:<{width}}  {brief_text(str(value), _LONGEST)}"
        for name, value in lines.items()
    )


def _section(title: str, keys: Iterable[str]) -> str:
    """A list of keys, numbers folded; nothing if there are none."""
    keys = list(keys)
    lines = summarize(keys[:SUMMARIZED])
    if not lines:
        return ""
    left = len(lines) - _LINES
    more = [f"… and {left} more"] if left > 0 else []
    if len(keys) > SUMMARIZED:
        more = [f"… and more: {len(keys)} keys"]
    listed = "".join(f"\n  {brief_text(line, 200)}" for line in lines[:_LINES] + more)
    return f"\n{title}:{listed}"
