"""Saves live sessions to a file and takes them up again, bit for bit.

A file holds the arrays of a cache, its structure, the settings of the pipeline that it
belongs to and a hash of the weights, and of a `Session` all else that it holds: see
`fdjax.session.container` and `saved`. The weights themselves are not in it.
"""

import dataclasses
import io
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding

from fdjax.axes import Array, Params, PyTree
from fdjax.checkpoint import files
from fdjax.checkpoint.fingerprint import fingerprints
from fdjax.checkpoint.tensors import LazyTensor
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.session import container, fit, journal, saved, tree
from fdjax.session.saved import SessionData
from fdjax.session.settings import check_same, settings_of
from fdjax.sharding import CACHE, Placement, resolve
from fdjax.streaming import storage
from fdjax.streaming.cache import KVCache, StreamCache
from fdjax.streaming.dit import StreamingDiT

_PARTS = "transformer", "encoder", "decoder"  # whose weights a rollout reads
# What may differ between two pipelines that can take up each other's sessions: where
# weights are, what only a session's beginning reads, and padding, which is mapped.
_FREE = re.compile(
    r"(name|conditioner(\..*)?|(.*\.)?(seed|slot_multiple|\w*_path|latents_per_pass))"
)
_log = logging.getLogger(__name__)


def save_cache(
    path: str | os.PathLike,
    cache: StreamInferencePipelineCache,
    *,
    pipeline: StreamInferencePipeline,
    params: Params | None = None,
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
        params: The weights that made it, of which a hash is kept.
        notes: Whatever else is to be known, as JSON; `read_notes` gives it back.
        overwrite: Replace what is at `path`.

    Raises:
        FileExistsError: There is something at `path`.
        ValueError: The cache was used up by `donate=True`, or holds what no file can.
        OSError: The file cannot be written.
    """
    path = _free_place(path, overwrite)
    for leaf in jax.tree.leaves(cache):
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                "save_cache was given a cache that was used up by donate=True; save "
                "the one that the donating call returned."
            )
    weights = None if params is None else weights_of(params)
    header, arrays = _described(cache, pipeline, weights)
    _write(path, header | {"notes": dict(notes or {})}, arrays)


def load_cache(
    path: str | os.PathLike,
    *,
    pipeline: StreamInferencePipeline,
    params: Params | None = None,
    sharding: Placement | None = None,
) -> StreamInferencePipelineCache:
    """Sessions as `save_cache`, or one as `Session.save` wrote them.

    Their next chunks equal those of an unbroken rollout, bit for bit on the same kind
    of device with the same versions; what differs is logged as a warning. Between kinds
    of devices the padding of key/value buffers is adapted.

    Args:
        path: The file.
        pipeline: Of the settings that the session was saved with; weights may lie
            elsewhere.
        params: Weights; refused if their hash is another one than that in the file.
        sharding: Where the cache lives, as in `initialize_cache`.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is no session, damaged, or of another pipeline or other weights:
            says in what.
    """
    path = pathlib.Path(path).expanduser()
    contents = container.read(str(path), path)
    cache = _cache(str(path), contents, pipeline)
    if params is not None:
        check_weights(str(path), contents.header, weights_of(params))
    return _placed(cache, sharding)


def read_notes(path: str | os.PathLike) -> dict[str, Any]:
    """What `save_cache` was given as `notes`.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It is no session.
    """
    notes = container.read_header(pathlib.Path(path).expanduser()).get("notes", {})
    return dict(notes) if isinstance(notes, dict) else {}


def pipeline_settings(pipeline: StreamInferencePipeline) -> dict[str, Any]:
    """What pipelines must share to take up each other's sessions."""
    return settings_of(pipeline.config, _FREE)


def weights_of(params: Params) -> dict[str, str]:
    """Hashes of the weights that a rollout reads, by component."""
    return fingerprints(params, only=_PARTS)


def save_session(
    path: str | os.PathLike,
    data: SessionData,
    *,
    pipeline: StreamInferencePipeline,
    weights: Mapping[str, str],
    overwrite: bool = False,
) -> None:
    """Writes all of a session; it appears at `path` whole or not at all.

    Args:
        path: The file.
        data: The session.
        pipeline: The one that it is of.
        weights: From `weights_of`.
        overwrite: Replace what is at `path`.

    Raises:
        FileExistsError, ValueError, OSError: As in `save_cache`.
    """
    path = _free_place(path, overwrite)
    _write(path, *_all_described(data, pipeline, weights))


def session_bytes(
    data: SessionData, *, pipeline: StreamInferencePipeline, weights: Mapping[str, str]
) -> bytes:
    """What `save_session` writes.

    Raises:
        ValueError: It holds what no file can.
    """
    file = io.BytesIO()
    container.write(file, *_all_described(data, pipeline, weights))
    return file.getvalue()


def load_session(
    source: str | os.PathLike | bytes,
    *,
    pipeline: StreamInferencePipeline,
    params: Params,
    weights: Mapping[str, str],
    sharding: Mesh | Sharding | None = None,
) -> SessionData:
    """A session as `save_session` wrote it; its way back is on the host.

    Args:
        source: The file, or what is in it.
        pipeline: Of the settings that the session was saved with.
        params: Weights.
        weights: From `weights_of`.
        sharding: Where its arrays belong; by default where the weights are.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no session, damaged, or of another pipeline or other weights.
    """
    name = "what was given" if isinstance(source, bytes) else os.fspath(source)
    if not isinstance(source, bytes):
        source = pathlib.Path(source).expanduser()
    contents = container.read(name, source)
    cache = _cache(name, contents, pipeline)
    check_weights(name, contents.header, weights)
    if "session" not in contents.header:
        raise ValueError(
            f"{name} holds a cache alone, without a timeline; use fdjax.load_cache, or "
            "fdjax-run --resume."
        )
    try:
        data = saved.build(
            contents.header["session"],
            cache,
            on_host=_OnHost(contents.tensors),
            on_device=_OnDevice(contents.tensors),
        )
        fit.check(data, pipeline, params)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{name} cannot be taken up: {reason}.") from None
    placement = sharding or where(params)
    way = tuple(journal.placed(entry, placement) for entry in data.journal)
    return dataclasses.replace(data, cache=_placed(cache, placement), journal=way)


def check_weights(
    name: str, header: Mapping[str, Any], weights: Mapping[str, str]
) -> None:
    """Refuses a file of other weights; one that says nothing of them is taken.

    Args:
        name: Of the file.
        header: Its JSON.
        weights: From `weights_of`.

    Raises:
        ValueError: Names the components, with both hashes.
    """
    if header.get("weights") is not None:
        there = header["weights"] if isinstance(header["weights"], dict) else {}
        check_same(f"{name} is a session of other weights", there, weights)


def check_weights_of(path: str | os.PathLike, weights: Mapping[str, str]) -> None:
    """`check_weights` of a file.

    Raises:
        FileNotFoundError, ValueError: As `read_notes` and `check_weights`.
    """
    path = pathlib.Path(path).expanduser()
    check_weights(str(path), container.read_header(path), weights)


def where(params: Params) -> Mesh | Sharding:
    """Where weights are: the mesh, or the device."""
    leaf = next(iter(jax.tree.leaves(params)), None)
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        return sharding.mesh
    return sharding or SingleDeviceSharding(jax.devices()[0])


def _free_place(path: str | os.PathLike, overwrite: bool) -> pathlib.Path:
    path = pathlib.Path(path).expanduser().absolute()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; remove it or choose another path.")
    return path


def _described(
    cache: StreamInferencePipelineCache,
    pipeline: StreamInferencePipeline,
    weights: Mapping[str, str] | None,
) -> tuple[dict[str, Any], dict[str, Array]]:
    structure, arrays = tree.describe(cache)
    header = {
        "settings": pipeline_settings(pipeline),
        "weights": weights,
        "structure": structure,
    }
    return header, arrays


def _all_described(
    data: SessionData, pipeline: StreamInferencePipeline, weights: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Array]]:
    header, arrays = _described(data.cache, pipeline, weights)
    session, more = saved.describe(data)
    return header | {"session": session}, arrays | more


def _write(
    path: pathlib.Path, header: Mapping[str, Any], arrays: Mapping[str, Array]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.check_free_space(path, sum(array.nbytes for array in arrays.values()))
    with (
        files.explain_full_disk(path),
        files.atomic_output(path) as temporary,
        temporary.open("wb") as file,
    ):
        container.write(file, header, arrays)


class _OnHost(Mapping[str, Any]):
    """Arrays by name, read when they are first asked for, into memory of their own.

    Once each: a structure could name one of them a million times.
    """

    def __init__(self, tensors: Mapping[str, LazyTensor]):
        self._tensors = tensors
        self._read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            self._read[name] = self._make(self._tensors[name])
        return self._read[name]

    def _make(self, tensor: LazyTensor) -> Any:
        return np.array(tensor.read())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _OnDevice(_OnHost):
    """The same on the default device."""

    def _make(self, tensor: LazyTensor) -> Any:
        return jnp.array(tensor.read())


def _cache(
    name: str, contents: container.Contents, pipeline: StreamInferencePipeline
) -> StreamInferencePipelineCache:
    """The cache of a file on the default device; a warning tells what differs."""
    _ = pipeline.components  # loads the classes that a cache can hold
    header = contents.header
    here = pipeline_settings(pipeline)
    there = header.get("settings")
    if not isinstance(there, dict):
        raise ValueError(f"{name} cannot be taken up: it does not say of what it is.")
    check_same(f"{name} is a session of another pipeline", there, here)
    try:
        cache = tree.build(header.get("structure"), _OnDevice(contents.tensors))
    except ValueError as error:
        raise ValueError(f"{name} cannot be taken up: {error}.") from None
    if not isinstance(cache, StreamInferencePipelineCache):
        raise ValueError(f"{name} holds no session but a {type(cache).__name__}.")
    _warn_of_differences(name, header.get("made_by"))
    transformer_cache = _with_slots(name, pipeline, cache.transformer_cache)
    return dataclasses.replace(cache, transformer_cache=transformer_cache)


def _warn_of_differences(name: str, made_by: Any) -> None:
    try:
        check_same(
            f"{name} goes on within rounding, not bit for bit",
            made_by if isinstance(made_by, dict) else {},
            container.made_by(),
        )
    except ValueError as difference:
        _log.warning("%s", difference)


def _with_slots(name: str, pipeline: StreamInferencePipeline, cache: PyTree) -> PyTree:
    """The transformer's cache with the padding that this kind of device has.

    Slots behind the capacity are padding: always zero and never seen.
    """
    transformer = pipeline.diffusion_model.transformer
    if not (isinstance(transformer, StreamingDiT) and isinstance(cache, StreamCache)):
        return cache
    kv: KVCache = cache.kv
    try:
        if not kv.keys:
            return cache
        layers = transformer.layout.tokens(cache.height, cache.width)
        keys = [storage.resized(*pair) for pair in zip(kv.keys, layers, strict=True)]
        values = [
            storage.as_stored(storage.resized(storage.values_by_slot(buffer), layer))
            for buffer, layer in zip(kv.values, layers, strict=True)
        ]
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        reason = files.shorten(error)
        raise ValueError(f"{name} does not fit: {reason}.") from None
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
