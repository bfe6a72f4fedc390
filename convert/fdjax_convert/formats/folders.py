"""Which checkpoints a folder holds, and which files belong to one of them."""

import re
from collections.abc import Iterable
from pathlib import Path

from fdjax.checkpoint.address import WEIGHT_SUFFIXES
from fdjax.checkpoint.errors import CheckpointError
from fdjax.config import strict_json
from fdjax_convert.formats.values import brief, brief_text

_BESIDE = re.compile(
    r"(?:.*[_-])?(?:optim|optimizer|scheduler|scaler|training_args|trainer_state"
    r"|rng_state|random_states?)(?:[_-].*)?\.\w+"
)
"""Files that trainers write beside the weights."""

_SHARD = re.compile(r"(.*?)-?(\d+)-of-(\d+)(\.\w+)")
"""Name, number, count and ending of a shard, as Hugging Face's libraries write them."""

_MAX_SHARDS = 10_000


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
        raise CheckpointError(
            f"{directory} holds several checkpoints, name one of them: "
            + name_list(candidate.name for candidate in candidates)
        )
    hint = f"; its folders {name_list(inside)} do, name one of them" if inside else ""
    raise FileNotFoundError(f"{directory} holds no checkpoint{hint}")


def list_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in a directory; shards of one checkpoint count as one.

    Hidden files and what trainers write beside the weights are left out.
    """
    names = sorted(
        child
        for child in directory.iterdir()
        if child.is_file() and not child.name.startswith(".")
    )
    indices = [child for child in names if child.name.endswith(".index.json")]
    shards: set[str] = set()
    for index in indices:
        shards.update(weight_map(index).values())
    found = []
    for child in names:
        if not child.name.endswith(WEIGHT_SUFFIXES) or child.name in shards:
            continue
        if _BESIDE.fullmatch(child.name):
            continue
        shards.update(_shard_names(child.name))
        found.append(child)
    return indices + found


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of a checkpoint without an index: one, or all of its shards.

    Raises:
        FileNotFoundError: Shards are missing; names them.
    """
    names = _shard_names(path.name)
    files = tuple(path.with_name(name) for name in names) or (path,)
    _check_there(path, files)
    return files


def _shard_names(name: str) -> list[str]:
    """Names of all the shards that one belongs to; none if it is no shard."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return []
    _, number, count, ending = match.groups()
    if not (1 <= int(number) <= int(count) <= _MAX_SHARDS and int(count) > 1):
        return []
    before = name[: match.start(2)]
    digits = len(number)
    return [
        f"{before}{n:0{digits}}-of-{count}{ending}" for n in range(1, int(count) + 1)
    ]


def index_files(path: Path, names: dict[str, str]) -> tuple[Path, ...]:
    """The shards that a weight map names.

    Raises:
        FileNotFoundError: Shards are missing; names them.
    """
    files = tuple(path.with_name(name) for name in sorted(set(names.values())))
    _check_there(path, files)
    return files


def _check_there(path: Path, files: tuple[Path, ...]) -> None:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{path} has {len(files)} shards, {len(missing)} of them are missing from "
            f"{path.parent}: {name_list(missing)}"
        )


def weight_map(path: Path) -> dict[str, str]:
    """Key -> file name, from a sharded index."""
    try:
        content = strict_json.parse(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not valid JSON: {brief_text(str(error), 200)}"
        ) from None
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{path} must hold a `weight_map` of key to file name")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise CheckpointError(
                f"{path} names the shard {brief(name)}, which is not a file beside it"
            )
    return names


def name_list(names: Iterable[str], most: int = 12) -> str:
    """Names in a message: the first ones."""
    names = list(names)
    more = f" … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(brief_text(name) for name in names[:most]) + more
