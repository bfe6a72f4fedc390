"""Single rules at work: on arrays, on shapes, and on the names of leaves."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fdjax_convert.rules.patterns import parse_pattern, target_pattern

if TYPE_CHECKING:
    from fdjax_convert.rules.rules import Rule


def to_flax(rule: Rule, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The leaves, from the tensors."""
    one = isinstance(rule.source, str)
    result = rule.transform.to_flax(arrays[0] if one else tuple(arrays))
    return result if isinstance(result, tuple) else (result,)


def to_torch(rule: Rule, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The tensors, from the leaves: the inverse of `to_flax`."""
    one = isinstance(rule.target, str)
    result = rule.transform.to_torch(arrays[0] if one else tuple(arrays))
    return result if isinstance(result, tuple) else (result,)


# The blocks of a network are alike, and so are the shapes that go through a rule. The
# arrays that stand in for the tensors take a byte per element, or none at all.


@functools.lru_cache(maxsize=4096)
def shapes_to_flax(
    rule: Rule, shapes: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...]:
    """The shapes that `to_flax` gives; ValueError if these do not suit it."""
    stand_ins = [np.broadcast_to(np.False_, shape) for shape in shapes]
    return tuple(result.shape for result in to_flax(rule, stand_ins))


@functools.lru_cache(maxsize=4096)
def shapes_to_torch(
    rule: Rule, shapes: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...]:
    """The shapes that `to_torch` gives; ValueError if these do not suit it."""
    stand_ins = [np.broadcast_to(np.False_, shape) for shape in shapes]
    return tuple(result.shape for result in to_torch(rule, stand_ins))


def load_torch(rule: Rule, leaves: Sequence[Any], slot: int) -> np.ndarray:
    """Reads leaves and returns one of the tensors they make."""
    arrays = [leaf.read() if hasattr(leaf, "read") else leaf for leaf in leaves]
    return to_torch(rule, [np.asarray(array) for array in arrays])[slot]


def rules_of(path: str, rules: Sequence[Rule]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields (index, group values) of the rules that fill a leaf, aliases left out."""
    for index, rule in enumerate(rules):
        if rule.alias:
            continue
        for target in rule.targets:
            pattern = _target_expression(target, parse_pattern(rule.sources[0]).groups)
            if match := pattern.fullmatch(path):
                values = (
                    match[f"g{number + 1}"] for number in range(len(match.groups()))
                )
                yield index, tuple(values)


def keys_of(path: str, rules: Sequence[Rule]) -> list[str]:
    """The keys that fill a leaf, written out."""
    return [
        parse_pattern(source).fill(values)
        for index, values in rules_of(path, rules)
        for source in rules[index].sources
    ]


@functools.cache
def _target_expression(target: str, groups: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(target_pattern(target, groups))
