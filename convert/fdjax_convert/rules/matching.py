"""Single rules at work: on arrays, on shapes, and on the names of leaves."""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fdjax.checkpoint.tensors import common_dtype
from fdjax_convert.rules.patterns import parse_pattern, target_pattern
from fdjax_convert.rules.rules import Rule
from fdjax_convert.rules.transforms import Transform

Shapes = tuple[tuple[int, ...], ...]


def to_flax(rule: Rule, arrays: Sequence[Any], shapes: Shapes) -> tuple[Any, ...]:
    """The leaves, from the tensors (of numpy or JAX).

    Args:
        rule: The rule.
        arrays: One for each source; several are joined in a type that holds them all.
        shapes: Of the leaves; transforms that are not `shaped` do not look at them.
    """
    return turn(rule.transform, isinstance(rule.source, str), arrays, shapes)


def turn(
    transform: Transform, one: bool, arrays: Sequence[Any], shapes: Shapes
) -> tuple[Any, ...]:
    """The same, by what counts of a rule: many rules do the same to other names."""
    value = arrays[0] if one else _of_one_type(arrays)
    result = transform.apply(value, shapes)
    return result if isinstance(result, tuple) else (result,)


def to_torch(rule: Rule, arrays: Sequence[Any]) -> tuple[Any, ...]:
    """The tensors, from the leaves: the inverse of `to_flax`."""
    one = isinstance(rule.target, str)
    result = rule.transform.to_torch(arrays[0] if one else _of_one_type(arrays))
    return result if isinstance(result, tuple) else (result,)


def _of_one_type(arrays: Sequence[Any]) -> tuple[Any, ...]:
    dtype = common_dtype(array.dtype for array in arrays)
    return tuple(a if a.dtype == dtype else a.astype(dtype) for a in arrays)


# The blocks of a network are alike, and so are the shapes that go through a rule. The
# arrays that stand in for the tensors take a byte per element, or none at all.


@functools.lru_cache(maxsize=4096)
def shapes_to_flax(rule: Rule, shapes: Shapes, wanted: Shapes) -> Shapes:
    """The shapes that `to_flax` gives; ValueError if these do not suit it."""
    stand_ins = [np.broadcast_to(np.False_, shape) for shape in shapes]
    return tuple(result.shape for result in to_flax(rule, stand_ins, wanted))


@functools.lru_cache(maxsize=4096)
def shapes_to_torch(rule: Rule, shapes: Shapes) -> Shapes:
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
            # All sources of a rule have the same groups.
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
