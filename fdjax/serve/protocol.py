"""Messages of the WebSocket: one msgpack map each, with its name in "type".

What a client may send is the table `COMMANDS`; anything else is a `ProtocolError`,
which closes that client alone.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgpack

MAX_MESSAGE = 16 * 1024
"""Bytes of a client's message; files travel by HTTP."""

VERSION = 1
"""Of the protocol; in `welcome`."""

_MAX_TEXT = 2000  # characters of a prompt
_MAX_ID = 64


class ProtocolError(ValueError):
    """A message that no page of ours sends."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a command.

    Attributes:
        check: Returns the value, or raises `ValueError`.
        default: Where it is left out; `...` if it must be given.
    """

    check: Callable[[Any], Any]
    default: Any = ...


def _text(limit: int) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or len(value) > limit:
            raise ValueError(f"must be text of at most {limit} characters")
        return value

    return check


def _optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"must be a whole number in [{least}, {most}]")
        return value

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _one_of(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value

    return check


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("must be a finite number")
    return float(value)


_EVENT_ID = Field(_optional(_text(_MAX_ID)), None)
_TIMELINE = Field(_one_of("a", "b"), "a")
_SEED = Field(_optional(_whole(0, 2**31 - 1)), None)

COMMANDS: Mapping[str, Mapping[str, Field]] = {
    "hello": {
        "token": Field(_optional(_text(200)), None),
        "image": Field(_one_of("webp", "jpeg"), "jpeg"),
        "resume": Field(_optional(_text(_MAX_ID)), None),
        "watch": Field(_optional(_text(_MAX_ID)), None),
    },
    "ack": {"frame": Field(_whole(0, 2**53))},
    "ping": {"time": Field(_seconds)},
    "image": {"format": Field(_one_of("webp", "jpeg"))},
    "keys": {
        "keys": Field(_text(16)),
        "input": Field(_whole(0, 2**53), 0),
        "event_id": _EVENT_ID,
    },
    "prompt": {
        "text": Field(_text(_MAX_TEXT)),
        "chunks": Field(_whole(1, 100), 1),
        "blend": Field(_one_of("linear", "slerp"), "linear"),
        "event_id": _EVENT_ID,
    },
    "play": {"playing": Field(_flag)},
    "undo": {"chunks": Field(_whole(1, 10000), 1)},
    "redo": {"chunks": Field(_whole(1, 10000), 1)},
    "jump": {"chunk": Field(_whole(0, 2**31))},
    "fork": {},
    "select": {"timeline": _TIMELINE},
    "drop": {"timeline": _TIMELINE},
    "reset": {"text": Field(_optional(_text(_MAX_TEXT)), None), "seed": _SEED},
    "save": {},
    "load": {"file": Field(_text(_MAX_ID))},
    "replay": {},
    "record": {"recording": Field(_flag)},
    "leave": {},
}
"""Every command of a client, with its fields."""

WATCHER = frozenset(
    ("hello", "ack", "ping", "image", "prompt", "keys", "play", "leave")
)
"""What a director may send to a session that another one plays."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as bytes."""
    return msgpack.packb(message, use_bin_type=True)


def read(data: Any) -> dict[str, Any]:
    """A client's message, every field checked and filled in.

    Raises:
        ProtocolError: Says what is wrong with it.
    """
    if not isinstance(data, bytes):
        raise ProtocolError("messages must be binary msgpack")
    if len(data) > MAX_MESSAGE:
        raise ProtocolError(f"a message must have at most {MAX_MESSAGE} bytes")
    try:
        message = msgpack.unpackb(
            data, raw=False, strict_map_key=True, max_ext_len=0, use_list=False
        )
    except Exception:  # the library's errors have no common base
        raise ProtocolError("a message must be msgpack") from None
    if not isinstance(message, dict):
        raise ProtocolError("a message must be a map")
    name = message.pop("type", None)
    if not isinstance(name, str) or name not in COMMANDS:
        raise ProtocolError(f"unknown type {name!r:.40}")
    fields = COMMANDS[name]
    if unknown := message.keys() - fields.keys():
        raise ProtocolError(f"{name} has no field {sorted(map(str, unknown))[0]!r:.40}")
    result: dict[str, Any] = {"type": name}
    for key, field in fields.items():
        if key not in message:
            if field.default is ...:
                raise ProtocolError(f"{name} needs the field {key!r}")
            result[key] = field.default
            continue
        try:
            result[key] = field.check(message[key])
        except ValueError as error:
            raise ProtocolError(f"{name}: {key} {error}") from None
    return result
