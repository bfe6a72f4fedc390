"""Tables that turn the tensors of a published checkpoint into Flax params and back.

A table is a tuple of `Rule`s. A rule says which key (or keys) becomes which leaf (or
leaves), and by which transform:

    Rule(r"blocks\\.(\\d+)\\.ffn\\.0\\.weight", r"blocks_\\1/ffn_in/kernel", LINEAR)
    Rule(r"blocks\\.(\\d+)\\.attn\\.to_qkv\\.weight",
         (r"blocks_\\1/q/kernel", r"blocks_\\1/k/kernel", r"blocks_\\1/v/kernel"),
         chain(split(3), each(LINEAR)))                       # one key, three leaves
    Rule((r"(\\d+)\\.q\\.weight", r"(\\d+)\\.k\\.weight", r"(\\d+)\\.v\\.weight"),
         r"layers_\\1/qkv/kernel", chain(concatenate(3), LINEAR))     # and back
    Rule(r"head\\.logvar\\..*", Drop("the mean is the latent; the variance is unused"))

Outside its capture groups a source pattern is literal text (`\\.` for a dot), and every
group appears in the target, so that a table can be read in both directions: `convert`
accounts for every key and every leaf, `to_torch` writes the published layout again.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from fdjax_convert.formats.tensors import (
    LazyTensor,
    as_lazy,
    cast,
    contiguous,
    is_finite,
    is_float,
)
from fdjax_convert.rules import matching
from fdjax_convert.rules.patterns import fill_target, parse_pattern, references
from fdjax_convert.rules.problems import Problems
from fdjax_convert.rules.transforms import IDENTITY, LINEAR, Transform

_CHECK_VALUES_BELOW = 1 << 30
# Bytes. A checkpoint that does not fit is refused before its values are read, but the
# values of a small one are looked at first: one message then names the NaNs as well.


@dataclasses.dataclass(frozen=True)
class Drop:
    """Target of keys that are left out on purpose.

    Attributes:
        reason: Why nothing is lost, for the report of `--inspect`.
    """

    reason: str


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one kind of key becomes one kind of leaf.

    Attributes:
        source: Pattern matched by `re.fullmatch`, or several whose tensors are passed
            to the transform together (a tuple); their groups must be the same.
        target: Path of the leaf with `\\\\1` for the groups, several paths for a
            transform that returns a tuple, or `Drop(reason)`.
        transform: A bijection on the values.
        alias: The key is a second name for leaves that another rule also fills (tied
            weights; names that changed between versions). It is used where the other
            is absent, must be equal where it is present, and is never exported.
    """

    source: str | tuple[str, ...]
    target: str | tuple[str, ...] | Drop
    transform: Transform = IDENTITY
    alias: bool = False

    def __post_init__(self):
        if isinstance(self.target, Drop):
            for source in self.sources:
                re.compile(source)
            return
        patterns = [parse_pattern(source) for source in self.sources]
        groups = patterns[0].groups
        if any(pattern.groups != groups for pattern in patterns):
            raise ValueError(f"the sources of {self.source!r} must have equal groups")
        for target in self.targets:
            if references(target) != set(range(1, len(groups) + 1)):
                raise ValueError(
                    f"target {target!r} must use each of the {len(groups)} groups of "
                    f"{self.source!r}, or the rule cannot be inverted"
                )

    @property
    def sources(self) -> tuple[str, ...]:
        """The source patterns, one or more."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)

    @property
    def targets(self) -> tuple[str, ...]:
        """The target templates; none for a dropped key."""
        if isinstance(self.target, Drop):
            return ()
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which an architecture's checkpoints name their tensors.

    A module of this package that holds tables exports `LAYOUTS: tuple[Layout, ...]`
    and is listed in `fdjax_convert.tables.layouts.MODULES`.

    Attributes:
        name: Who writes it: "official", "diffusers", "lightx2v" …
        architecture: What it fills; equals the `architecture` of the component.
        rules: The table.
        detect: Whether these keys (wrappers and prefixes removed) are of this layout.
            Must be false for every other layout of the package.
        describe: A name with sizes, such as "Wan 1.3B T2V", from the shapes by key.
    """

    name: str
    architecture: str
    rules: tuple[Rule, ...]
    detect: Callable[[Collection[str]], bool]
    describe: Callable[[Mapping[str, tuple[int, ...]]], str]


def has_keys(*keys: str) -> Callable[[Collection[str]], bool]:
    """A `Layout.detect` that asks for all of `keys`."""
    wanted = frozenset(keys)

    def detect(present: Collection[str]) -> bool:
        return wanted.issubset(present)

    return detect


def layer(
    source: str, target: str, transform: Transform = LINEAR, *, bias: bool = True
) -> tuple[Rule, ...]:
    """Rules of a linear or convolution layer: weight -> kernel, bias -> bias."""
    kernel = Rule(source + r"\.weight", target + "/kernel", transform)
    return (kernel, Rule(source + r"\.bias", target + "/bias"))[: 1 + bias]


def norm(source: str, target: str, *, bias: bool = False) -> tuple[Rule, ...]:
    """Rules of a normalisation: weight -> scale, bias -> bias if there is one."""
    scale = Rule(source + r"\.weight", target + "/scale")
    return (scale, Rule(source + r"\.bias", target + "/bias"))[: 1 + bias]


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

    def to_flax(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """The leaves, from the tensors."""
        return matching.to_flax(self.rule, arrays)


class Conversion:
    """A checkpoint matched with a table and a target; nothing has been read yet.

    Building it checks all keys, leaves and shapes. `lazy_leaves()` then reads tensor
    by tensor.

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
        self._problems = problems = Problems()
        self._match(rules, problems)
        self._check_shapes(problems)
        if problems and self.source_bytes < _CHECK_VALUES_BELOW:
            for step in self.steps + self.duplicates:
                self._read(step, problems)
        problems.check()

    @property
    def source_bytes(self) -> int:
        """Size in bytes of the tensors that are used."""
        keys = (key for step in self.steps for key in step.keys)
        return sum(self.source[key].nbytes for key in keys)

    def lazy_leaves(self) -> dict[str, LazyTensor]:
        """The leaves by path, each made when it is read; call `finish` after that.

        Values may be read-only views of the file, and need not be contiguous.
        """
        leaves = {}
        for step in self.steps:
            dtype = self.source[step.keys[0]].dtype
            if self.dtype is not None and is_float(dtype):
                dtype = self.dtype
            for slot, path in enumerate(step.paths):
                leaves[path] = LazyTensor(
                    tuple(self.targets[path].shape),
                    dtype,
                    functools.partial(self._make, step, slot),
                    functools.partial(self._release, step),
                )
        return leaves

    def finish(self) -> None:
        """Checks aliases, and raises if any value that was read was bad.

        Raises:
            ConversionError: With every tensor that holds NaNs or infinities, or that
                overflows in the type it was cast to, and every alias that differs.
        """
        self._check_duplicates()
        self._problems.check()

    def _make(self, step: Step, slot: int) -> np.ndarray:
        array = step.to_flax(self._read(step, self._problems))[slot]
        narrow = cast(array, self.dtype)
        if narrow is not array and is_finite(array) and not is_finite(narrow):
            self._problems.add(step.keys[0], f"overflows in {self.dtype}")
        return narrow

    def _release(self, step: Step) -> None:
        for key in step.keys:
            self.source[key].release()

    def _match(self, rules: Sequence[Rule], problems: Problems) -> None:
        """Finds the rule of every key and the key of every leaf."""
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

    def _check_shapes(self, problems: Problems) -> None:
        """Compares what the transforms give with what the architecture has."""
        for step in self.steps + self.duplicates:
            tensors = [self.source[key] for key in step.keys]
            given = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            try:
                shapes = matching.shapes_to_flax(
                    step.rule, tuple(t.shape for t in tensors)
                )
            except ValueError as error:
                name = step.rule.transform.name
                problems.add(
                    step.keys[0], f"shape {given} does not suit {name}: {error}"
                )
                continue
            for path, shape in zip(step.paths, shapes, strict=True):
                wanted = self.targets.get(path)
                if wanted is not None and tuple(wanted.shape) != shape:
                    problems.add(
                        step.keys[0],
                        f"shape {given} gives {list(shape)}, the architecture "
                        f"has {list(wanted.shape)}",
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
            values = alias.to_flax(self._read(alias, self._problems))
            for path, value in zip(alias.paths, values, strict=True):
                step = used[path]
                arrays = [self.source[key].read() for key in step.keys]
                other = step.to_flax(arrays)[step.paths.index(path)]
                if not np.array_equal(value, other):
                    self._problems.add(alias.keys[0], f"must equal {step.keys[0]}")


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
        leaves[path] = np.array(contiguous(leaf.read()))
        leaf.release()
    conversion.finish()
    return traverse_util.unflatten_dict(leaves, sep="/")


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
        dtype = np.dtype(leaves[paths[0]].dtype)
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
