"""Keeps encoded prompts and images on disk, so that a large encoder is loaded once.

An entry is one prompt or one image under one encoder: a safetensors file named by the
hash of the input, the encoder's config (its dtype included), its files and fdjax's
version. A second run with the same prompt finds it and never loads the encoder.

    weights = WeightsOnDemand(pipeline.load_params, ["text_encoder"])
    conditions = encode_conditions(pipeline, weights, text=["a beach"])
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
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

from fdjax.axes import Array, Params
from fdjax.checkpoint import address, files, safetensors_format
from fdjax.config import config_hash
from fdjax.contract.component import ParametricComponent
from fdjax.contract.conditioner import Conditions
from fdjax.engine.pipeline import StreamInferencePipeline

_FORMAT = 1
_ROWS = "rows"
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


def encode_conditions(
    pipeline: StreamInferencePipeline,
    params: Mapping[str, Params],
    *,
    text: Sequence[str] | None = None,
    image: Array | None = None,
    directory: str | os.PathLike | None = None,
) -> Conditions:
    """What `pipeline.encode_conditions` returns, read from disk where it is there.

    Args:
        pipeline: Whose encoders run.
        params: Weights of the one-shot encoders; `WeightsOnDemand` to load only those
            that have to run.
        text: One prompt per session.
        image: First frames in [-1, 1], float[B, H, W, 3], pixels.
        directory: Where entries are; `default_directory()` by default.

    Raises:
        ValueError: See `pipeline.encode_conditions`.
    """

    def encode(name: str, value: Any) -> Array:
        encoder: Any = pipeline.components[name]
        return cached_encode(
            encoder,
            functools.partial(params.__getitem__, name),
            value,
            directory=directory,
        )

    return pipeline.encode_conditions(params, text=text, image=image, encode=encode)


def cached_encode(
    encoder: Any,
    load: Callable[[], Params],
    inputs: Sequence[str] | Array,
    *,
    directory: str | os.PathLike | None = None,
    keep_from: int = _WORTH_KEEPING,
) -> Array:
    """Embeddings of `inputs`, read from disk where they are there.

    Nothing is kept for an encoder whose weights have no file, as random ones, or that
    is small. An entry that is damaged is made again, with a warning. Warnings that
    the encoder gave (a prompt that is too long) are kept and given again.

    Args:
        encoder: A `TextConditioner` or an `ImageConditioner`.
        load: Returns its weights; called only if something has to be encoded.
        inputs: Prompts, or images float[B, H, W, 3].
        directory: Where entries are; `default_directory()` by default.
        keep_from: Size of the weights in bytes from which entries are kept.

    Returns:
        What `encoder.encode(load(), inputs)` returns, [B, P, C].
    """
    folder = pathlib.Path(directory or default_directory()).expanduser()
    identity = _identity(encoder)
    if identity is None:
        encode: Callable[[Params, Any], Array] = encoder.encode
        return encode(load(), inputs)
    paths = [folder / f"{_key(identity, item)}.safetensors" for item in inputs]
    rows = [_read(path) for path in paths]
    missing = [number for number, row in enumerate(rows) if row is None]
    if missing:
        weights = load()
        keep = sum(leaf.nbytes for leaf in jax.tree.leaves(weights)) >= keep_from
        for number in missing:
            # One at a time: what is kept must not depend on its neighbours.
            rows[number] = entry = _run(encoder, weights, inputs[number : number + 1])
            if keep:
                _write(paths[number], entry)
    for message in dict.fromkeys(m for row in rows if row for m in row.warnings):
        warnings.warn(message, stacklevel=2)
    return jnp.stack([row.values for row in rows if row])


def _run(
    encoder: Any,
    weights: Params,
    inputs: Sequence[str] | Array,
) -> "_Entry":
    """Encodes one input and takes note of what the encoder says to its user."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row = np.asarray(encoder.encode(weights, inputs)[0])
    messages = []
    for warning in caught:
        if warning.category is UserWarning:
            messages.append(str(warning.message))
        else:  # of a library, about code: said once
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return _Entry(row, tuple(messages))


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One encoded input.

    Attributes:
        values: dtype[P, C].
        warnings: What the encoder warned of.
    """

    values: np.ndarray
    warnings: tuple[str, ...]


def _identity(encoder: ParametricComponent) -> Any:
    """What the embeddings depend on besides the input; None if it has no name."""
    config = encoder.config
    if getattr(config, "checkpoint_path", None) is None:
        return None
    stamps = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name.endswith("_path") and value is not None:
            stamps[field.name] = _stamp(address.local_path(value))
    return {
        "format": _FORMAT,
        "fdjax": importlib.metadata.version("fdjax"),
        "config": config_hash(config),
        "files": stamps,
    }


def _stamp(path: pathlib.Path | None) -> list:
    """Place, sizes and times of a local file or folder; empty for a remote one."""
    if path is None or not path.exists():
        return []
    parts = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(part.name, part.stat()) for part in parts]
    found = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
    return [str(path.resolve()), found]


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
    # Rows of zeros at the end, which padding leaves, are not stored.
    used = np.flatnonzero(
        np.any(entry.values != 0, axis=tuple(range(1, entry.values.ndim)))
    )
    stored = entry.values[: used[-1] + 1 if len(used) else 0]
    metadata = {
        "shape": json.dumps(entry.values.shape),
        "warnings": json.dumps(entry.warnings),
        "sha256": hashlib.sha256(stored.tobytes()).hexdigest(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_output(path) as temporary:
            safetensors_format.write_safetensors(temporary, {_ROWS: stored}, metadata)
    except OSError as error:
        _log.warning("Conditions cannot be kept at %s: %s.", path, error)


def _read(path: pathlib.Path) -> _Entry | None:
    """Reads an entry; None if there is none, or if it is damaged."""
    if not path.is_file():
        return None
    try:
        tensors, metadata = safetensors_format.read_safetensors(path)
        stored = tensors[_ROWS].read()
        if hashlib.sha256(stored.tobytes()).hexdigest() != metadata["sha256"]:
            raise ValueError("its values do not match their checksum")
        values = np.zeros(json.loads(metadata["shape"]), stored.dtype)
        values[: len(stored)] = stored
        return _Entry(values, tuple(json.loads(metadata["warnings"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("Cached conditions %s are ignored: %r.", path, error)
        return None
