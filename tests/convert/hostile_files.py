"""Files of at most a megabyte that hang or fill memory where nothing is limited."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

from tests.convert import torch_files

_SIZE = 990_000  # bytes
X = np.arange(24, dtype=np.float32).reshape(4, 6)
_STORAGE = (
    b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x18tQ"  # a persistent id
)
_TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + _STORAGE
    + b"K\x00K\x04K\x06\x86K\x06K\x01\x86\x89ccollections\nOrderedDict\n)RtR"
)


def _long(index: int) -> bytes:
    return struct.pack("<I", index)


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _fill(start: bytes, repeated, end: bytes = b".") -> bytes:
    """A pickle that repeats something, numbered, until it is large."""
    out = io.BytesIO()
    out.write(start)
    number = 0
    while out.tell() < _SIZE - len(end):
        out.write(repeated(number) if callable(repeated) else repeated)
        number += 1
    out.write(end)
    return out.getvalue()


def _doubled(container: bytes, join, levels: int, use: bytes = b"") -> bytes:
    """Each level holds the one before it twice."""
    out = b"\x80\x02" + container + b"q\x000"
    for n in range(levels):
        get = pickle.BINGET + bytes([n])
        out += join(get) + b"q" + bytes([n + 1]) + b"0"
    return out + pickle.BINGET + bytes([levels]) + use + b"."


def _twice_in_dict(get: bytes) -> bytes:
    return b"}(" + _text("a") + get + _text("b") + get + b"u"


def _twice_in_list(get: bytes) -> bytes:
    return b"](" + get * 2 + b"e"


def _twice_in_tuple(get: bytes) -> bytes:
    return get * 2 + b"\x86"


def pickles() -> dict[str, bytes]:
    """Hostile pickles by what they do."""
    return _shared_and_deep() | _numbers() | _many()


def _shared_and_deep() -> dict[str, bytes]:
    """Containers that stand in many places, or in each other."""
    tensor = b"}" + _text("w") + _TENSOR + b"s"
    wide = b"\x80\x02}(" + b"".join(_text(f"k{n}") + b"N" for n in range(60_000)) + b"u"
    deep = b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b"."
    head = b"\x80\x02}q\x00"
    return {
        "dag of dicts": _doubled(tensor, _twice_in_dict, 60),
        "dag of empty dicts": _doubled(b"}", _twice_in_dict, 100),
        "dag of lists": _doubled(b"N", _twice_in_list, 100),
        "dag of lists in a dict": head
        + _text("a")
        + _doubled(tensor, _twice_in_list, 60)[2:-1]
        + b"s.",
        "dag as persistent id": _doubled(b"N", _twice_in_list, 100, b"Q"),
        "dag as a name": _doubled(b"N", _twice_in_tuple, 100, b"NR"),
        "dag as a key": b"\x80\x02}"
        + _doubled(b"K\x01", _twice_in_tuple, 60)[2:-1]
        + b"Ns.",
        "dag as a set": b"\x80\x02cbuiltins\nset\n]"
        + _doubled(b"K\x01", _twice_in_tuple, 60)[2:-1]
        + b"a\x85R.",
        "wide shared dict": wide
        + b"q\x000"
        + b"}("
        + b"".join(_text(f"n{n}") + b"h\x00" for n in range(20_000))
        + b"u.",
        "deep lists": deep,
        "deep tuples": b"\x80\x02" + b")" + b"\x85" * 900_000 + b".",
        "deep tuple as a key": b"\x80\x02}" + b")" + b"\x85" * 900_000 + b"Ns.",
        "deep dicts": _fill(
            b"\x80\x02}q\x00}",
            lambda n: pickle.BINUNICODE + b"\1\0\0\0a}",
            b".",
        ),
    }


def _numbers() -> dict[str, bytes]:
    """Numbers that ask for more than there is, or take long."""
    return {
        "memo index": b"\x80\x02K\x01r" + _long(1 << 28) + b".",
        "memo index of text": b"\x80\x02K\x01p4294967295\n.",
        "bytes of 2**62": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
        "text of 2**63": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 63) + b"x.",
        "bytearray of 2**40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        "bytearray by length": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        "frame of 2**60": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N.",
        "long int": b"\x80\x02\x8b" + _long(900_000) + b"\x7f" * 900_000 + b".",
        "long int as a reference": b"\x80\x02\x8b"
        + _long(900_000)
        + b"\x7f" * 900_000
        + b"Q.",
        "long decimal": b"\x80\x02L" + b"9" * 900_000 + b"\n.",
        "equal hashes": _fill(
            b"\x80\x02}(",
            lambda n: (
                b"\x8a\x0b" + ((n + 1) * ((1 << 61) - 1)).to_bytes(11, "little") + b"N"
            ),
            b"u.",
        ),
    }


def _many() -> dict[str, bytes]:
    """As many objects, or copies of them, as a megabyte can ask for."""
    big_list = b"\x80\x02](" + b"K\x01" * 200_000 + b"eq\x000"
    big_text = b"\x80\x02" + _text("x" * 300_000) + b"q\x000"
    return {
        "copies of a list": _fill(
            big_list + b"](", b"cbuiltins\nset\nh\x00\x85R", b"e."
        ),
        "copies of a size": _fill(big_list + b"](", b"ctorch\nSize\nh\x00\x85R", b"e."),
        "copies of a text": _fill(
            big_text + b"U\x06latin1q\x010](",
            b"c_codecs\nencode\nh\x00h\x01\x86R",
            b"e.",
        ),
        "marks": _fill(b"\x80\x02", b"(", b"."),
        "empty sets": _fill(b"\x80\x04(", b"\x8f", b"l."),
        "empty dicts": _fill(b"\x80\x02](", b"}", b"e."),
        "many tensors": _fill(
            b"\x80\x02" + _TENSOR + b"q\x000}(",
            lambda n: _text(f"{n:x}") + b"h\x00",
            b"u.",
        ),
        "many rebuilds": _many_rebuilds(),
        "long keys": _fill(
            b"\x80\x02" + _TENSOR + b"q\x010" + _text("k" * 60_000) + b"q\x000",
            b"}h\x00",
            b"h\x01" + b"s" * 50 + b".",
        ),
        "repeated long keys": b"\x80\x02"
        + _TENSOR
        + b"q\x000"
        + _text("k" * 900)
        + b"q\x010"
        + b"}h\x01" * 60
        + b"}("
        + b"".join(_text(f"{n}") + b"h\x00" for n in range(50_000))
        + b"u"
        + b"s" * 60
        + b".",
        "huge shape": b"\x80\x02}q\x00"
        + _text("w")
        + _TENSOR.replace(b"K\x04K\x06\x86K\x06K\x01\x86", _expanded())
        + b"s.",
    }


def _expanded() -> bytes:
    """A size of 2**40 elements whose strides are 0."""
    size = b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
    return size + b"\x85K\x00\x85"


def _many_rebuilds() -> bytes:
    start = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x000("
        + _STORAGE
        + b"K\x00K\x04K\x06\x86K\x06K\x01\x86\x89}tq\x010}("
    )
    return _fill(start, lambda n: _text(f"{n:x}") + b"h\x00h\x01R", b"u.")


def write_all(directory: Path) -> list[Path]:
    """Writes the hostile files; none is larger than a megabyte."""
    paths = []
    for name, data in pickles().items():
        path = directory / f"{name.replace(' ', '_')}.pt"
        paths.append(torch_files.write(path, data, {"0": X}))
    for name, header in safetensors_headers().items():
        path = directory / f"{name.replace(' ', '_')}.safetensors"
        path.write_bytes(header)
        paths.append(path)
    bomb = directory / "bomb.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * 20_000_000 + b"N.")
    return [*paths, bomb]


def _header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def safetensors_headers() -> dict[str, bytes]:
    """Hostile or broken safetensors files by what they do."""
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    one = json.loads(entry)
    many = {f"{n:x}": one | {"data_offsets": [4 * n, 4 * n + 4]} for n in range(12_000)}
    text = json.dumps(many, separators=(",", ":")).encode()
    return {
        "header of 2**60": _header(b'{"a":1}', 1 << 60),
        "header past the end": _header(b'{"a":1}', 1 << 20),
        "deep metadata": _header(b'{"__metadata__":' + b"[" * 400_000),
        "deep lists": _header(b'{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}"),
        "not utf8": _header(b'{"\xff":' + entry.encode() + b"}") + b"\0" * 4,
        "twice": _header(f'{{"a":{entry},"a":{entry}}}'.encode()) + b"\0" * 4,
        "overlapping": _header(f'{{"a":{entry},"b":{entry}}}'.encode()) + b"\0" * 4,
        "past the end": _header(f'{{"a":{entry}}}'.encode()) + b"\0" * 3,
        "huge numbers": _header(
            ('{"a":' + entry.replace("[1]", "[" + "9" * 4000 + "]") + "}").encode()
        ),
        "huge shape": _header(
            (
                '{"a":' + entry.replace("[1]", "[0" + ",9999999999" * 9 + "]") + "}"
            ).encode()
        ),
        "infinite": _header(('{"a":' + entry.replace("[1]", "[1e999]") + "}").encode()),
        "no numbers": _header(
            ('{"a":' + entry.replace("[1]", "[null]") + "}").encode()
        ),
        "list": _header(b"{}" + b" " * 6),
        "many": _header(text) + b"\0" * 48_000,
        "our deep metadata": _header(
            json.dumps(
                {"__metadata__": {"fdjax": "[" * 200_000 + "]" * 200_000}}
            ).encode()
        ),
        "our null shapes": _header(
            json.dumps({"__metadata__": {"fdjax": _own(shapes=None)}}).encode()
        ),
        "our huge shapes": _header(
            json.dumps(
                {"__metadata__": {"fdjax": _own(shapes={"a/b": [1 << 62] * 1000})}}
            ).encode()
        ),
    }


def _own(**values) -> str:
    tree = {
        "format": 1,
        "architecture": "mlp",
        "config": None,
        "shapes": {},
        "dtypes": {},
        "source": {},
        "files": {},
    }
    return json.dumps(tree | values)
