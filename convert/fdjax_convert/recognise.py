"""What a checkpoint is, and whether it is what was asked for."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fdjax import checkpoint as checkpoints
from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.tensors import LazyTensor
from fdjax.contract.component import ParametricComponent
from fdjax_convert.formats import readers
from fdjax_convert.formats.readers import Checkpoint
from fdjax_convert.rules.conversion import Conversion
from fdjax_convert.rules.export import export
from fdjax_convert.rules.problems import ConversionError, summarize
from fdjax_convert.rules.rules import Drop, Layout
from fdjax_convert.tables import layouts

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


def unknown_keys(rules: Collection[Any], keys: Collection[str]) -> list[str]:
    """Keys that no rule matches."""
    patterns = [re.compile(source) for rule in rules for source in rule.sources]
    return [key for key in keys if not any(p.fullmatch(key) for p in patterns)]


def dropped_keys(layout: Layout, keys: Collection[str]) -> dict[str, list[str]]:
    """Keys that are left out on purpose, by reason."""
    dropped: dict[str, list[str]] = {}
    for rule in layout.rules:
        if isinstance(rule.target, Drop):
            patterns = [re.compile(source) for source in rule.sources]
            found = [key for key in keys if any(p.fullmatch(key) for p in patterns)]
            if found:
                dropped.setdefault(rule.target.reason, []).extend(found)
    return dropped


def closest(keys: Collection[str], among: Collection[Layout]) -> Layout | None:
    """The layout that knows most of the keys, if it knows at least half of them."""

    def known(layout: Layout) -> int:
        used = [rule for rule in layout.rules if not isinstance(rule.target, Drop)]
        return len(keys) - len(unknown_keys(used, keys))

    best = max(among, key=known, default=None)
    if best is None or known(best) < max(1, _LEAST_SHARE * len(keys)):
        return None
    return best


def find(path: Path, architecture: str, wrapper: str | None = None) -> Checkpoint:
    """Opens a checkpoint; in a directory, the one that is of an architecture.

    Raises:
        FileNotFoundError: There is none.
        CheckpointError: There are several, or it cannot be read.
    """
    if not path.is_dir():
        return readers.open_checkpoint(path, wrapper)
    folders = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    candidates = [
        file for folder in folders for file in readers.list_checkpoints(folder)
    ]
    if len(candidates) == 1:
        return readers.open_checkpoint(candidates[0], wrapper)
    fitting = []
    for candidate in candidates:
        opened = readers.open_checkpoint(candidate, wrapper)
        kinds = {layout.architecture for layout in layouts.detect(opened.tensors)}
        if architecture in kinds:
            fitting.append(opened)
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(str(c.path.relative_to(path)) for c in fitting)
    listed = ", ".join(str(c.relative_to(path)) for c in candidates) or "no checkpoint"
    raise CheckpointError(
        f"{path} holds several checkpoints of {architecture}, name one: {names}"
        if fitting
        else f"{path} holds no checkpoint of {architecture}; it holds {listed}"
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
        raise ConversionError(error.problems, told) from None


def what_is(checkpoint: Checkpoint) -> str:
    """One line: what the layouts make of a checkpoint, or what its keys are."""
    found = layouts.detect(checkpoint.tensors)
    if found:
        return " and ".join(
            f"{describe(layout, checkpoint.tensors)} ({layout.name} layout)"
            for layout in found
        )
    lines = summarize(checkpoint.tensors)
    shown = ", ".join(lines[:6]) + (", …" if len(lines) > 6 else "")
    count = len(checkpoint.tensors)
    return f"nothing that fdjax knows, {count} tensor{'s' * (count != 1)}: {shown}"
