"""What a checkpoint is, and whether it is what was asked for."""

import dataclasses
import functools
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from fdjax import checkpoint as checkpoints
from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.tensors import LazyTensor
from fdjax.contract.component import ParametricComponent
from fdjax_convert import kinds
from fdjax_convert.formats import folders, readers, unwrap
from fdjax_convert.formats.readers import Checkpoint
from fdjax_convert.formats.values import brief_text
from fdjax_convert.rules.conversion import Conversion
from fdjax_convert.rules.export import export
from fdjax_convert.rules.problems import SUMMARIZED, ConversionError, summarize
from fdjax_convert.rules.rules import Drop, Layout, Rule
from fdjax_convert.tables import layouts

_log = logging.getLogger(__name__)
_SAMPLE = 2000  # keys that are looked at to guess a layout
_LEAST_SHARE = 0.5  # of the keys: below that, a table is not the one that was meant


def describe(layout: Layout, tensors: Mapping[str, LazyTensor]) -> str:
    """Name and size of a checkpoint, such as "Wan 1.3B T2V"."""
    return layout.describe({key: tensor.shape for key, tensor in tensors.items()})


def describe_target(layout: Layout, target_shapes: Any) -> str:
    """Name and size of what has to be filled, in the words of a layout."""
    try:
        return describe(layout, export(target_shapes, layout.rules))
    except ConversionError:  # leaves that this layout does not have
        return f"{layout.architecture} of another kind"


def unknown_keys(rules: Iterable[Rule], keys: Iterable[str]) -> list[str]:
    """Keys that no rule matches."""
    pattern = _any_of(frozenset(source for rule in rules for source in rule.sources))
    return [key for key in keys if not pattern.fullmatch(key)]


@functools.lru_cache(maxsize=64)
def _any_of(sources: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{source})" for source in sorted(sources)) or "$^")


def dropped_keys(layout: Layout, keys: Collection[str]) -> dict[str, list[str]]:
    """Keys that are left out on purpose, by reason."""
    dropped: dict[str, list[str]] = {}
    for rule in layout.rules:
        if isinstance(rule.target, Drop):
            pattern = _any_of(frozenset(rule.sources))
            found = [key for key in keys if pattern.fullmatch(key)]
            if found:
                dropped.setdefault(rule.target.reason, []).extend(found)
    return dropped


def closest(keys: Collection[str], among: Collection[Layout]) -> Layout | None:
    """The layout that knows most of the keys, if it knows at least half of them."""
    step = -(-len(keys) // _SAMPLE)
    sample = list(keys)[::step] if step > 1 else keys

    def known(layout: Layout) -> int:
        used = [rule for rule in layout.rules if not isinstance(rule.target, Drop)]
        return len(sample) - len(unknown_keys(used, sample))

    best = max(among, key=known, default=None)
    if best is None or known(best) < max(1, _LEAST_SHARE * len(sample)):
        return None
    return best


def find(path: Path, architecture: str, wrapper: str | None = None) -> Checkpoint:
    """Opens a checkpoint, and takes what is of an architecture.

    In a directory it is the file that holds such a thing; what cannot be read there is
    left out, and told if nothing is found.

    Raises:
        FileNotFoundError: There is none.
        CheckpointError: There are several, or it cannot be read.
    """
    if not path.is_dir():
        return select(readers.open_checkpoint(path, wrapper), architecture)
    below = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    candidates = [
        file
        for folder in below
        if not folder.name.startswith(".") or folder == path
        for file in folders.list_checkpoints(folder)
    ]
    if len(candidates) == 1:
        return select(readers.open_checkpoint(candidates[0], wrapper), architecture)
    fitting, unread = [], []
    for candidate in candidates:
        try:
            opened = readers.open_checkpoint(candidate, wrapper)
        except (CheckpointError, FileNotFoundError) as error:
            unread.append(str(error))
            continue
        if any(p.layout.architecture == architecture for p in _parts(opened)):
            fitting.append(opened)
    if len(fitting) == 1:
        return select(fitting[0], architecture)
    names = folders.name_list(str(c.path.relative_to(path)) for c in fitting)
    listed = folders.name_list(str(c.relative_to(path)) for c in candidates)
    reasons = "".join(f"; {reason}" for reason in unread[:3])
    raise CheckpointError(
        f"{path} holds several checkpoints of {architecture}, name one: {names}"
        if fitting
        else f"{path} holds no checkpoint of {architecture}; it holds "
        f"{listed or 'no checkpoint'}{reasons}"
    )


def _parts(opened: Checkpoint) -> tuple[layouts.Part, ...]:
    return layouts.parts(opened.tensors)


def select(opened: Checkpoint, architecture: str) -> Checkpoint:
    """The part of a checkpoint that is of an architecture, its prefix removed.

    Where that is not to be seen, the checkpoint is returned as it is. Where the same
    component is there twice, the averaged one is taken, or the one with a usual name.

    Raises:
        CheckpointError: It is there several times, and none has a usual name.
    """
    found = _parts(opened)
    prefixes = {p.prefix for p in found if p.layout.architecture == architecture}
    if not prefixes:
        return opened
    prefix = "" if "" in prefixes else _best_prefix(opened, prefixes)
    keys = layouts.members(found, prefix, opened.tensors)
    if len(keys) == len(opened.tensors) and not prefix:
        return opened
    kept = set(keys)
    return dataclasses.replace(
        opened,
        tensors={key.removeprefix(prefix): opened.tensors[key] for key in keys},
        origins={
            key.removeprefix(prefix): opened.origins.get(key, key) for key in keys
        },
        skipped=(*opened.skipped, *(key for key in opened.tensors if key not in kept)),
        alternatives=(
            *opened.alternatives,
            *(other.rstrip(".") for other in sorted(prefixes - {prefix})),
        ),
    )


def _best_prefix(opened: Checkpoint, prefixes: Collection[str]) -> str:
    names = {prefix.rstrip("."): prefix for prefix in sorted(prefixes)}
    if len(names) == 1:
        return next(iter(names.values()))
    best = unwrap.best_name(names)
    if best is None:
        raise CheckpointError(
            f"{opened.path} holds several sets of weights, choose one with --wrapper: "
            + folders.name_list(names)
        )
    return names[best]


def tell_choice(opened: Checkpoint) -> None:
    """Logs which of several sets of weights is taken."""
    if opened.alternatives:
        taken = ".".join(opened.wrapper) or opened.prefix.rstrip(".") or "the plain one"
        _log.warning(
            "%s holds several sets of weights: %s is taken, not %s",
            opened.path,
            brief_text(taken),
            folders.name_list(opened.alternatives),
        )


def match(
    checkpoint: Checkpoint,
    component: ParametricComponent,
    *,
    layout: str | None = None,
    dtype: Any = None,
) -> tuple[Layout, Conversion]:
    """Matches a checkpoint with a component; reads headers only.

    Args:
        checkpoint: What was opened.
        component: What has to be filled.
        layout: Name of the key layout; None detects it.
        dtype: Type to cast floating tensors to; None keeps what is stored.

    Raises:
        CheckpointError: It is another architecture or another size: names both.
        ConversionError: It is the right one, but keys, leaves or shapes do not fit.
    """
    keys = checkpoint.tensors
    if (kind := kinds.foreign_kind(keys)) is not None:
        raise CheckpointError(f"{checkpoint.path} is {kind}")
    known = layouts.layouts(component.architecture)
    target = checkpoints.param_shapes(component)
    if layout is None:
        found = [one for one in layouts.detect(keys) if one in known]
        guess = found[0] if found else closest(keys, known)
    else:
        guess = next((one for one in known if one.name == layout), None)
        if guess is None:
            names = ", ".join(one.name for one in known)
            raise ValueError(f"layout must be one of {names}; got {layout!r}")
    asked = describe_target(guess or known[0], target)
    if guess is None:
        raise CheckpointError(
            f"{checkpoint.path} is {what_is(checkpoint)}; you asked for {asked} "
            f"({component.architecture})"
        )
    try:
        return guess, Conversion(keys, guess.rules, target, dtype)
    except ConversionError as error:
        is_now = describe(guess, keys)
        told = f"{checkpoint.path} does not fit {asked} ({guess.name} layout)"
        if is_now != asked:
            told = f"{checkpoint.path} is {is_now}; you asked for {asked}"
        unread = [one for one in checkpoint.skipped if one.endswith(unwrap.NOT_READ)]
        raise ConversionError((*error.problems, *unread), told) from None


def what_is(checkpoint: Checkpoint) -> str:
    """One line: what the layouts make of a checkpoint, or what its keys are."""
    if (kind := kinds.foreign_kind(checkpoint.tensors)) is not None:
        return kind
    if found := describe_parts(checkpoint):
        return " and ".join(
            f"{text} ({part.layout.name} layout)" for part, text in found
        )
    lines = summarize(list(checkpoint.tensors)[:SUMMARIZED])
    shown = brief_text(", ".join(lines[:6]), 400) + (", …" if len(lines) > 6 else "")
    count = len(checkpoint.tensors)
    return f"nothing that fdjax knows, {count} tensor{'s' * (count != 1)}: {shown}"


def describe_parts(checkpoint: Checkpoint) -> list[tuple[layouts.Part, str]]:
    """The parts of a checkpoint, and each in words: "Wan 1.3B T2V under dit."."""
    told = []
    for part in _parts(checkpoint):
        inside = {
            key.removeprefix(part.prefix): tensor
            for key, tensor in checkpoint.tensors.items()
            if key.startswith(part.prefix)
        }
        under = f" under {brief_text(part.prefix)}" if part.prefix else ""
        told.append((part, describe(part.layout, inside) + under))
    return told
