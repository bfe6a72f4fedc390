"""Texts as values of a type."""

import enum
import math
import pathlib
from typing import Any, Literal

import jax
import pytest

from fdjax.config import DTypeName, Seed
from fdjax.config import values as config_values


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("-3", int | None, -3),
        ("None", int | None, None),
        ("None", str, "None"),
        ("3", float, 3.0),
        ("1e-3", float, 1e-3),
        ("TRUE", bool, True),
        ("0", bool, False),
        ("a b", str, "a b"),
        ("", str, ""),
        ("a/b", pathlib.Path, pathlib.Path("a/b")),
        ("a", str | pathlib.Path, "a"),
        ("3", int | str, 3),
        ("x", int | str, "x"),
        ("1,2", tuple[int, ...], (1, 2)),
        ("(1, 2,)", tuple[int, ...], (1, 2)),
        ("()", tuple[int, ...], ()),
        ("", tuple[int, ...], ()),
        ("None", tuple[int, ...] | None, None),
        ("7", tuple[int, ...] | None, (7,)),
        ("[(1, 2), (3, 4)]", tuple[tuple[int, int], ...], ((1, 2), (3, 4))),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("EXACT", Mode, Mode.EXACT),
        ("exact", Mode, Mode.EXACT),
        ("family", Literal["sport", "family"], "family"),
        ("2", Literal[1, 2], 2),
        ("float32", DTypeName, "float32"),
        ("bfloat16", DTypeName | None, "bfloat16"),
        ("None", DTypeName | None, None),
        ("4294967295", Seed, 2**32 - 1),
        ("0", Seed | None, 0),
        ("-2147483647", int, -(2**31) + 1),
        ("inf", float, math.inf),
        ("3000000000", float, 3e9),
    ],
)
def test_parse(text, annotation, value):
    parsed = config_values.parse(text, annotation)
    assert parsed == value
    assert isinstance(parsed, type(value))
    assert config_values.matches(parsed, annotation)
    assert config_values.can_parse(annotation, None)


@pytest.mark.parametrize(
    ("text", "current", "value"),
    [
        ("3", 1, 3),
        ("3", "a", "3"),
        ("None", None, None),
        ("None", 3, None),
        ("3,4,5", (1, 2), (3, 4, 5)),
    ],
)
def test_parse_goes_by_the_present_value_where_any_is_allowed(text, current, value):
    assert config_values.parse(text, Any, current) == value


def test_parse_gives_no_config():
    with pytest.raises(ValueError, match="must be None, got 'x'"):
        config_values.parse("x", Any, None)


@pytest.mark.parametrize(
    ("text", "annotation", "message"),
    [
        ("x", int, "must be int, got 'x'"),
        ("3.5", int | None, "must be int or None, got '3.5'"),
        ("None", int, "must be int, got 'None'"),
        ("maybe", bool, "must be true or false, got 'maybe'"),
        ("1,2,3", tuple[int, int], r"must be tuple \(int, int\), got '1,2,3'"),
        ("1,x", tuple[int, ...], "must be int, got 'x'"),
        ("FSAT", Mode, "must be one of FAST, EXACT, got 'FSAT'; did you mean 'FAST'"),
        ("sprot", Literal["sport"], "must be one of 'sport'.*did you mean 'sport'"),
        (
            "flaot32",
            DTypeName,
            "must be the name of a dtype.*, got 'flaot32'; did you me",
        ),
        ("f4", DTypeName, "must be the name of a dtype.*, got 'f4'"),
        ("float64", DTypeName, "of at most 32 bits, got 'float64'"),
        ("int32", DTypeName, "the name of a dtype of real numbers.*, got 'int32'"),
        ("float99", DTypeName, "must be the name of a dtype.*, got 'float99'"),
        ("", pathlib.Path, "must be a path"),
        ("4294967296", Seed, "must be an integer from 0 to 4294967295, got '42949"),
        ("-1", Seed | None, "must be an integer from 0 to 4294967295 or None, got '-1"),
        ("x", Seed, "must be an integer from 0 .*, got 'x'"),
        ("2147483648", int, "must be int from -2147483647 to 2147483647, got '21"),
        ("-99999999999999999999", int, "must be int from"),
        ("nan", float, "must be float from .*, or infinite, got 'nan'"),
        ("1e39", float, "must be float from .*, or infinite, got '1e39'"),
    ],
)
def test_parse_says_what_is_required(text, annotation, message):
    with pytest.raises(ValueError, match=message):
        config_values.parse(text, annotation)


def test_did_you_mean():
    assert config_values.did_you_mean("sede", ["seed", "x"]) == "; did you mean 'seed'?"
    assert config_values.did_you_mean("q", ["seed"]) == ""


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (2**32 + 5, Seed),
        (-1, Seed),
        (True, Seed),
        (2**63, Seed | None),
        (2**31, int),
        (-(2**31), int | None),
        ((1, 2**40), tuple[int, ...]),
        (10**400, float),
        (math.nan, float),
        (1e300, float | None),
        ("int8", DTypeName),
        ("complex64", DTypeName),
        ("bool", DTypeName),
    ],
)
def test_what_would_be_narrowed_does_not_match(value, annotation):
    assert not config_values.matches(value, annotation)


def test_every_seed_is_another_key():
    keys = [jax.random.key_data(jax.random.key(seed)) for seed in (0, 5, 2**32 - 1)]
    assert len({tuple(key.tolist()) for key in keys}) == 3
