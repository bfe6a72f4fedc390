"""All that a session holds as JSON and arrays, and the session again from them.

Chunks are thousands, so they are columns: controls that are alike are stacked, as are
thumbnails, and conditions are a table to which chunks refer. What is read may come from
anywhere: nothing of it is executed, and `fdjax.session.fit` looks whether it fits.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fdjax.axes import Array, PyTree
from fdjax.checkpoint import files
from fdjax.contract.conditioner import Conditions
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.session import tree
from fdjax.session.journal import Entry, Row
from fdjax.session.timeline import Event, Start, Step

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionData:
    """A session as a value.

    Attributes:
        start: What it began with.
        cache: The newest one, ready.
        conditions: Those of the newest chunk.
        upcoming: Those to come, one per chunk.
        journal: The way back, oldest first, up to the newest chunk.
        steps: The committed chunks.
        undone: Chunks that were undone, the next one last.
        events: Those whose chunk is to come.
        seen: Ids of all events.
    """

    start: Start
    cache: StreamInferencePipelineCache
    conditions: Conditions
    upcoming: tuple[Conditions, ...]
    journal: tuple[Entry, ...]
    steps: tuple[Step, ...]
    undone: tuple[Step, ...]
    events: tuple[Event, ...]
    seen: frozenset[str]


_OF_THE_PLACE = frozenset(("cache", "journal"))
"""Fields that belong to where a session lives, and not to its handle."""


def collect(
    handle: Mapping[str, Any],
    cache: StreamInferencePipelineCache,
    entries: Sequence[Entry | Row],
    way_back: int | None,
) -> SessionData:
    """What a handle holds.

    Args:
        handle: Its attributes, each field of the value behind an underscore.
        cache: The newest one.
        entries: The way back.
        way_back: How many of them are wanted; None: all.

    Raises:
        ValueError: `way_back` is negative.
    """
    if way_back is not None and way_back < 0:
        raise ValueError(f"way_back must be >= 0, got {way_back}; 0 keeps nothing.")
    skipped = 0 if way_back is None else max(len(entries) - way_back, 0)
    names = {field.name for field in dataclasses.fields(SessionData)}
    own = {name: handle[f"_{name}"] for name in names - _OF_THE_PLACE}
    kept = tuple(entry.resolve() for entry in entries[skipped:])
    return SessionData(**own, cache=cache, journal=kept)


def handed_on(data: SessionData) -> dict[str, Any]:
    """The attributes of a handle, as `collect` takes them, but for where it lives."""
    return {
        f"_{field.name}": getattr(data, field.name)
        for field in dataclasses.fields(data)
        if field.name not in _OF_THE_PLACE
    }


def describe(data: SessionData) -> tuple[dict[str, Any], dict[str, Array]]:
    """JSON without the cache's structure, and arrays by name without the cache's.

    Raises:
        ValueError: A control or a condition holds what no file can.
    """
    arrays: dict[str, Array] = {}

    def described(value: PyTree, name: str) -> Any:
        structure, found = tree.describe(value, name)
        arrays.update(found)
        return structure

    chunks = (*data.steps, *data.undone)
    table = _Table()
    header = {
        "start": {
            "conditions": table.number(data.start.conditions),
            "pixel_height": data.start.pixel_height,
            "pixel_width": data.start.pixel_width,
            "key": described(data.start.key, "start.key"),
        },
        "current": table.number(data.conditions),
        "upcoming": [table.number(each) for each in data.upcoming],
        "num_steps": len(data.steps),
        "chunks": {
            "conditions": [table.number(step.conditions) for step in chunks],
            "upcoming": {
                str(number): [table.number(each) for each in step.upcoming]
                for number, step in enumerate(chunks)
                if step.upcoming
            },
            "event_ids": {
                str(number): list(step.event_ids)
                for number, step in enumerate(chunks)
                if step.event_ids
            },
            "images": described(_stacked_images(chunks), "images"),
        },
        "events": [[event.event_id, event.chunk] for event in data.events],
        "controls": _describe_controls(
            [step.control for step in chunks] + [each.control for each in data.events],
            arrays,
        ),
        "seen": sorted(data.seen),
        "journal": [
            {"is_first": entry.is_first, "arrays": described(entry.arrays, f"way.{n}")}
            for n, entry in enumerate(data.journal)
        ],
    }
    header["conditions"] = [
        described(each, f"conditions.{n}") for n, each in enumerate(table.items)
    ]
    return header, arrays


def build(
    header: Mapping[str, Any],
    cache: StreamInferencePipelineCache,
    *,
    on_host: Arrays,
    on_device: Arrays,
) -> SessionData:
    """The session that `describe` took apart; its journal is on the host.

    Args:
        header: From `describe`.
        cache: Beside it.
        on_host: Arrays by name.
        on_device: The same.

    Raises:
        ValueError: Something is missing, or is not what it must be.
    """
    try:
        return _build(header, cache, on_host, on_device)
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        reason = files.shorten(repr(error))
        raise ValueError(f"its timeline is damaged: {reason}") from None


def _build(
    header: Mapping[str, Any],
    cache: StreamInferencePipelineCache,
    arrays: Arrays,
    on_device: Arrays,
) -> SessionData:
    table = [_conditions(tree.build(each, on_device)) for each in header["conditions"]]
    chunks, num_steps = header["chunks"], _count(header["num_steps"])
    numbers = chunks["conditions"]
    controls = build_controls(header["controls"], arrays)
    if num_steps > len(numbers) or len(controls) != len(numbers) + len(
        header["events"]
    ):
        raise ValueError("its timeline is damaged: columns differ in length")
    images = _unstacked_images(tree.build(chunks["images"], arrays), len(numbers))

    def picked(rows: Sequence[Any]) -> tuple[Conditions, ...]:
        return tuple(table[_count(row)] for row in rows)

    def step(number: int) -> Step:
        ahead = len(numbers) - 1 - number  # undone ones are stored newest first
        return Step(
            index=number if number < num_steps else num_steps + ahead,
            control=controls[number],
            event_ids=_texts(chunks["event_ids"].get(str(number), ())),
            conditions=table[_count(numbers[number])],
            upcoming=picked(chunks["upcoming"].get(str(number), ())),
            image=images[number],
        )

    steps = tuple(map(step, range(len(numbers))))
    events = tuple(
        Event(event_id=_texts([name])[0], chunk=_count(chunk), control=control)
        for (name, chunk), control in zip(
            header["events"], controls[len(numbers) :], strict=True
        )
    )
    start = header["start"]
    sizes = start["pixel_height"], start["pixel_width"]
    return SessionData(
        start=Start(
            conditions=table[_count(start["conditions"])],
            pixel_height=None if sizes[0] is None else _count(sizes[0]),
            pixel_width=None if sizes[1] is None else _count(sizes[1]),
            key=tree.build(start["key"], arrays),
        ),
        cache=cache,
        conditions=table[_count(header["current"])],
        upcoming=picked(header["upcoming"]),
        journal=tuple(_entry(each, arrays) for each in header["journal"]),
        steps=steps[:num_steps],
        undone=steps[num_steps:],
        events=events,
        seen=frozenset(_texts(header["seen"])),
    )


class _Table:
    """Conditions by number; one that is met again has its number."""

    def __init__(self) -> None:
        self.items: list[Conditions] = []
        self._numbers: dict[int, int] = {}

    def number(self, conditions: Conditions) -> int:
        found = self._numbers.setdefault(id(conditions), len(self.items))
        if found == len(self.items):
            self.items.append(conditions)
        return found


def _describe_controls(
    controls: Iterable[PyTree], arrays: dict[str, Array]
) -> dict[str, Any]:
    """Kinds of controls, and the kind and row of each; adds one array per leaf."""
    kinds: dict[str, int] = {}
    structures: list[Any] = []
    counts: list[int] = []
    columns: list[dict[str, list[Array]]] = []
    places = []
    for control in controls:
        structure, found = tree.describe(control, "control")
        shapes = {name: [str(a.dtype), a.shape] for name, a in found.items()}
        kind = kinds.setdefault(json.dumps([structure, shapes]), len(structures))
        if kind == len(structures):
            structures.append(structure)
            counts.append(0)
            columns.append({name: [] for name in found})
        for name, array in found.items():
            columns[kind][name].append(array)
        places.append([kind, counts[kind]])
        counts[kind] += 1
    for kind, column in enumerate(jax.device_get(columns)):
        for name, rows in column.items():
            # [chunks, ...]
            stacked: Any = np.stack(rows)
            arrays[f"controls.{kind}.{name}"] = stacked
    return {"kinds": structures, "places": places}


def build_controls(header: Mapping[str, Any], arrays: Arrays) -> list[PyTree]:
    """Controls from the "controls" of `describe`, whose arrays are theirs too."""
    stacks: list[dict[str, np.ndarray]] = [{} for _ in header["kinds"]]
    for name in arrays:
        if name.startswith("controls."):
            _, kind, leaf = name.split(".", 2)
            stacks[int(kind)][leaf] = arrays[name]
    controls = []
    for kind, row in header["places"]:
        number = _count(row)
        rows = {name: stack[number] for name, stack in stacks[_count(kind)].items()}
        controls.append(tree.build(header["kinds"][kind], rows))
    return controls


def _stacked_images(chunks: Sequence[Step]) -> np.ndarray | None:
    """Thumbnails as bytes: a quarter of the space, and a 255th off at most."""
    images = jax.device_get([step.image for step in chunks])
    if not images or any(image is None for image in images):
        return None
    return image_bytes(images)


def image_bytes(images: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures in [-1, 1] as uint8[chunks, B, H, W, 3]."""
    stacked = np.stack(images).astype(np.float32)
    return np.rint((np.clip(stacked, -1, 1) + 1) * 127.5).astype(np.uint8)


def _unstacked_images(stacked: Any, count: int) -> Sequence[Any]:
    if stacked is None:
        return [None] * count
    if (
        stacked.dtype != np.uint8
        or stacked.ndim != 5
        or (len(stacked) != count or stacked.shape[-1] != 3)
    ):
        raise ValueError("its thumbnails are no pictures, one per chunk")
    return [image.astype(np.float32) / 127.5 - 1 for image in stacked]


def _entry(header: Mapping[str, Any], arrays: Arrays) -> Entry:
    scratch, encoder_cache, decoder_cache, index = tree.build(header["arrays"], arrays)
    if not isinstance(header["is_first"], bool):
        raise TypeError("is_first")
    return Entry(
        scratch=scratch,
        encoder_cache=encoder_cache,
        decoder_cache=decoder_cache,
        autoregressive_index=index,
        is_first=header["is_first"],
    )


def _conditions(value: Any) -> Conditions:
    if not isinstance(value, Conditions):
        raise TypeError(f"{type(value).__name__} in place of conditions")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{str(value)[:40]} in place of a number")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(
        isinstance(value, str) for value in values
    ):
        raise TypeError("ids of events must be texts")
    return tuple(values)
