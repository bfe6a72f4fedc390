"""JSON of unknown origin: one error for all that can be wrong with it."""

import json
from typing import Any, NoReturn

_MAX_LEVELS = 64


def parse(text: str | bytes) -> Any:
    """The value of a JSON text; its levels are few enough to walk through.

    Args:
        text: The text; bytes must be UTF-8.

    Raises:
        ValueError: It is no JSON, is nested too deeply, names a key twice, or holds a
            number that JSON does not have.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"it is nested in more than {_MAX_LEVELS} levels") from None
    level = [value]
    for _ in range(_MAX_LEVELS):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return value
    raise ValueError(f"it is nested in more than {_MAX_LEVELS} levels")


def _inner(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"it has the key {twice[:80]!r} twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}, which JSON does not have")
