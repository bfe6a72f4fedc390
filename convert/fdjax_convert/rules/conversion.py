"""Matches the tensors of a checkpoint with a table and with what has to be filled."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from fdjax.checkpoint.tensors import (
    QUANTISED,
    LazyTensor,
    as_lazy,
    cast,
    common_dtype,
    contiguous,
    is_finite,
    is_float,
)
from fdjax_convert.rules import matching
from fdjax_convert.rules.patterns import fill_target, parse_pattern
from fdjax_convert.rules.problems import Problems
from fdjax_convert.rules.rules import Drop, Rule

_CHECK_VALUES_BELOW = 1 << 30
# Bytes. A checkpoint that does not fit is refused before its values are read, but the
# values of a small one are looked at first: one message then names the NaNs as well.


@dataclasses.dataclass(frozen=True)
class Step:
    """One application of a rule: these keys give these leaves.

    Attributes:
        rule: The rule.
        keys: Source keys, in the order of the rule's sources.
        paths: Paths of the leaves, in the order of the rule's targets.
    """

    rule: Rule
    keys: tuple[str, ...]
    paths: tuple[str, ...]


class Conversion:
    """A checkpoint matched with a table and a target; nothing has been read yet.

    Building it checks all keys, leaves and shapes. `lazy_leaves()` then reads tensor
    by tensor on the host; `placing.place` does on the devices.

    Args:
        source: Tensors by key, wrappers and prefixes removed.
        rules: The table.
        target_shapes: Nested dict of `jax.ShapeDtypeStruct`: what has to be filled.
        dtype: Type to cast floating tensors to; None keeps what is stored.

    Raises:
        ConversionError: With every key that no rule or more than one rule matches,
            every leaf that is not filled or filled twice, and every wrong shape.
    """

    def __init__(
        self,
        source: Mapping[str, Any],
        rules: Sequence[Rule],
        target_shapes: Mapping[str, Any],
        dtype: Any = None,
    ):
        self.source = {key: as_lazy(value) for key, value in source.items()}
        self.targets = traverse_util.flatten_dict(target_shapes, sep="/")
        self.dtype = None if dtype is None else np.dtype(dtype)
        self.steps: list[Step] = []
        self.duplicates: list[Step] = []
        self.problems = problems = Problems()
        self._match(rules, problems)
        self._check_types(problems)
        self._check_shapes(problems)
        if problems and self.source_bytes < _CHECK_VALUES_BELOW:
            for step in self.steps + self.duplicates:
                self._read(step, problems)
        problems.check()

    @property
    def source_bytes(self) -> int:
        """Size in bytes of the tensors that are used."""
        return sum(map(self.num_bytes, self.steps))

    def lazy_leaves(self) -> dict[str, LazyTensor]:
        """The leaves by path, each made when it is read; call `finish` after that.

        Values may be read-only views of the file, and need not be contiguous.
        """
        leaves = {}
        for step in self.steps:
            dtype = common_dtype(self.source[key].dtype for key in step.keys)
            # Integers, such as tables of indices, keep their type.
            wanted = self.dtype if is_float(dtype) else None
            for slot, path in enumerate(step.paths):
                leaves[path] = LazyTensor(
                    tuple(self.targets[path].shape),
                    dtype if wanted is None else wanted,
                    functools.partial(self._make, step, slot, wanted),
                    functools.partial(self.release, step),
                )
        return leaves

    def finish(self) -> None:
        """Checks aliases, and raises if any value that was read was bad.

        Raises:
            ConversionError: With every tensor that holds NaNs or infinities, or that
                overflows in the type it was cast to, and every alias that differs.
        """
        self._check_duplicates()
        self.problems.check()

    def shapes_of(self, step: Step) -> matching.Shapes:
        """The shapes of the leaves of one step."""
        return tuple(tuple(self.targets[path].shape) for path in step.paths)

    def release(self, step: Step) -> None:
        """Lets the tensors of one step go."""
        for key in step.keys:
            self.source[key].release()

    def _leaves(self, step: Step, arrays: Sequence[np.ndarray]) -> tuple[Any, ...]:
        return matching.to_flax(step.rule, arrays, self.shapes_of(step))

    def make(self, step: Step, dtypes: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """The leaves of one step, on the host; what is wrong with them is noted.

        Args:
            step: One of `steps`.
            dtypes: What to cast each leaf to; None keeps its type.
        """
        leaves = self._leaves(step, self._read(step, self.problems))
        made = []
        for leaf, dtype in zip(leaves, dtypes, strict=True):
            narrow = cast(leaf, dtype)
            # NaNs of the source were noted when it was read; this is the cast's doing.
            if narrow is not leaf and is_finite(leaf) and not is_finite(narrow):
                self.problems.add(step.keys[0], f"overflows in {np.dtype(dtype)}")
            made.append(narrow)
        return tuple(made)

    def num_bytes(self, step: Step) -> int:
        """Size of the tensors of one step."""
        return sum(self.source[key].nbytes for key in step.keys)

    def _make(self, step: Step, slot: int, dtype: Any) -> np.ndarray:
        return self.make(step, [dtype] * len(step.paths))[slot]

    def _match(self, rules: Sequence[Rule], problems: Problems) -> None:
        """Finds the rule of every key and the key of every leaf."""
        # By rule and the values of its groups: the keys, by their place in its sources.
        found: dict[tuple[int, tuple[str, ...]], dict[int, str]] = {}
        patterns = [
            (index, slot, re.compile(source))
            for index, rule in enumerate(rules)
            for slot, source in enumerate(rule.sources)
        ]
        for key in self.source:
            hits = [
                (index, slot, match)
                for index, slot, pattern in patterns
                if (match := pattern.fullmatch(key))
            ]
            if not hits:
                problems.add(key, "unknown key, no rule matches it")
            elif len(hits) > 1:
                names = " and ".join(rules[i].sources[slot] for i, slot, _ in hits)
                problems.add(key, f"matched by several rules: {names}")
            elif not isinstance(rules[hits[0][0]].target, Drop):
                index, slot, match = hits[0]
                found.setdefault((index, match.groups()), {})[slot] = key
        steps = []
        for (index, values), slots in found.items():
            rule = rules[index]
            keys = [parse_pattern(source).fill(values) for source in rule.sources]
            for slot, key in enumerate(keys):
                if slot not in slots:
                    problems.add(
                        key, f"missing, needed with {next(iter(slots.values()))}"
                    )
            if len(slots) == len(keys):
                paths = tuple(fill_target(target, values) for target in rule.targets)
                steps.append(Step(rule, tuple(keys), paths))
        self._fill(rules, steps, problems)

    def _fill(
        self, rules: Sequence[Rule], steps: Sequence[Step], problems: Problems
    ) -> None:
        """Settles which step fills which leaf; aliases give way to the real names."""
        filled: dict[str, str] = {}
        # False sorts before True: the real names first.
        for step in sorted(steps, key=lambda step: step.rule.alias):
            if step.rule.alias and all(path in filled for path in step.paths):
                self.duplicates.append(step)
                continue
            self.steps.append(step)
            for path in step.paths:
                if path not in self.targets:
                    problems.add(step.keys[0], f"fills {path}, which does not exist")
                elif path in filled:
                    problems.add(path, f"filled by {filled[path]} and {step.keys[0]}")
                filled.setdefault(path, step.keys[0])
        for path in self.targets:
            if path not in filled:
                names = " or ".join(matching.keys_of(path, rules)) or "no rule gives it"
                problems.add(path, f"not filled, missing key: {names}")

    def _check_types(self, problems: Problems) -> None:
        """Refuses integers, booleans and complex numbers where floats are wanted."""
        for step in self.steps + self.duplicates:
            wanted = [self.targets[path] for path in step.paths if path in self.targets]
            if not any(is_float(leaf.dtype) for leaf in wanted):
                continue
            for key in step.keys:
                dtype = self.source[key].dtype
                if not is_float(dtype):
                    problems.add(key, f"holds {dtype}, {QUANTISED}")

    def _check_shapes(self, problems: Problems) -> None:
        """Compares what the transforms give with what the architecture has."""
        for step in self.steps + self.duplicates:
            if any(path not in self.targets for path in step.paths):
                continue  # reported already
            given = tuple(self.source[key].shape for key in step.keys)
            listed = ", ".join(str(list(shape)) for shape in given)
            all_wanted = self.shapes_of(step)
            try:
                shapes = matching.shapes_to_flax(step.rule, given, all_wanted)
            except ValueError as error:
                name = step.rule.transform.name
                problems.add(
                    step.keys[0], f"shape {listed} does not suit {name}: {error}"
                )
                continue
            for shape, wanted in zip(shapes, all_wanted, strict=True):
                if shape != wanted:
                    problems.add(
                        step.keys[0],
                        f"shape {listed} gives {list(shape)}, the architecture "
                        f"has {list(wanted)}",
                    )

    def _read(self, step: Step, problems: Problems) -> list[np.ndarray]:
        """Reads the tensors of one step and looks for NaNs and infinities."""
        arrays = [self.source[key].read() for key in step.keys]
        for key, array in zip(step.keys, arrays, strict=True):
            if not is_finite(array):
                problems.add(key, "holds NaN or infinite values")
        return arrays

    def _check_duplicates(self) -> None:
        """Compares every alias with the tensor that was used."""
        used = {path: step for step in self.steps for path in step.paths}
        for alias in self.duplicates:
            values = self._leaves(alias, self._read(alias, self.problems))
            for path, value in zip(alias.paths, values, strict=True):
                step = used[path]
                arrays = [self.source[key].read() for key in step.keys]
                other = self._leaves(step, arrays)[step.paths.index(path)]
                if not np.array_equal(value, other):
                    self.problems.add(alias.keys[0], f"must equal {step.keys[0]}")


def convert(
    source: Mapping[str, Any],
    rules: Sequence[Rule],
    target_shapes: Mapping[str, Any],
    dtype: Any = None,
) -> dict[str, Any]:
    """Turns a checkpoint into params (nested dicts of numpy arrays).

    Args:
        source: Tensors by key, wrappers and prefixes removed: arrays or `LazyTensor`s.
        rules: The table.
        target_shapes: Nested dict of `jax.ShapeDtypeStruct`, from `jax.eval_shape`.
        dtype: Type to cast floating tensors to; None keeps what is stored.

    Returns:
        Params of the structure of `target_shapes`, in memory of their own.

    Raises:
        ConversionError: If key, leaf, shape or value does not fit; lists all problems.
    """
    conversion = Conversion(source, rules, target_shapes, dtype)
    leaves = {}
    for path, leaf in conversion.lazy_leaves().items():
        # A copy, as what was read may be a view of the file.
        leaves[path] = np.array(contiguous(leaf.read()))
        leaf.release()
    conversion.finish()
    return traverse_util.unflatten_dict(leaves, sep="/")
