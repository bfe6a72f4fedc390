"""The file of a session: arrays, JSON, and a checksum over all of it.

A safetensors file whose metadata begins with a SHA-256: of the file as it is with zeros
in the place of these 64 digits. It finds damage and careless edits. What is in the file
is data; who reads it checks every part, since it may come from anywhere.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import jax
import jaxlib

from fdjax.axes import Array
from fdjax.checkpoint import safetensors_format
from fdjax.checkpoint.mapped import MappedFile
from fdjax.checkpoint.metadata import installed_version
from fdjax.checkpoint.tensors import LazyTensor
from fdjax.config import strict_json

FORMAT = 2
_HEADER, _DIGEST = "fdjax_session", "sha256"
_PREFIX = f'{{"__metadata__":{{"{_DIGEST}":"'.encode()
_PLACE = 8 + len(_PREFIX)  # of the digits; 8 bytes of length come first
_ZEROS = b"0" * 64
_MAX_JSON = 8 << 20  # bytes; that of an hour of play has less than one
_PASS = 1 << 24  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file holds.

    Attributes:
        header: Its JSON.
        tensors: Its arrays by name, read when they are asked for.
    """

    header: Mapping[str, Any]
    tensors: Mapping[str, LazyTensor]


def write(
    file: BinaryIO, header: Mapping[str, Any], arrays: Mapping[str, Array]
) -> None:
    """Writes a session.

    Args:
        file: Empty; can be gone back in.
        header: As JSON; format and versions are added.
        arrays: By name; each comes to the host when it is its turn.

    Raises:
        ValueError: The JSON is longer than any reader takes, or the format has no such
            element type.
    """
    text = json.dumps({"format": FORMAT, "made_by": made_by(), **header})
    if len(text) > _MAX_JSON:
        raise ValueError(
            f"A session's timeline must fit into {_MAX_JSON} bytes of JSON, it takes "
            f"{len(text)}; reset() the session, which forgets it."
        )
    hashing = _Hashing(file)
    metadata = {_DIGEST: _ZEROS.decode(), _HEADER: text}
    safetensors_format.write_to(hashing, arrays, metadata)
    file.seek(_PLACE)
    file.write(hashing.digest.hexdigest().encode())


def read(name: str, source: pathlib.Path | bytes) -> Contents:
    """What `write` wrote, after the checksum.

    Args:
        name: Of the file, for messages.
        source: The file, or what is in it.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: It is no session, of another format, cut short or changed.
    """
    if isinstance(source, pathlib.Path):
        _check_file(source)
        file = MappedFile(source)
    else:
        file = MappedFile(name, source)
    header = _parsed(name, file.bytes(0, 8), lambda n: file.bytes(8, n), file.size)
    # Whose end is missing is told apart from what was changed.
    tensors, metadata = safetensors_format.read_mapped(file)
    if _digest(file) != metadata.get(_DIGEST):
        raise ValueError(
            f"{name} is damaged or was edited: its checksum is of another content; "
            "take the file as it was saved."
        )
    return Contents(header=header, tensors=tensors)


def read_header(path: pathlib.Path) -> Mapping[str, Any]:
    """The JSON alone, of which nothing is checked but its form.

    Raises:
        FileNotFoundError, ValueError: As in `read`.
    """
    _check_file(path)
    with path.open("rb") as file:
        size = path.stat().st_size
        return _parsed(str(path), file.read(8), file.read, size)


def made_by() -> dict[str, str]:
    """What the bits of a result depend on besides the settings and the weights."""
    device = jax.devices()[0]
    quick = jax.config.read("jax_disable_most_optimizations")
    return {
        "fdjax": installed_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "device": f"{device.platform} {device.device_kind}",
        "compiler": "quick" if quick else "full",
    }


def _check_file(path: pathlib.Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"There is no session at {path}.")


def _parsed(name: str, length: bytes, get: Any, size: int) -> Mapping[str, Any]:
    """The JSON of a file that begins with `length`, from what `get` gives of it."""
    other = ValueError(
        f"{name} is no session, as Session.save, fdjax.save_cache or --save_session "
        "writes it."
    )
    count = int.from_bytes(length, "little")
    # The JSON is a text in JSON, and so up to twice as long, beside the arrays' places.
    if not len(_PREFIX) <= count <= 3 * _MAX_JSON:
        raise other
    text = get(count)
    try:
        outer = strict_json.parse(text)
        inner = outer["__metadata__"][_HEADER]
        if len(inner) > _MAX_JSON:
            raise other
        header = strict_json.parse(inner)
        version = header["format"]
    except (KeyError, TypeError, ValueError, RecursionError):
        if len(text) < count and size < 8 + count and text.startswith(_PREFIX[:9]):
            raise ValueError(f"{name} is truncated: it ends in its header.") from None
        raise other from None
    if type(version) is not int or version != FORMAT:
        raise ValueError(
            f"{name} must be a session of format {FORMAT}, it is of format "
            f"{str(version)[:20]!r}; this is fdjax {installed_version()}."
        )
    if not text.startswith(_PREFIX):
        raise other
    return dict(header)


def _digest(file: MappedFile) -> str:
    digest = hashlib.sha256()
    view = file.view
    digest.update(view[:_PLACE])
    digest.update(_ZEROS)
    for start in range(_PLACE + len(_ZEROS), file.size, _PASS):
        digest.update(view[start : start + _PASS])
    return digest.hexdigest()


class _Hashing:
    """Writes, and hashes what it writes."""

    def __init__(self, file: BinaryIO):
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> None:
        self.digest.update(data)
        self._file.write(data)
