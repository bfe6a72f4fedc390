"""What a pickle's objects become, and how they are told in a message."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

_MAX_TEXT = 80  # letters of a value in a message


class WithState(dict):
    """A dict that files give a state, such as `_metadata`: that is not kept."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Callee:
    """Stands for a name: nothing can be done with it but call it, if that is allowed.

    Attributes:
        name: The full name.
        call: What answers a call; None for what is a type or a constant only.
        dtype: The element type that it names; None for anything else.
        cost: Bytes that a call takes in a file at least, with its arguments.
    """

    name: str
    call: Callable[..., Any] | None = None
    dtype: np.dtype | None = None
    cost: int = 0

    def __call__(self, *arguments: Any) -> Any:
        """Answers a call; TypeError if it is none."""
        if self.call is None:
            raise TypeError(f"{self.name} is a name only")
        return self.call(*arguments)


@dataclasses.dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a tensor of a kind that no network here has.

    Attributes:
        what: Which kind: "a sparse tensor".
    """

    what: str


def brief(value: Any) -> str:
    """A value in a message: short, however large or deep it is."""
    if value is None or isinstance(value, bool | float | complex):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() < 128 else "an int of many digits"
    if isinstance(value, str | bytes):
        more = " …" if len(value) > _MAX_TEXT else ""
        return repr(value[:_MAX_TEXT]) + more
    if isinstance(value, Callee):
        return brief_text(value.name)
    if isinstance(value, list | tuple | dict | set):
        name = "dict" if isinstance(value, dict) else type(value).__name__
        return f"a {name} of {len(value)}"
    return f"a {type(value).__name__}"


def brief_text(text: str, limit: int = _MAX_TEXT) -> str:
    """The start of a text, without anything that moves a terminal's cursor."""
    cut = text[:limit] + (" …" if len(text) > limit else "")
    return "".join(letter if letter.isprintable() else "?" for letter in cut)
