"""Settings that what is on disk depends on, compared with those of the running process.

A file keeps them as values by dotted path, so that a difference can be named.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from fdjax.checkpoint import files
from fdjax.config import to_json

_SHOWN = 5  # differences that a message names
_NOTHING = object()


def settings_of(config: Any, free: re.Pattern[str] | None = None) -> dict[str, Any]:
    """The values of a config by dotted path.

    Args:
        config: A config, nested or not.
        free: Matches the paths that are left out.
    """
    found: dict[str, Any] = {}

    def visit(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                visit(child, f"{path}.{name}" if path else name)
        elif isinstance(node, list):
            for number, child in enumerate(node):
                visit(child, f"{path}[{number}]")
        elif free is None or not free.fullmatch(path):
            # A module may move; the class is the same.
            is_class = path.endswith("_class") and isinstance(node, str)
            found[path] = node.rpartition(":")[2] if is_class else node

    visit(json.loads(to_json(config)), "")
    return found


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return files.shorten(repr(settings.get(name, "nothing")))


def check_same(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuses settings that differ.

    Args:
        what: Begins the message: "walk.session is a session of another pipeline".
        there: Settings in the file.
        here: Those of this process.

    Raises:
        ValueError: Names the settings that differ, each with both values.
    """
    differing = [
        name
        for name in sorted({*there, *here})
        if there.get(name, _NOTHING) != here.get(name, _NOTHING)
    ]
    if not differing:
        return
    shown = "; ".join(
        f"{files.shorten(name)}: {_shown(there, name)} there, {_shown(here, name)} here"
        for name in differing[:_SHOWN]
    )
    rest = len(differing) - _SHOWN
    more = f"; and {rest} more" if rest > 0 else ""
    raise ValueError(f"{what}: {shown}{more}.")
