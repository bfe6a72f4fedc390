"""What a compiled program sends between devices, read from its text."""

import math
import re
from typing import NamedTuple

_KINDS = "all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute"
_OPERATION = re.compile(rf"^\s*(?:ROOT )?\S+ = (.*?) ({_KINDS})(-start)?\(", re.M)
_SHAPE = re.compile(r"\b([a-z]+)(\d+)\w*\[([\d,]*)\]")


class Collective(NamedTuple):
    """One operation of a program; in a loop it is there once.

    Attributes:
        kind: Such as "all-to-all".
        num_bytes: What each device holds of its result.
    """

    kind: str
    num_bytes: int


def collectives(program: str) -> list[Collective]:
    """The operations between devices, in the order of the text.

    Args:
        program: Optimised HLO, `jax.jit(...).lower(...).compile().as_text()`.
    """
    found = []
    for shapes, kind, start in _OPERATION.findall(program):
        sizes = [
            math.prod(map(int, filter(None, lengths.split(",")))) * int(bits) // 8
            for _, bits, lengths in _SHAPE.findall(shapes)
        ]
        # What has begun gives its operands as well, and then its results.
        found.append(
            Collective(kind, sum(sizes[len(sizes) // 2 :] if start else sizes))
        )
    return found
