"""Pickles made of opcodes, with the names and references that torch's files have."""

import pickle
import struct

from hypothesis import strategies as st

HOSTILE = (
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "open"),
    ("__builtin__", "eval"),
    ("subprocess", "Popen"),
    ("importlib", "import_module"),
    ("torch", "load"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("collections", "OrderedDict.__init__"),
    ("numpy", "load"),
    ("fdjax_convert.formats.values", "Callee"),
)
TORCH = (
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch", "FloatStorage"),
    ("torch", "BFloat16Storage"),
    ("torch", "float32"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("collections", "Counter"),
    ("_codecs", "encode"),
    ("__builtin__", "set"),
    ("builtins", "bytearray"),
    ("builtins", "complex"),
)


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _name(names: tuple[str, str]) -> bytes:
    return f"c{names[0]}\n{names[1]}\n".encode()


_WORDS = [
    "storage",
    "0",
    "cpu",
    "latin1",
    "generator",
    "model",
    "touch canary",
    "a.0.w",
]
_TEXTS = st.sampled_from(_WORDS) | st.text(max_size=5)
_CONSTANTS = st.one_of(
    _TEXTS.map(_text),
    st.integers(0, 255).map(lambda n: pickle.BININT1 + bytes([n])),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: b"J" + struct.pack("<i", n)),
    st.integers(-(2**90), 2**90).map(lambda n: pickle.dumps(n, 2)[2:-1]),
    st.floats().map(lambda x: pickle.BINFLOAT + struct.pack(">d", x)),
    st.sampled_from([b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f", b"("]),
)
_NAMES = st.sampled_from(TORCH + HOSTILE).map(_name)
_MEMO = st.one_of(
    st.integers(0, 9).map(lambda n: pickle.BINPUT + bytes([n])),
    st.integers(0, 9).map(lambda n: pickle.BINGET + bytes([n])),
    st.integers(0, 2**32 - 1).map(lambda n: b"r" + struct.pack("<I", n)),
    st.just(pickle.MEMOIZE),
)
_ACTIONS = st.sampled_from(
    [bytes([code]) for code in b"t\x85\x86\x87aesuRbQ012dl\x90\x93\x81io\x92"]
)
_LENGTHS = st.tuples(
    st.sampled_from([b"\x8e", b"\x8d", b"\x96", b"\x95"]), st.integers(0, 2**64 - 1)
).map(lambda pair: pair[0] + struct.pack("<Q", pair[1]))
_STORAGE = (b"(" + _text("storage") + _name(("torch", "FloatStorage")) + _text("0")) + (
    _text("cpu") + b"K\x18tQ"
)
_SIZES = st.lists(st.integers(0, 300), max_size=4).map(
    lambda sizes: b"(" + b"".join(b"J" + struct.pack("<i", n) for n in sizes) + b"t"
)
_TENSORS = st.tuples(_SIZES, _SIZES, st.integers(0, 30)).map(
    lambda part: (
        _name(TORCH[0])
        + b"("
        + _STORAGE
        + b"K"
        + bytes([part[2]])
        + part[0]
        + part[1]
        + b"\x89}tR"
    )
)
_CALLS = st.tuples(_NAMES, st.lists(_CONSTANTS, max_size=3)).map(
    lambda call: call[0] + b"(" + b"".join(call[1]) + b"tR"
)
_PARTS = st.one_of(_CONSTANTS, _NAMES, _MEMO, _ACTIONS, _LENGTHS, _TENSORS, _CALLS)

OPCODES = st.lists(_PARTS, max_size=40).map(
    lambda parts: b"\x80\x02" + b"".join(parts) + b"."
)
"""Opcodes in any order: most of them end early."""

_VALUES = st.recursive(
    st.one_of(_CONSTANTS.filter(lambda c: c != b"("), _TENSORS, _CALLS, _MEMO),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda xs: b"](" + b"".join(xs) + b"e"),
        st.lists(st.tuples(_TEXTS.map(_text), inner), max_size=4).map(
            lambda pairs: b"}(" + b"".join(k + v for k, v in pairs) + b"u"
        ),
        inner.map(lambda x: x + b"}b"),
        inner.map(lambda x: x + b"q\x00"),
    ),
    max_leaves=12,
)
VALUES = st.lists(st.tuples(_TEXTS.map(_text), _VALUES), max_size=4).map(
    lambda pairs: b"\x80\x02}(" + b"".join(k + v for k, v in pairs) + b"u."
)
"""Dicts of what checkpoints hold, and of what they must not."""
