"""Keys that are held, as people type them: "w*24 wa*8 .*4"."""

import os
import pathlib
import re
from collections.abc import Mapping

from fdjax.checkpoint import files

_MOST_DIGITS = 15  # of a count of frames: more than two million years
_GROUP = re.compile(r"(?P<keys>[^*\s]+?)(?:\*(?P<count>\d+))?")
_SHOWN = 20  # letters of a group in a message


def read_runs(text: str, actions: Mapping[str, str]) -> list[tuple[str, int]]:
    """Which keys are held, and for how many frames, one after the other.

    A string is a list of groups separated by white space; a group is one or more keys
    held together and, after "*", for how many frames (1 if not given). "w*24 wa*8 .*4"
    walks for 24 frames, walks a left turn for 8, and rests for 4.

    Args:
        text: Upper and lower case are the same.
        actions: What each key does; "." is no key.

    Returns:
        Keys of each run, each once and in the order of `actions`, "" for none; and its
        frames, at least 1.

    Raises:
        ValueError: An unknown key, a malformed count, or no frames at all.
    """
    runs = []
    for group in text.split():
        match = _GROUP.fullmatch(group)
        if match is None:
            raise ValueError(
                f"control group {group[:_SHOWN]!r} must be keys, or keys*frames as in "
                "'w*24'"
            )
        held = held_keys(match["keys"], actions, said=group)
        if len(match["count"] or "") > _MOST_DIGITS:
            raise ValueError(
                f"control group {group[:_SHOWN]!r}... must count frames in at most "
                f"{_MOST_DIGITS} digits"
            )
        if count := int(match["count"] or 1):
            runs.append((held, count))
    if not runs:
        raise ValueError(
            f"controls {text[:_SHOWN]!r} hold no frame; try 'w*24 a*8 w*24'"
        )
    return runs


def held_keys(text: str, actions: Mapping[str, str], *, said: str = "") -> str:
    """Keys that are held together, each once and in the order of `actions`.

    Args:
        text: Upper and lower case are the same; "" and "." are none.
        actions: What each key does.
        said: What it is part of, for the message; else `text`.

    Raises:
        ValueError: An unknown key; lists those that there are.
    """
    held = set(text.lower())
    if unknown := sorted(held - actions.keys()):
        known = ", ".join(f"{key} ({action})" for key, action in actions.items())
        raise ValueError(
            f"control group {(said or text)[:_SHOWN]!r} has unknown key(s) "
            f"{', '.join(map(repr, unknown))}; the keys are {known}"
        )
    return "".join(key for key in actions if key in held - {"."})


def controls_text(value: str | pathlib.Path) -> str:
    """What is typed, read from a file if `value` is a path or ends in .txt or .json.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is no UTF-8 text.
    """
    if isinstance(value, str) and not _is_file(value):
        return value
    path = pathlib.Path(value if not isinstance(value, str) else value.strip())
    path = path.expanduser()
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise FileNotFoundError(f"controls file {files.shorten(path)} does not exist.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"controls file {path} must be UTF-8: {error}.") from None


def _is_file(text: str) -> bool:
    """Whether a text names a file; events as they stand begin with a bracket."""
    text = text.strip()
    return text.endswith((".txt", ".json")) and not text.startswith("[")
