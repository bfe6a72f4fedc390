"""What a live session did, in a few kilobytes of JSON, and the same done again.

    {"format": 1, "made_by": {...}, "settings": {...}, "weights": {...}, "start": {...},
     "conditions": [...], "controls": {...}, "chunks": [[condition, event_ids, hash]],
     "arrays": {...}, "sha256": "..."}

Controls and small conditions are in it, large conditions by their hash alone. A chunk's
hash is that of its thumbnail, so that recording costs nothing while somebody plays.
"""

import base64
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import PyTree
from fdjax.checkpoint import files
from fdjax.checkpoint.safetensors_format import DTYPES, dtype_name
from fdjax.config import strict_json
from fdjax.contract.conditioner import Conditions
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.session import container, saved, tree
from fdjax.session.saved import SessionData
from fdjax.session.settings import check_same
from fdjax.session.timeline import Start, Step

FORMAT = 1
_EMBEDDED = 64 << 10  # bytes of one condition
_LARGEST = 8 << 20  # bytes of a recording, and of one of its arrays


def record(
    data: SessionData, settings: Mapping[str, Any], weights: Mapping[str, str]
) -> str:
    """The JSON of what a session did up to now.

    Args:
        data: The session.
        settings: Of its pipeline.
        weights: Hashes of its weights.

    Raises:
        ValueError: A control holds what no file can.
    """
    header, arrays = saved.describe(_of_the_past(data))
    hosted = {name: np.asarray(array) for name, array in arrays.items()}
    conditions = []
    for number, structure in enumerate(header["conditions"]):
        own = f"conditions.{number}."
        parts = {name: a for name, a in hosted.items() if name.startswith(own)}
        small = sum(array.nbytes for array in parts.values()) <= _EMBEDDED
        digest = _hash_of_arrays({n.removeprefix(own): a for n, a in parts.items()})
        conditions.append({"sha256": digest, "structure": structure if small else None})
        if not small:
            hosted = {name: a for name, a in hosted.items() if name not in parts}
    kept = ("conditions.", "controls.", "start.")
    content = {
        "format": FORMAT,
        "made_by": container.made_by(),
        "settings": dict(settings),
        "weights": dict(weights),
        "start": header["start"],
        "conditions": conditions,
        "controls": {
            "kinds": header["controls"]["kinds"],
            "places": header["controls"]["places"],
        },
        "chunks": [
            [number, list(step.event_ids), image_hash(step)]
            for number, step in zip(
                header["chunks"]["conditions"], data.steps, strict=False
            )
        ],
        "arrays": {
            name: _packed(array)
            for name, array in hosted.items()
            if name.startswith(kept)
        },
    }
    return json.dumps(content | {"sha256": _digest(content)}, indent=1)


def _of_the_past(data: SessionData) -> SessionData:
    """The committed chunks alone."""
    steps = tuple(dataclasses.replace(step, upcoming=()) for step in data.steps)
    conditions = steps[-1].conditions if steps else data.start.conditions
    return dataclasses.replace(
        data,
        conditions=conditions,
        upcoming=(),
        journal=(),
        steps=steps,
        undone=(),
        events=(),
    )


class Chunk(NamedTuple):
    """What a chunk was made from, and a hash of its thumbnail, None of no video."""

    control: PyTree
    conditions: Conditions
    event_ids: tuple[str, ...]
    digest: str | None


class Recording:
    """A recording that was read; it may come from anyone.

    Args:
        text: From `record`.
        pipeline: Of the settings that it was made with.
        weights: Hashes of the weights.
        settings: Of the pipeline.
        conditions: Those that are not in the recording, in its order.

    Attributes:
        start: What the session began with.
        chunks: What each was made from.

    Raises:
        ValueError: It is none, was edited, or is of another pipeline, other weights or
            other conditions: says in what.
    """

    def __init__(
        self,
        text: str | bytes,
        *,
        pipeline: StreamInferencePipeline,
        settings: Mapping[str, Any],
        weights: Mapping[str, str],
        conditions: Sequence[Conditions] = (),
    ):
        _ = pipeline.components  # loads the classes that it can hold
        content = _parsed(text)
        here = "the recording is of"
        check_same(f"{here} another pipeline", content["settings"], settings)
        check_same(f"{here} other weights", content["weights"], weights)
        try:
            self._build(content, list(conditions))
        except (KeyError, TypeError, IndexError, AttributeError, zlib.error) as error:
            reason = files.shorten(repr(error))
            raise ValueError(f"the recording is damaged: {reason}.") from None
        except ValueError as error:
            raise ValueError(f"the recording cannot be used: {error}") from None

    def _build(self, content: Mapping[str, Any], given: list[Conditions]) -> None:
        packed = content["arrays"]
        arrays: dict[str, Any] = {name: _unpacked(packed[name]) for name in packed}
        table = list(_table(content["conditions"], arrays, given))
        controls = saved.build_controls(content["controls"], arrays)
        start = content["start"]
        self.start = Start(
            conditions=table[start["conditions"]],
            pixel_height=start["pixel_height"],
            pixel_width=start["pixel_width"],
            key=tree.build(start["key"], arrays),
        )
        self.chunks = [
            Chunk(control, table[number], tuple(ids), digest)
            for control, (number, ids, digest) in zip(
                controls, content["chunks"], strict=True
            )
        ]


def image_hash(step: Step) -> str | None:
    """16 hexadecimal digits of a chunk's thumbnail; None of what is no video."""
    if step.image is None:
        return None
    [stacked] = saved.image_bytes([jax.device_get(step.image)])
    return hashlib.sha256(stacked.tobytes()).hexdigest()[:16]


def _table(
    entries: Sequence[Any], arrays: Mapping[str, Any], given: list[Conditions]
) -> Iterator[Conditions]:
    for number, entry in enumerate(entries):
        if entry["structure"] is not None:
            value = tree.build(entry["structure"], arrays)
            if not isinstance(value, Conditions):
                raise TypeError("no conditions")
            yield jax.tree.map(jnp.asarray, value)
            continue
        if not given:
            raise ValueError(
                f"condition {number} is too large to be in it; give "
                "conditions=, as encode_conditions makes them, in the same order."
            )
        value = given.pop(0)
        _, found = tree.describe(value, "c")
        own = {name.removeprefix("c."): np.asarray(a) for name, a in found.items()}
        if _hash_of_arrays(own) != entry["sha256"]:
            raise ValueError(
                f"condition {number} is another one than was given; "
                "encode the prompt and the picture that it was made with."
            )
        yield value


def _parsed(text: str | bytes) -> dict[str, Any]:
    if len(text) > _LARGEST:
        raise ValueError(f"a recording has at most {_LARGEST} bytes, got {len(text)}.")
    try:
        content = strict_json.parse(text)
    except (ValueError, RecursionError) as error:
        reason = files.shorten(error)
        raise ValueError(f"what was given is no whole recording: {reason}.") from None
    if not isinstance(content, dict) or "chunks" not in content:
        raise ValueError("what was given is no recording, as Session.replay makes it.")
    if content.get("format") != FORMAT:
        found = files.shorten(content.get("format"))
        raise ValueError(f"the recording must be of format {FORMAT}, is of {found}.")
    stored = content.pop("sha256", None)
    if stored != _digest(content):
        raise ValueError("the recording was edited: its checksum is of other content.")
    if not all(isinstance(content.get(n), dict) for n in ("settings", "weights")):
        raise ValueError("the recording is damaged: it does not say of what it is.")
    return content


def _packed(array: np.ndarray) -> list[Any]:
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9))
    return [dtype_name(array.dtype), list(array.shape), data.decode()]


def _unpacked(entry: Any) -> np.ndarray:
    name, shape, data = entry
    opened = zlib.decompressobj().decompress(base64.b64decode(data), _LARGEST)
    return np.frombuffer(opened, DTYPES[name]).reshape(shape).copy()


def _hash_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
