"""Writes params in a published layout again: the inverse of `conversion`."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from fdjax.checkpoint.tensors import LazyTensor, common_dtype, contiguous
from fdjax_convert.rules import matching
from fdjax_convert.rules.patterns import fill_target, parse_pattern
from fdjax_convert.rules.problems import Problems
from fdjax_convert.rules.rules import Rule


def to_torch(params: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Writes params back in the layout of the table: the inverse of `convert`.

    Args:
        params: Nested dict of arrays, or of what has shape, dtype and `read()`.
        rules: The table. Dropped keys and aliases are not written.

    Returns:
        Arrays by published key, dtype kept.

    Raises:
        ConversionError: With every leaf that no rule or more than one rule explains.
    """
    return {
        key: np.array(contiguous(tensor.read()))
        for key, tensor in export(params, rules).items()
    }


def export(params: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, LazyTensor]:
    """`to_torch`, tensor by tensor: nothing is transformed before it is read."""
    problems = Problems()
    leaves = traverse_util.flatten_dict(params, sep="/")
    written: dict[str, LazyTensor] = {}
    for rule, keys, paths in _inverse_steps(leaves, rules, problems):
        try:
            shapes = matching.shapes_to_torch(
                rule, tuple(leaves[path].shape for path in paths)
            )
        except ValueError as error:
            problems.add(paths[0], f"does not suit {rule.transform.name}: {error}")
            continue
        dtype = common_dtype(leaves[path].dtype for path in paths)
        arrays = [leaves[path] for path in paths]
        for slot, (key, shape) in enumerate(zip(keys, shapes, strict=True)):
            load = functools.partial(matching.load_torch, rule, arrays, slot)
            written[key] = LazyTensor(shape, dtype, load)
    problems.check()
    return written


def _inverse_steps(
    leaves: Mapping[str, Any], rules: Sequence[Rule], problems: Problems
) -> Iterator[tuple[Rule, tuple[str, ...], tuple[str, ...]]]:
    """Yields (rule, keys, paths) for every complete application of a rule."""
    # By rule and the values of its groups: the leaves that are there.
    found: dict[tuple[int, tuple[str, ...]], set[str]] = {}
    for path in leaves:
        hits = list(matching.rules_of(path, rules))
        if len(hits) == 1:
            found.setdefault(hits[0], set()).add(path)
        else:
            problems.add(
                path, "several rules write it" if hits else "no rule writes it"
            )
    for (index, values), present in found.items():
        rule = rules[index]
        paths = tuple(fill_target(target, values) for target in rule.targets)
        for path in paths:
            if path not in present:
                problems.add(path, f"missing, needed with {next(iter(present))}")
        if len(present) == len(paths):
            keys = tuple(parse_pattern(source).fill(values) for source in rule.sources)
            yield rule, keys, paths
