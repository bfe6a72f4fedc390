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
group appears in the target, so that a table can be read in both directions:
`conversion` accounts for every key and every leaf, `export` writes the published layout
again.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping

from fdjax_convert.rules.patterns import parse_pattern, references
from fdjax_convert.rules.transforms import IDENTITY, LINEAR, Transform


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

    def __post_init__(self) -> None:
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

    A module of `fdjax_convert.tables` exports `LAYOUTS: tuple[Layout, ...]`, and
    `tables.layouts.ALL` joins them.

    Attributes:
        name: Who writes it: "official", "diffusers", "lightx2v" …
        architecture: What it fills; equals the `architecture` of the component.
        rules: The table.
        detect: Whether these keys (wrappers and prefixes removed) are of this layout.
            Must be false for every other layout of the package.
        describe: A name with sizes, such as "Wan 1.3B T2V", from the shapes by key.
        prefix: What the publisher writes before each of these keys, though it says
            nothing: readers remove it (`formats.unwrap.PREFIXES`), export writes it.
    """

    name: str
    architecture: str
    rules: tuple[Rule, ...]
    detect: Callable[[Collection[str]], bool]
    describe: Callable[[Mapping[str, tuple[int, ...]]], str]
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class HasKeys:
    """A `Layout.detect` that asks for all of some keys.

    Attributes:
        keys: The keys.
    """

    keys: frozenset[str]

    def __call__(self, present: Collection[str]) -> bool:
        """Whether all of them are there."""
        return self.keys.issubset(present)


def has_keys(*keys: str) -> HasKeys:
    """A `Layout.detect` that asks for all of `keys`."""
    return HasKeys(frozenset(keys))


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
