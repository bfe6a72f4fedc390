"""Values of config fields: what type they must have, and how text becomes one."""

import collections.abc
import dataclasses
import difflib
import enum
import math
import pathlib
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp

_IS_DTYPE = "the name of a dtype of real numbers of at most 32 bits"
_IS_SEED = f"an integer from 0 to {2**32 - 1}"

DTypeName = typing.Annotated[str, _IS_DTYPE]
"""Type of a field that names a dtype as jax spells it: "bfloat16", "float32"."""

Seed = typing.Annotated[int, _IS_SEED]
"""Type of a field that `jax.random.key` is given: beyond 32 bits it would be narrowed,
and another seed would make the same video."""

_USUAL_DTYPES = ("bfloat16", "float32", "float16", "float8_e4m3fn")
_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
_LARGEST_INT = 2**31 - 1  # what an int32 holds, as jax has no wider integers by default
_LARGEST_FLOAT = 3.4028234e38  # what a float32 holds
_SCALARS = (bool, int, float, str, pathlib.Path)


def field_types(config_class: Any) -> dict[str, Any]:
    """Type of every field of a config class; Any where a name cannot be resolved."""
    try:
        hints = typing.get_type_hints(config_class, include_extras=True)
    except NameError:  # a name that only type checkers import
        hints = {}
    fields = dataclasses.fields(config_class)
    return {field.name: hints.get(field.name, Any) for field in fields}


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest of the choices, or "" if none is near.

    >>> did_you_mean("sede", ["seed", "shift"])
    "; did you mean 'seed'?"
    """
    near = difflib.get_close_matches(name, list(choices), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def is_dtype_name(value: Any) -> bool:
    """Whether a value is the name of a dtype as jax spells it, not another spelling.

    Of real numbers, and none that jax narrows: "float64" would become "float32".
    """
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        return False
    is_real = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 4
    return bool(isinstance(value, str) and dtype.name == value and is_real)


def is_seed(value: Any) -> bool:
    """Whether `jax.random.key` makes a key of a value that no other value makes."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and 0 <= value < 2**32


def is_optional(annotation: Any) -> bool:
    """Whether a type allows None."""
    return annotation in (None, type(None), Any) or (
        _is_union(annotation) and type(None) in typing.get_args(annotation)
    )


def describe(annotation: Any) -> str:
    """A type in words: "int or None", "one of 'a', 'b'", "tuple of float"."""
    if annotation in (None, type(None)):
        return "None"
    if annotation is Any:
        return "any value"
    arguments = typing.get_args(annotation)
    if _is_union(annotation):
        return " or ".join(dict.fromkeys(describe(part) for part in arguments))
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _special(annotation)[0] or describe(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple and arguments:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"tuple of {describe(arguments[0])}"
        return f"tuple ({', '.join(describe(part) for part in arguments)})"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(member.name for member in annotation)
    if origin is type:
        return "a class"
    if annotation is pathlib.Path:
        return "path"
    return getattr(annotation, "__name__", str(annotation))


def matches(value: Any, annotation: Any) -> bool:
    """Whether a value has the type of a field; unknown kinds of types accept all.

    An int is a float, but a bool is not an int. Numbers must fit what a device computes
    with, int32 and float32: a larger one would be narrowed to another. Lists are
    refused where a tuple is asked for: a config must be hashable.
    """
    if annotation is Any:
        return True
    if value is None:
        return is_optional(annotation)
    arguments = typing.get_args(annotation)
    if _is_union(annotation):
        return any(matches(value, part) for part in arguments)
    origin = typing.get_origin(annotation) or annotation
    if origin is typing.Annotated:
        words, fits = _special(annotation)
        return fits(value) if words else matches(value, arguments[0])
    if origin is typing.Literal:
        return any(
            value == choice and type(value) is type(choice) for choice in arguments
        )
    if origin is tuple:
        return isinstance(value, tuple) and _items_match(value, annotation)
    if origin is collections.abc.Callable:
        return callable(value)
    if origin in (int, float):
        numbers = (int,) if origin is int else (int, float)
        is_number = isinstance(value, numbers) and not isinstance(value, bool)
        return is_number and not out_of_range(value, origin)
    if not isinstance(origin, type) or getattr(origin, "_is_protocol", False):
        return True
    return isinstance(value, origin)


def out_of_range(value: Any, kind: type) -> str:
    """What a number must be that int32 or float32 cannot hold; empty if they can.

    Args:
        value: An int or a float; infinite ones stand for "no limit".
        kind: int or float, as the field has it.
    """
    if kind is int:
        fits = abs(value) <= _LARGEST_INT
        return "" if fits else f"from {-_LARGEST_INT} to {_LARGEST_INT}"
    fits = abs(value) <= _LARGEST_FLOAT or value in (math.inf, -math.inf)
    return "" if fits else f"from {-_LARGEST_FLOAT} to {_LARGEST_FLOAT}, or infinite"


def normalise(value: Any, annotation: Any) -> Any:
    """The value as its type has it: 3 in a float field becomes 3.0."""
    if isinstance(value, bool) or not isinstance(value, int | tuple):
        return value
    if isinstance(value, tuple):
        if hasattr(value, "_fields"):
            return value
        return tuple(map(normalise, value, item_types(value, annotation)))
    choices = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return float(value) if float in choices and int not in choices else value


def can_parse(annotation: Any, current: Any) -> bool:
    """Whether `parse` can make a value of this type from a command line."""
    if annotation is Any:
        return current is None or isinstance(current, (*_SCALARS, tuple, enum.Enum))
    if annotation in (None, type(None)):
        return True
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation) or annotation
    if _is_union(annotation):
        return any(can_parse(part, current) for part in arguments)
    if origin is typing.Annotated:
        return can_parse(arguments[0], current)
    if origin is tuple:
        parts = [part for part in arguments if part is not Ellipsis]
        return all(can_parse(part, None) for part in parts)
    if origin is typing.Literal or origin in _SCALARS:
        return True
    return isinstance(origin, type) and issubclass(origin, enum.Enum)


def parse(text: str, annotation: Any, current: Any = None) -> Any:
    """The value that a text on the command line stands for.

    Args:
        text: `None` for a value that may be None, `1,2` or `(1, 2)` for a tuple, a
            name for an enum, true or false for a bool.
        annotation: Type of the field.
        current: Its present value: decides where the type is Any.

    Raises:
        ValueError: The text is not such a value; the message says what is.
    """
    if annotation is Any:
        return _parse_like(text, current)
    if text in ("None", "none") and is_optional(annotation):
        return None
    arguments = typing.get_args(annotation)
    origin = typing.get_origin(annotation) or annotation
    if _is_union(annotation):
        return _parse_union(text, annotation)
    if origin is typing.Annotated:
        words, fits = _special(annotation)
        if words == _IS_DTYPE and not is_dtype_name(text):
            raise _refusal(text, annotation, did_you_mean(text, _USUAL_DTYPES))
        if words != _IS_SEED:
            return parse(text, arguments[0], current)
        if not (text.isdecimal() and len(text) < 20 and fits(int(text))):
            raise _refusal(text, annotation)
        return int(text)
    if origin is typing.Literal:
        for choice in arguments:
            if text == str(choice):
                return choice
        raise _refusal(text, annotation, did_you_mean(text, map(str, arguments)))
    if origin is tuple:
        if not arguments:
            return _parse_like(text, current if isinstance(current, tuple) else ())
        items = _split_items(text)
        if not _length_fits(items, arguments):
            raise _refusal(text, annotation)
        return tuple(map(parse, items, item_types(items, annotation)))
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        for member in origin:
            if text in (member.name, str(member.value)):
                return member
        raise _refusal(text, annotation, did_you_mean(text, origin.__members__))
    return _parse_scalar(text, origin)


def _parse_scalar(text: str, kind: Any) -> Any:
    if kind is bool:
        if text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise ValueError(f"must be true or false, got {text!r}")
    if kind is pathlib.Path and not text:
        raise ValueError("must be a path, got an empty text")
    convert: dict[Any, Callable[[str], Any]]
    convert = {int: int, float: float, str: str, pathlib.Path: pathlib.Path}
    try:
        value = convert[kind](text)
    except (KeyError, ValueError):
        raise _refusal(text, kind) from None
    if kind in (int, float) and (requirement := out_of_range(value, kind)):
        raise ValueError(f"must be {describe(kind)} {requirement}, got {text!r}")
    return value


def _parse_union(text: str, annotation: Any) -> Any:
    # Text is the widest type: every other one is tried first.
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    parts.sort(key=lambda part: part is str)
    for part in parts:
        if part is pathlib.Path and str in parts:
            continue
        try:
            return parse(text, part)
        except ValueError:
            pass
    raise _refusal(text, annotation)


def _parse_like(text: str, current: Any) -> Any:
    """A value of the same type as the present one."""
    if text in ("None", "none"):
        return None
    if isinstance(current, tuple):
        likes = current or ("",)
        likes += likes[-1:] * text.count(",")
        return tuple(map(_parse_like, _split_items(text), likes))
    if current is None:
        raise _refusal(text, None)
    return parse(text, type(current))


def _refusal(text: str, annotation: Any, hint: str = "") -> ValueError:
    return ValueError(f"must be {describe(annotation)}, got {text!r}{hint}")


def _split_items(text: str) -> list[str]:
    """`(1, 2)`, `[1, 2]` or `1,2` at its top-level commas."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    items, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            items.append(text[start:index].strip())
            start = index + 1
    items.append(text[start:].strip())
    return items if items[-1] else items[:-1]


def item_types(items: Sequence[Any], annotation: Any) -> list[Any]:
    """Type of each item of a tuple in a field of this type."""
    parts = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    arguments = next(
        (typing.get_args(part) for part in parts if typing.get_origin(part) is tuple),
        (),
    )
    if not arguments:
        return [Any] * len(items)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return [arguments[0]] * len(items)
    return list(arguments) + [Any] * (len(items) - len(arguments))


def _items_match(value: tuple[Any, ...], annotation: Any) -> bool:
    if not _length_fits(value, typing.get_args(annotation)):
        return False
    return all(map(matches, value, item_types(value, annotation)))


def _length_fits(items: Sequence[Any], arguments: tuple[Any, ...]) -> bool:
    fixed = bool(arguments) and arguments[-1] is not Ellipsis
    return not fixed or len(items) == len(arguments)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _special(annotation: Any) -> tuple[str, Callable[[Any], bool]]:
    """What the values of an annotated type are, and whether one is; else "" ."""
    metadata = getattr(annotation, "__metadata__", ())
    kinds = {_IS_DTYPE: is_dtype_name, _IS_SEED: is_seed}
    for words, fits in kinds.items():
        if words in metadata:
            return words, fits
    return "", lambda value: True
