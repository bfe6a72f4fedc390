"""Replay files: a few kilobytes from which a run is made again, and compared.

    {"format": 1, "made_by": {...}, "config": {...},
     "inputs": {"controls": {"path": "walk.txt", "sha256": "...", "content": "..."}},
     "weights": {"transformer": "..."}, "chunks": ["...", ...], "sha256": "..."}

What a run was made from, hashes of the files that it read (small ones are embedded) and
of its weights, and a hash of every chunk's pixels. A bug report can attach it.
"""

import base64
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import threading
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fdjax import config as config_lib
from fdjax.axes import Params
from fdjax.checkpoint import files
from fdjax.checkpoint.metadata import installed_version
from fdjax.config import strict_json
from fdjax.config.values import field_types
from fdjax.session import container, store
from fdjax.session.settings import check_same

FORMAT = 1
_LARGEST = 4 << 20  # bytes of a file; a day's video has less
_EMBEDDED = 8 << 10  # bytes of an input
# What says where files go and how it is told, not what is made.
_OF_THE_PLACE = ("output_dir", "overwrite", "save_session", "progress", "profile")
_NO_INPUTS = ("output_dir", "save_embeddings_path", "checkpoint_path")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replay:
    """What a run was made from, and what came out.

    Attributes:
        config: Of the run, without what is of one place.
        inputs: The files that it read, by field: path, sha256, and in base64 the
            content of small ones.
        weights: From `store.weights_of`; None where they were not looked at.
        chunks: A hash of each chunk of the first output.
        made_by: From `container.made_by`.
    """

    config: Any
    inputs: Mapping[str, Mapping[str, str]]
    weights: Mapping[str, str] | None
    chunks: Sequence[str]
    made_by: Mapping[str, str] = dataclasses.field(default_factory=container.made_by)

    @property
    def is_quick(self) -> bool:
        """Whether it was compiled without most optimisations, as --tiny does."""
        return self.made_by.get("compiler") == "quick"

    def write(self, path: pathlib.Path, classes: Any) -> None:
        """Writes the file; it appears whole or not at all.

        Args:
            path: The file.
            classes: As `config.to_json` takes them.

        Raises:
            OSError: It cannot be written.
        """
        files.write_text(path, self.text(classes))

    def text(self, classes: Any) -> str:
        """What is in the file.

        Args:
            classes: As `config.to_json` takes them.
        """
        tree = {
            "format": FORMAT,
            "made_by": dict(self.made_by),
            "config": json.loads(config_lib.to_json(self.config, classes=classes)),
            "inputs": {name: dict(value) for name, value in self.inputs.items()},
            "weights": None if self.weights is None else dict(self.weights),
            "chunks": list(self.chunks),
        }
        return json.dumps(tree | {"sha256": _digest(tree)}, indent=1) + "\n"

    def check_weights(self, weights: Mapping[str, str]) -> None:
        """Refuses other weights than those of the run.

        Raises:
            ValueError: Names the components, with both hashes.
        """
        if self.weights is not None:
            check_same("the run was made with other weights", self.weights, weights)

    def with_inputs(self, config: Any, folder: pathlib.Path) -> Any:
        """The config with files that are what they were.

        Args:
            config: That of the file; what has another path is not looked at.
            folder: An empty one, in which embedded inputs are put where the files
                themselves are missing or others.

        Raises:
            ValueError: A file is missing or another one, and is not embedded.
        """
        changes = {}
        for name, stored in self.inputs.items():
            path = str(getattr(config, name, None))
            if path != stored["path"] or _hash_of(path) == stored["sha256"]:
                continue
            if "content" not in stored:
                there = "another file now" if os.path.isfile(path) else "missing"
                raise ValueError(
                    f"{name}: {files.shorten(path)} is {there}; put the file of the "
                    f"run there, or name it by --{name}."
                )
            place = folder / f"{name}{pathlib.PurePath(path).suffix}"
            place.write_bytes(base64.b64decode(stored["content"]))
            changes[name] = str(place)
        return dataclasses.replace(config, **changes)

    def warn_of_differences(self) -> None:
        """Warns if another device or version makes the video than made it."""
        try:
            what = "the same video comes within rounding, not bit for bit"
            check_same(what, self.made_by, container.made_by())
        except ValueError as difference:
            _log.warning("%s", difference)


def of_run(
    config: Any, chunks: Sequence[str], weights: Mapping[str, str] | None
) -> Replay:
    """The replay of a run that has ended.

    Args:
        config: Of the run.
        chunks: From `chunk_hash`.
        weights: From `store.weights_of`.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    neutral = {name: defaults[name] for name in _OF_THE_PLACE}
    neutral["total_blocks"] = max(len(chunks), 1)
    inputs = {name: _described(path) for name, path in _input_files(config).items()}
    config = dataclasses.replace(config, **neutral)
    return Replay(config=config, inputs=inputs, weights=weights, chunks=tuple(chunks))


def read(path: pathlib.Path, classes: Any) -> Replay:
    """A replay file, which may come from anyone.

    Args:
        path: The file.
        classes: As `config.from_json` takes them.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is none, was cut short or edited, or is of another version.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no replay file {files.shorten(path)}.")
    tree = _parsed(path)
    version = tree["format"]
    if version != FORMAT:
        raise ValueError(
            f"must be a replay of format {FORMAT}, it is of format "
            f"{files.shorten(version)}; this is fdjax {installed_version()}."
        )
    if _digest({name: tree[name] for name in tree if name != "sha256"}) != tree.get(
        "sha256"
    ):
        raise ValueError(
            "was edited: its checksum is of another content; to change a run, take "
            "--config and its .config.json, or flags."
        )
    try:
        config = config_lib.from_json(json.dumps(tree["config"]), classes=classes)
        return Replay(
            config=config,
            inputs={
                name: _checked_input(tree["inputs"][name]) for name in tree["inputs"]
            },
            weights=None if tree["weights"] is None else _texts(tree["weights"]),
            chunks=tuple(_texts(dict(enumerate(tree["chunks"]))).values()),
            made_by=_texts(tree["made_by"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        there = tree.get("made_by") or {}
        by = there.get("fdjax") if isinstance(there, dict) else None
        reason = error.args[0] if error.args else error
        raise ValueError(
            f"{files.shorten(reason, 300)} (it was made by fdjax {files.shorten(by)}, "
            f"this is {installed_version()})"
        ) from None


def chunk_hash(chunk: np.ndarray) -> str:
    """16 hexadecimal digits of the SHA-256 of a chunk's shape, type and values."""
    digest = hashlib.sha256(f"{chunk.dtype} {chunk.shape}".encode())
    digest.update(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


class WeightHashes:
    """Hashes of the weights, made beside the stream on a thread.

    None in a run of several processes, which must all do the same in the same order.

    Args:
        params: Weights; never donated.
    """

    def __init__(self, params: Params):
        self._hashes: dict[str, str] | None = None
        self._params = params
        self._thread = threading.Thread(target=self._make, daemon=True, name="hash")
        if jax.process_count() == 1:
            self._thread.start()

    def _make(self) -> None:
        try:
            self._hashes = store.weights_of(self._params)
        except Exception as error:  # what a device can do; the video does not need them
            _log.debug("The weights were not hashed: %r", error)

    def check(self, expected: Replay | None, resumed: str | os.PathLike | None) -> None:
        """Refuses weights other than those of a run or of a session.

        Args:
            expected: The run, if there is one; its hashes are waited for.
            resumed: The session's file.

        Raises:
            ValueError: Names the components, with both hashes.
        """
        if expected is None and resumed is None:
            return
        hashes = self.get(wait=True)
        if hashes is not None and expected is not None:
            expected.check_weights(hashes)
        if hashes is not None and resumed is not None:
            store.check_weights_of(resumed, hashes)

    def get(self, *, wait: bool) -> dict[str, str] | None:
        """The hashes; None where they are not to be had, or not there yet."""
        if wait and self._thread.is_alive():
            self._thread.join()
        return self._hashes


def _parsed(path: pathlib.Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"must be of at most {_LARGEST} bytes; is it another file?")
    try:
        tree = strict_json.parse(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = files.shorten(error)
        raise ValueError(
            f"is no whole replay file, as fdjax-run writes it: {reason}."
        ) from None
    if not isinstance(tree, dict) or "format" not in tree or "chunks" not in tree:
        raise ValueError("is no replay file, as fdjax-run writes it.")
    return tree


def _digest(tree: Mapping[str, Any]) -> str:
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _texts(values: Any) -> dict[Any, str]:
    if not isinstance(values, dict) or not all(
        isinstance(value, str) for value in values.values()
    ):
        raise TypeError("it must hold texts by name")
    return values


def _checked_input(value: Any) -> dict[str, str]:
    stored = _texts(value)
    if not {"path", "sha256"} <= stored.keys():
        raise ValueError("an input must have a path and a sha256")
    try:
        base64.b64decode(stored.get("content", ""), validate=True)
    except ValueError:
        raise ValueError("an input's content must be base64") from None
    return stored


def _input_files(config: Any) -> dict[str, str]:
    """Fields that name a file which is there."""
    found = {}
    for name, annotation in field_types(type(config)).items():
        value = getattr(config, name, None)
        kinds = (annotation, *typing.get_args(annotation))
        if name in _NO_INPUTS or pathlib.Path not in kinds or value is None:
            continue
        path = os.fspath(value)
        # A text may be as long as it likes; what is at a URL is not looked at.
        if len(path) < 4096 and os.path.isfile(path):
            found[name] = path
    return found


def _described(path: str) -> dict[str, str]:
    stored = {"path": path, "sha256": _hash_of(path) or ""}
    if os.path.getsize(path) <= _EMBEDDED:
        content = pathlib.Path(path).read_bytes()
        stored["content"] = base64.b64encode(content).decode()
    return stored


def _hash_of(path: str) -> str | None:
    """SHA-256 of a file; None if there is none."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
