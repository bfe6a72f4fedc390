"""Source patterns and target templates that can be read in both directions."""

import dataclasses
import functools
import re
from collections.abc import Sequence

_REFERENCE = re.compile(r"\\([1-9])")
_SPECIAL = frozenset(".^$*+?{}[]|")


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A source pattern taken apart, so that it can be filled in as well as matched.

    Attributes:
        template: Literal pieces (str) and group numbers (int, from 1), in order.
        groups: The expression inside each capture group.
    """

    template: tuple[str | int, ...]
    groups: tuple[str, ...]

    def fill(self, values: Sequence[str]) -> str:
        """The key whose groups have these values."""
        return "".join(
            part if isinstance(part, str) else values[part - 1]
            for part in self.template
        )


@functools.cache
def parse_pattern(source: str) -> Pattern:
    """Takes a source pattern apart; refuses what could not be inverted."""
    template: list[str | int] = []
    groups: list[str] = []
    position = 0
    while position < len(source):
        letter = source[position]
        if letter == "(":
            end = _group_end(source, position)
            groups.append(source[position + 1 : end])
            template.append(len(groups))
            position = end + 1
            continue
        if letter == "\\":
            position += 1
            letter = source[position : position + 1]
            # \d or \w stands for many letters, \. for one.
            if not letter or letter.isalnum():
                raise ValueError(f"\\{letter} outside a group in pattern {source!r}")
        elif letter in _SPECIAL:
            raise ValueError(
                f"{letter!r} outside a group in pattern {source!r}: escape it, or "
                "capture what it stands for, so that the rule can be inverted"
            )
        if template and isinstance(template[-1], str):
            template[-1] += letter
        else:
            template.append(letter)
        position += 1
    return Pattern(tuple(template), tuple(groups))


def references(target: str) -> set[int]:
    """Numbers of the groups that a target uses."""
    return {int(number) for number in _REFERENCE.findall(target)}


def target_pattern(target: str, groups: Sequence[str]) -> str:
    """The expression that matches the paths `target` produces, groups named g1 …"""
    seen: set[str] = set()
    pieces = []
    for index, part in enumerate(_REFERENCE.split(target)):
        # `split` by one group gives text and group numbers in turn.
        if index % 2 == 0:
            pieces.append(re.escape(part))
        # A group that comes again must have matched the same text.
        elif part in seen:
            pieces.append(f"(?P=g{part})")
        else:
            seen.add(part)
            pieces.append(f"(?P<g{part}>{groups[int(part) - 1]})")
    return "".join(pieces)


def fill_target(target: str, values: Sequence[str]) -> str:
    """Replaces `\\1` … in a target by the values of the groups."""
    return _REFERENCE.sub(lambda match: values[int(match[1]) - 1], target)


def _group_end(source: str, start: int) -> int:
    """Index of the parenthesis that closes the capture group opened at `start`."""
    depth, position = 0, start
    while position < len(source):
        if source[position] == "\\":
            position += 1
        elif source[position] == "(":
            plain = not source.startswith("(?", position)
            if plain == (depth > 0) or (depth and source[position + 2] != ":"):
                raise ValueError(f"only plain, unnested groups in pattern {source!r}")
            depth += 1
        elif source[position] == ")":
            depth -= 1
            if not depth:
                return position
        position += 1
    raise ValueError(f"unbalanced parenthesis in pattern {source!r}")
