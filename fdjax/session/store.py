"""Saves live sessions to a file and takes them up again, bit for bit.

A file is in the safetensors format: the arrays of a cache, and as JSON its structure
and the settings of the pipeline that it belongs to. Weights are not in it.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, Sharding

from fdjax.axes import Array, PyTree
from fdjax.checkpoint import files, safetensors_format
from fdjax.checkpoint.metadata import installed_version
from fdjax.config import to_json
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.session import tree
from fdjax.sharding import CACHE, Placement, resolve
from fdjax.streaming import storage
from fdjax.streaming.cache import KVCache, StreamCache
from fdjax.streaming.dit import StreamingDiT

_FORMAT = 1
_HEADER = "fdjax_session"
# What may differ between two pipelines that can take up each other's sessions: where
# weights are, what only a session's beginning reads, and padding, which is mapped.
_FREE = re.compile(
    r"(name|conditioner(\..*)?|(.*\.)?(seed|slot_multiple|\w*_path|latents_per_pass))"
)


def save_cache(
    path: str | os.PathLike,
    cache: StreamInferencePipelineCache,
    *,
    pipeline: StreamInferencePipeline,
    notes: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes sessions; they appear at `path` whole or not at all.

        fdjax.save_cache("walk.session", cache, pipeline=pipeline)
        cache = fdjax.load_cache("walk.session", pipeline=pipeline)

    Args:
        path: The file.
        cache: Ready or pending; one session or a batch of them.
        pipeline: The one that the cache is of.
        notes: Whatever else is to be known, as JSON; `read_notes` gives it back.
        overwrite: Replace what is at `path`.

    Raises:
        FileExistsError: There is something at `path`.
        ValueError: The cache was used up by `donate=True`, or holds what no file can.
        OSError: The file cannot be written.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; remove it or choose another path.")
    for leaf in jax.tree.leaves(cache):
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                "save_cache was given a cache that was used up by donate=True; save "
                "the one that the donating call returned."
            )
    structure, arrays = tree.describe(cache)
    header = {
        "format": _FORMAT,
        "fdjax": installed_version(),
        "platform": jax.default_backend(),
        "settings": _settings(pipeline),
        "structure": structure,
        "notes": dict(notes or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.check_free_space(path, sum(array.nbytes for array in arrays.values()))
    with files.explain_full_disk(path), files.atomic_output(path) as temporary:
        safetensors_format.write_safetensors(
            temporary, arrays, {_HEADER: json.dumps(header)}
        )


def load_cache(
    path: str | os.PathLike,
    *,
    pipeline: StreamInferencePipeline,
    sharding: Placement | None = None,
) -> StreamInferencePipelineCache:
    """Sessions as `save_cache` wrote them.

    Their next chunks equal those of an unbroken rollout, bit for bit on the same kind
    of device. Between kinds of devices the padding of key/value buffers is adapted;
    numbers then differ as they do between devices.

    Args:
        path: The file.
        pipeline: Of the settings that the session was saved with; weights may lie
            elsewhere.
        sharding: Where the cache lives, as in `initialize_cache`.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is no session, damaged, or of another pipeline: says in what.
    """
    path = pathlib.Path(path).expanduser()
    _ = pipeline.components  # loads the classes that a cache can hold
    header = _read_header(path)
    _check_settings(path, header["settings"], _settings(pipeline))
    tensors, _ = safetensors_format.read_safetensors(path)
    arrays = {name: jnp.asarray(tensor.read()) for name, tensor in tensors.items()}
    try:
        cache = tree.build(header["structure"], arrays)
    except ValueError as error:
        raise ValueError(f"{path} cannot be taken up: {error}.") from None
    if not isinstance(cache, StreamInferencePipelineCache):
        raise ValueError(f"{path} holds no session but a {type(cache).__name__}.")
    transformer_cache = _with_slots(path, pipeline, cache.transformer_cache)
    cache = dataclasses.replace(cache, transformer_cache=transformer_cache)
    return _placed(cache, sharding)


def read_notes(path: str | os.PathLike) -> dict[str, Any]:
    """What `save_cache` was given as `notes`.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is no session.
    """
    return dict(_read_header(pathlib.Path(path).expanduser())["notes"])


def _read_header(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no session at {path}.")
    stored = safetensors_format.read_safetensors_header(path).get("__metadata__", {})
    try:
        header = json.loads(stored[_HEADER])
        version = header["format"]
        parts = [header[name] for name in ("settings", "notes", "structure")]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(
            f"{path} is no session, as fdjax.save_cache or --save_session writes it."
        ) from None
    if version != _FORMAT or not all(isinstance(part, dict) for part in parts):
        raise ValueError(
            f"{path} must be a session of format {_FORMAT}, it is of format {version}."
        )
    return header


def _settings(pipeline: StreamInferencePipeline) -> dict[str, Any]:
    """What of a pipeline's config a session depends on: values by dotted path."""
    found: dict[str, Any] = {}

    def visit(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                visit(child, f"{path}.{name}" if path else name)
        elif isinstance(node, list):
            for number, child in enumerate(node):
                visit(child, f"{path}[{number}]")
        elif not _FREE.fullmatch(path):
            # A module may move; the class is the same.
            is_class = path.endswith("_class") and isinstance(node, str)
            found[path] = node.rpartition(":")[2] if is_class else node

    visit(json.loads(to_json(pipeline.config)), "")
    return found


def _check_settings(
    path: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any]
) -> None:
    nothing = object()
    differing = [
        name
        for name in sorted({*there, *here})
        if there.get(name, nothing) != here.get(name, nothing)
    ]
    if differing:
        shown = "; ".join(
            f"{name}: {there.get(name, 'nothing')!r} there, "
            f"{here.get(name, 'nothing')!r} here"
            for name in differing[:5]
        )
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(f"{path} is a session of another pipeline: {shown}{more}.")


def _with_slots(
    path: pathlib.Path, pipeline: StreamInferencePipeline, cache: PyTree
) -> PyTree:
    """The transformer's cache with the padding that this kind of device has.

    Slots behind the capacity are padding: always zero and never seen.
    """
    transformer = pipeline.diffusion_model.transformer
    if not (isinstance(transformer, StreamingDiT) and isinstance(cache, StreamCache)):
        return cache
    layers = transformer.layout.tokens(cache.height, cache.width)

    kv: KVCache = cache.kv
    if not kv.keys:
        return cache
    try:
        keys = [storage.resized(*pair) for pair in zip(kv.keys, layers, strict=True)]
        values = [
            storage.as_stored(storage.resized(storage.values_by_slot(buffer), layer))
            for buffer, layer in zip(kv.values, layers, strict=True)
        ]
    except ValueError as error:
        raise ValueError(f"{path} does not fit: {error}.") from None
    kv = dataclasses.replace(kv, keys=tuple(keys), values=tuple(values))
    return dataclasses.replace(cache, kv=kv)


def _committed(leaf: Array) -> Array:
    """An array that is bound to its device, as what a compiled step gives is.

    Otherwise the next step would be compiled for the loaded arrays, and then again for
    its own. Keys stay as they are, since no step gives new ones.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jax.device_put(leaf, leaf.sharding)


def _placed(
    cache: StreamInferencePipelineCache, sharding: Placement | None
) -> StreamInferencePipelineCache:
    if sharding is None:
        return jax.tree.map(_committed, cache)
    names = ["transformer_cache", "encoder_cache", "decoder_cache"]
    names += ["autoregressive_index"]
    if isinstance(sharding, Mesh | Sharding):
        names += ["final_state"]
    parts = {name: getattr(cache, name) for name in names}
    placed = jax.device_put(parts, resolve(sharding, parts, CACHE))
    return dataclasses.replace(cache, **placed)
