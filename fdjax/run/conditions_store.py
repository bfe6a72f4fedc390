"""Keeps encoded prompts and images on disk, so that a large encoder is loaded once.

An entry is one prompt or one image under one part of a conditioner: a safetensors file
named by the hash of the input, the part's config (its dtype and the addresses of its
weights included), which version of its files is on this machine, and fdjax's version.
A second run with the same prompt finds it and never loads the encoder.

    weights = WeightsOnDemand(pipeline.load_params, list(pipeline.conditioner.parts))
    conditions = cached(pipeline.conditioner).encode(weights, text=["a beach"])
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array, Params, PyTree
from fdjax.checkpoint import address, fetch, files, safetensors_format, store
from fdjax.checkpoint.metadata import installed_version
from fdjax.config import config_hash
from fdjax.contract.conditioner import ConditionEncoder, Conditioner

_FORMAT = 3
_ROWS = "rows"  # of an encoder that gives one array; f"{_ROWS}/{name}" of a dict
_SAMPLE = 1 << 16  # bytes, at the start, in the middle and at the end of a file
_WORTH_KEEPING = 64 << 20  # bytes of weights; smaller encoders load faster than fdjax
_log = logging.getLogger(__name__)


class WeightsOnDemand(Mapping[str, Params]):
    """Parameters by component name, each loaded when it is first asked for.

    Args:
        load: Called as `load(only=[name])`; returns `{name: params}`.
        names: What there is.
    """

    def __init__(self, load: Callable[..., Mapping[str, Params]], names: Sequence[str]):
        self._load, self._names = load, tuple(names)
        self._loaded: dict[str, Params] = {}

    def __getitem__(self, name: str) -> Params:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded[name] = self._load(only=[name])[name]
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def default_directory() -> pathlib.Path:
    """`FDJAX_CACHE_DIR/conditions`, or `~/.cache/fdjax/conditions`."""
    return files.cache_dir() / "conditions"


def cached(
    conditioner: Conditioner, *, directory: str | os.PathLike | None = None
) -> Conditioner:
    """A conditioner that gives the same, read from disk where it is there.

    Args:
        conditioner: Whose parts run where nothing is kept. Give `WeightsOnDemand` to
            its `encode`, so that only parts that run are loaded.
        directory: Where entries are; `default_directory()` by default.
    """
    run_part = functools.partial(cached_encode, directory=directory)
    return dataclasses.replace(conditioner, run_part=run_part)


def cached_encode(
    encoder: ConditionEncoder,
    load: Callable[[], Params],
    inputs: Sequence[str] | Array,
    *,
    directory: str | os.PathLike | None = None,
    keep_from: int = _WORTH_KEEPING,
) -> PyTree:
    """Embeddings of `inputs`, read from disk where they are there.

    Nothing is kept for an encoder whose weights have no file, as random ones, or that
    is small. An entry that is damaged is made again, with a warning. Warnings that
    the encoder gave (a prompt that is too long) are kept and given again.

    Args:
        encoder: A part of a conditioner.
        load: Returns its weights; called only if something has to be encoded.
        inputs: Texts, or an array with B first.
        directory: Where entries are; `default_directory()` by default.
        keep_from: Size of the weights in bytes from which entries are kept.

    Returns:
        What `encoder.encode(load(), inputs)` returns.
    """
    folder = pathlib.Path(os.path.expanduser(directory or default_directory()))
    identity = _identity(encoder)
    if identity is None:
        return encoder.encode(load(), inputs)
    rows = [_read(_path(folder, identity, item)) for item in inputs]
    missing = [number for number, row in enumerate(rows) if row is None]
    if missing:
        weights = load()
        identity = _identity(encoder)  # it may have been fetched just now
        keep = sum(leaf.nbytes for leaf in jax.tree.leaves(weights)) >= keep_from
        for number in missing:
            # One at a time: what is kept must not depend on its neighbours.
            rows[number] = entry = _run(encoder, weights, inputs[number : number + 1])
            if keep:
                _write(_path(folder, identity, inputs[number]), entry)
    entries = [row for row in rows if row]
    for message in dict.fromkeys(m for entry in entries for m in entry.warnings):
        warnings.warn(message, stacklevel=2)
    names = entries[0].values
    stacked = {name: jnp.stack([row.values[name] for row in entries]) for name in names}
    if set(stacked) == {_ROWS}:
        return stacked[_ROWS]
    return {name.removeprefix(f"{_ROWS}/"): value for name, value in stacked.items()}


def _run(
    encoder: ConditionEncoder,
    weights: Params,
    inputs: Sequence[str] | Array,
) -> "_Entry":
    """Encodes one input and takes note of what the encoder says to its user."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoded = encoder.encode(weights, inputs)
    if isinstance(encoded, Mapping):
        named = {f"{_ROWS}/{name}": value for name, value in encoded.items()}
    else:
        named = {_ROWS: encoded}
    if unknown := [value for value in named.values() if not hasattr(value, "shape")]:
        raise ValueError(
            f"{type(encoder).__name__}.encode must return an array or a dict of "
            f"arrays, got {type(unknown[0]).__name__}."
        )
    messages = []
    for warning in caught:
        if warning.category is UserWarning:
            messages.append(str(warning.message))
        else:  # of a library, about code: said once
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    values = {name: np.asarray(value[0]) for name, value in named.items()}
    return _Entry(values, tuple(messages))


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One encoded input.

    Attributes:
        values: Its row of each array, dtype[P, C] for instance, by the array's name.
        warnings: What the encoder warned of.
    """

    values: dict[str, np.ndarray]
    warnings: tuple[str, ...]


def _identity(encoder: ConditionEncoder) -> Any:
    """What the embeddings depend on besides the input; None if it has no name."""
    config = encoder.config
    if getattr(config, "checkpoint_path", None) is None:
        return None
    sources = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name.endswith("_path") and value is not None:
            sources[field.name] = [os.fspath(value), _version(value)]
    return {
        "format": _FORMAT,
        "fdjax": installed_version(),
        "config": config_hash(config),
        "sources": sources,
    }


def _version(source: str | os.PathLike) -> list | str:
    """What an address stands for at present, as far as it is on this machine."""
    path = address.local_path(source)
    return fetch.cached_version(source) if path is None else _stamps(path)


def _stamps(path: pathlib.Path) -> list:
    """What tells a local file or folder from any other; empty if there is none.

    Size and times alone do not: a copy may keep them, and a file system may count in
    seconds. Whole files are gigabytes, so the contents are sampled.
    """
    if not os.path.exists(path):
        return []
    if path.is_dir():
        own = store.read_metadata(path) is not None
        found = list(path.rglob("*") if own else path.iterdir())
    elif path.name.endswith(".index.json"):  # names shards, which lie beside it
        found = list(path.parent.iterdir())
    else:
        found = [path]
    return [_stamp(file) for file in sorted(found) if file.is_file()]


def _stamp(file: pathlib.Path) -> list:
    """Place, number, size and times of a file, and a digest of samples of it."""
    stat = file.stat()
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for start in (0, (stat.st_size - _SAMPLE) // 2, stat.st_size - _SAMPLE):
            stream.seek(max(0, start))
            digest.update(stream.read(_SAMPLE))
    times = [stat.st_mtime_ns, stat.st_ctime_ns]
    place = [str(file.resolve()), stat.st_dev, stat.st_ino]
    return [*place, stat.st_size, *times, digest.hexdigest()]


def _path(folder: pathlib.Path, identity: Any, item: str | Array) -> pathlib.Path:
    return folder / f"{_key(identity, item)}.safetensors"


def _key(identity: Any, item: str | Array) -> str:
    if isinstance(item, str):
        description: dict[str, Any] = {"text": item}
    else:
        array = np.ascontiguousarray(item)
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        description = {"array": [str(array.dtype), list(array.shape), digest]}
    text = json.dumps([identity, description], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: pathlib.Path, entry: _Entry) -> None:
    """Writes an entry; a failure costs the next run time, so it is only logged."""
    stored = {name: _without_padding(value) for name, value in entry.values.items()}
    metadata = {
        "shapes": json.dumps({name: v.shape for name, v in entry.values.items()}),
        "warnings": json.dumps(entry.warnings),
        "sha256": checksum(stored),
    }
    try:
        with files.explain_cache(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.atomic_output(path) as temporary:
                safetensors_format.write_safetensors(temporary, stored, metadata)
    except OSError as error:
        reason = error.strerror or error
        _log.warning("Conditions cannot be kept at %s: %s.", path, reason)


def _without_padding(values: np.ndarray) -> np.ndarray:
    """The rows up to the last one that is not zero; a number is one row."""
    values = np.atleast_1d(values)
    used = np.flatnonzero(np.any(values != 0, axis=tuple(range(1, values.ndim))))
    return values[: used[-1] + 1 if len(used) else 0]


def checksum(stored: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, values in sorted(stored.items()):
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _read(path: pathlib.Path) -> _Entry | None:
    """Reads an entry; None if there is none, or if it is damaged."""
    if not path.is_file():
        return None
    try:
        tensors, metadata = safetensors_format.read_safetensors(path)
        stored = {name: tensor.read() for name, tensor in tensors.items()}
        if checksum(stored) != metadata["sha256"]:
            raise ValueError("its values do not match their checksum")
        values = {}
        for name, shape in json.loads(metadata["shapes"]).items():
            padded = np.zeros(shape or [1], stored[name].dtype)
            padded[: len(stored[name])] = stored[name]
            values[name] = padded.reshape(shape)
        return _Entry(values, tuple(json.loads(metadata["warnings"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("Cached conditions %s are ignored: %r.", path, error)
        return None
