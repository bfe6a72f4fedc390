"""JSON of unknown origin is read, or refused with one kind of error."""

import json

import pytest

from fdjax.config import strict_json

GOOD = [None, True, 3, -1.5, "ü", [], {}, {"a": [1, {"b": None}]}, 10**100]


@pytest.mark.parametrize("value", GOOD)
def test_values(value):
    text = json.dumps(value, ensure_ascii=False)
    assert strict_json.parse(text) == value
    assert strict_json.parse(text.encode()) == value


def test_levels():
    assert strict_json.parse("[" * 64 + "]" * 64)
    for text in ("[" * 65 + "]" * 65, '{"a":' * 65 + "1" + "}" * 65, "[" * 10**6):
        with pytest.raises(ValueError, match=r"more than 64 levels|Expecting value"):
            strict_json.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ('{"a": 1, "a": 2}', "has the key 'a' twice"),
        ('{"' + "x" * 1000 + '": 1, "' + "x" * 1000 + '": 2}', "has the key 'xxx"),
        ("[NaN]", "holds NaN"),
        ("Infinity", "holds Infinity"),
        ("9" * 10_000, "Exceeds the limit"),
        (b"\xff", "utf-8"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as error:
        strict_json.parse(text)
    assert len(str(error.value)) < 300
