"""Every problem of a checkpoint in one message."""

import re
from collections.abc import Collection, Sequence

from fdjax_convert.formats.values import brief_text

SUMMARIZED = 5000
"""Keys that are looked at for a list of a few lines."""

_MOST = 100  # problems in a message; all of them are in the error
_LONGEST = 400  # letters of one
# A layer's number stands between separators; the 3 of conv3d is part of a word.
_NUMBER = re.compile(r"(?<=[._/])([0-9]+)(?=[./]|$)")


class ConversionError(ValueError):
    """Tensors and table do not fit; the message lists every problem.

    Attributes:
        problems: The problems, one line each; keys that differ in numbers are folded.
    """

    def __init__(
        self,
        problems: Sequence[str],
        what: str = "the checkpoint does not fit",
    ):
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        more = len(problems) - _MOST
        super().__init__(
            f"{what}, {count}:"
            + "".join(
                f"\n  - {brief_text(problem, _LONGEST)}"
                for problem in self.problems[:_MOST]
            )
            + (f"\n  - … and {more} more" if more > 0 else "")
        )


class Problems:
    """Collects problems by kind; keys that differ in numbers only become one line."""

    def __init__(self) -> None:
        self._keys: dict[str, dict[str, None]] = {}

    def add(self, key: str, what: str) -> None:
        """Notes that `what` is wrong with `key`."""
        self._keys.setdefault(what, {})[key] = None

    def check(self, what: str = "the checkpoint does not fit") -> None:
        """Raises if there is any; `what` is in front of the list."""
        lines = [
            f"{name}: {what}"
            for what, keys in self._keys.items()
            for name in summarize(keys)
        ]
        if lines:
            raise ConversionError(lines, what)

    def __bool__(self) -> bool:
        return bool(self._keys)


def summarize(keys: Collection[str]) -> list[str]:
    """Folds numbered keys into ranges: `blocks.[0-29].ffn.0.weight (30)`.

    Returns:
        One line per family of keys that differ in numbers only, in order of
        appearance. Families of up to three keys are listed key by key.
    """
    families: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    members: dict[tuple[str, ...], list[str]] = {}
    for key in keys:
        words, numbers = _split_numbers(key)
        families.setdefault(words, []).append(numbers)
        members.setdefault(words, []).append(key)
    lines = []
    for words, rows in families.items():
        if len(rows) <= 3:
            lines.extend(members[words])
            continue
        ranges = [_as_range(sorted(set(column))) for column in zip(*rows, strict=True)]
        text = words[0] + "".join(r + w for r, w in zip(ranges, words[1:], strict=True))
        lines.append(f"{text} ({len(rows)})")
    return lines


def _split_numbers(key: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Splits at layer numbers: `a.10.b` -> (("a.", ".b"), (10,)); `a_1/b` alike."""
    parts = _NUMBER.split(key)
    return tuple(parts[::2]), tuple(map(int, parts[1::2]))


def _as_range(values: list[int]) -> str:
    """Writes sorted integers: 3 -> `3`, 0..29 -> `[0-29]`, else `[0,2,5]`."""
    if len(values) == 1:
        return str(values[0])
    if values[-1] - values[0] == len(values) - 1:
        return f"[{values[0]}-{values[-1]}]"
    return "[" + ",".join(map(str, values)) + "]"
