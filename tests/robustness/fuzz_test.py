"""Damaged and hostile files: nothing of them runs, and the errors are the documented.

A few examples, always the same, are a part of every run of the tests. For a search:

    python -m pytest tests/robustness --robustness-examples 20000
"""

import contextlib
import io
import json
import os
import sys
import zipfile

import hypothesis
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

from fdjax import checkpoint
from fdjax.config import KnownClasses, from_json, to_json
from fdjax_convert import inspect
from fdjax_convert.formats import readers
from fdjax_convert.formats.readers import LEGACY_MAGIC
from tests import tiny
from tests.convert import torch_files
from tests.robustness import pickle_strategies

_EXAMPLES = 60  # of each test, in every run
_LARGEST = 1 << 20  # bytes of tensors whose values are looked at
_EVENTS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.remove",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
    "ctypes.dlopen",
)
X = np.arange(24, dtype=np.float32).reshape(4, 6)
_watched: list[list[str]] = []


def _audit(event, arguments):
    if _watched and event in _EVENTS:
        _watched[-1].append(event)


sys.addaudithook(_audit)  # Python knows no way to remove one: it looks at a list


@pytest.fixture
def fuzz(request, tmp_path, monkeypatch):
    """Calls a check with examples; afterwards nothing may have run."""
    monkeypatch.chdir(tmp_path)
    given = request.config.getoption("--robustness-examples")

    def run(strategy, check):
        @hypothesis.settings(
            max_examples=given or _EXAMPLES,
            derandomize=not given,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy)
        def body(example):
            _watched.append([])
            try:
                check(example)
            finally:
                events = _watched.pop()
            assert not events
            assert not os.path.exists("canary")

        body()

    return run


@contextlib.contextmanager
def documented(*kinds):
    """Lets errors of some kinds pass, if their texts are of a bearable length."""
    length = 0
    try:
        yield
    except kinds as error:
        length = len(str(error))
    assert length < 20_000


def read_all(path):
    for tensor in readers.open_checkpoint(path).tensors.values():
        if tensor.nbytes < _LARGEST:
            tensor.read()


def look_at(path):
    """Opens a file in every way; only documented errors may come."""
    for look in (
        read_all,
        inspect.inspect,
        checkpoint.read_metadata,
        checkpoint.restore,
        checkpoint.open_lazily,
        checkpoint.is_intact,
    ):
        with documented(ValueError, FileNotFoundError):
            look(path)


def damage(data):
    """Changes of bytes: each a place from 0 to 1, what to cut there, what to put."""
    change = st.tuples(
        st.floats(0, 1),
        st.integers(0, 8),
        st.binary(max_size=8) | st.sampled_from(data),
    )
    return st.lists(change, min_size=1, max_size=4)


def apply(changes, data):
    for place, cut, new in changes:
        start = int(place * len(data))
        data = data[:start] + new + data[start + cut :]
    return data


@pytest.mark.parametrize("strategy", ["OPCODES", "VALUES"])
def test_pickles(fuzz, tmp_path, strategy):
    path = tmp_path / "a.pt"

    def check(data):
        look_at(torch_files.write(path, data, {"0": X}))

    fuzz(getattr(pickle_strategies, strategy), check)


_WORDS = [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"data.pkl", b"archive/data/0"]


def test_damaged_archives(fuzz, tmp_path):
    path = tmp_path / "a.pt"
    content = {"generator": {"blocks.0.w": X, "head": X[0]}, "step": 3}
    whole = torch_files.save(path, content).read_bytes()

    def check(changes):
        path.write_bytes(apply(changes, whole))
        look_at(path)

    fuzz(damage([*_WORDS, LEGACY_MAGIC]), check)


def test_damaged_pickles_in_whole_archives(fuzz, tmp_path):
    path = tmp_path / "a.pt"
    torch_files.save(path, {"generator": {"blocks.0.w": X}, "step": 3})
    with zipfile.ZipFile(path) as archive:
        whole = archive.read("archive/data.pkl")

    def check(changes):
        look_at(torch_files.write(path, apply(changes, whole), {"0": X}))

    names = [
        f"c{module}\n{name}\n".encode() for module, name in pickle_strategies.HOSTILE
    ]
    fuzz(damage([*names, b"R", b"b", b"Q", b"\x8e", b"r\xff\xff\xff\x0f"]), check)


def test_entries_of_archives(fuzz, tmp_path):
    path = tmp_path / "a.pt"
    whole = torch_files.save(tmp_path / "b.pt", {"w": X})
    with zipfile.ZipFile(whole) as archive:
        data = archive.read("archive/data.pkl")
    names = ["data.pkl", "data/0", "byteorder", "version", "code/x", "../x", "/etc/x"]
    entry = st.tuples(
        st.sampled_from(["archive", "", "b"]),
        st.sampled_from(names),
        st.sampled_from([data, X.tobytes(), b"big", b"little", b""]),
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    )

    def check(entries):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for root, name, content, method in entries:
                info = zipfile.ZipInfo(f"{root}/{name}")
                info.compress_type = method
                archive.NameToInfo.pop(info.filename, None)  # twice, without a warning
                archive.writestr(info, content)
        path.write_bytes(out.getvalue())
        look_at(path)

    fuzz(st.lists(entry, max_size=6), check)


_FIELDS = ["dtype", "shape", "data_offsets", "__metadata__", "fdjax"]
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["F32", "BF16", "float32", "a/b", "a.b", "I8"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=4)
            | st.sampled_from(
                ["dtype", "shape", "data_offsets", "__metadata__", "fdjax"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


def _safetensors(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_headers_of_safetensors(fuzz, tmp_path):
    path = tmp_path / "a.safetensors"
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "U8", "BF16", "F4"]) | _JSON,
            "shape": st.lists(st.integers(0, 30), max_size=3) | _JSON,
            "data_offsets": st.lists(st.integers(0, 99), max_size=3) | _JSON,
        }
    )
    names = st.sampled_from(["a", "a/b", "model.x", "x.weight", "x.weight_scale"])
    header = st.dictionaries(names | st.text(max_size=3), entry | _JSON, max_size=3)

    def check(example):
        path.write_bytes(_safetensors(*example))
        look_at(path)

    fuzz(st.tuples(header | _JSON, st.binary(max_size=99)), check)


def test_damaged_safetensors(fuzz, tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a/b": X, "c/d": X[0]}, path)
    whole = path.read_bytes()

    def check(changes):
        path.write_bytes(apply(changes, whole))
        look_at(path)

    fuzz(damage([b"[" * 2000, b'"shape":null', b"1e999", b"\xff", b'{"a":']), check)


def _replaced(tree, strategy):
    """The tree with some of its fields, or fields of those, replaced or left out."""
    fields = st.sampled_from(sorted(tree))
    return st.dictionaries(fields, strategy, max_size=3).map(lambda new: tree | new)


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_our_own_metadata(fuzz, tmp_path, kind):
    whole = tmp_path / "whole"
    checkpoint.save(whole, {"a": {"b": X}}, architecture="mlp", config={"width": 3})
    tree = json.loads((whole / "fdjax.json").read_text())
    shapes = st.dictionaries(
        st.sampled_from(["a/b", "a", "", "a//b", "a/b/c"]), _JSON, max_size=2
    )

    def check(example):
        text = json.dumps(example)
        if kind == "directory":
            (whole / "fdjax.json").write_text(text)
            look_at(whole)
        else:
            path = tmp_path / "a.safetensors"
            path.write_bytes(_safetensors({"__metadata__": {"fdjax": text}}, b""))
            look_at(path)

    fuzz(_replaced(tree, _JSON | shapes) | _JSON, check)


def test_configs(fuzz):
    config = tiny.CONFIG
    classes = KnownClasses(packages=frozenset({"fdjax", "fdjax_models", "tests"}))
    tree = json.loads(to_json(config, classes=classes))
    marks = ["_class", "_enum", "_float", "_path", "_type", "_exec"]
    names = [
        "os:system",
        "fdjax.axes:Params",
        "tests:x",
        "fdjax.\0:x",
        "subprocess:Popen",
    ]
    marked = st.dictionaries(
        st.sampled_from(marks), _JSON | st.sampled_from(names), max_size=2
    )

    def check(example):
        with documented(ValueError, KeyError, TypeError):
            from_json(json.dumps(example), classes=classes)

    fuzz(_replaced(tree, _JSON | marked) | marked | _JSON, check)


def test_indices(fuzz, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    safetensors.numpy.save_file({"a": X}, tmp_path / "one.safetensors")
    files = (
        st.sampled_from(["one.safetensors", "..", ".", "", "two", "\0", "a/b"]) | _JSON
    )
    maps = st.dictionaries(st.sampled_from(["a", "b"]), files, max_size=2)

    def check(example):
        index.write_text(json.dumps(example))
        look_at(index)
        look_at(tmp_path)

    fuzz(st.fixed_dictionaries({"weight_map": maps | _JSON}) | _JSON, check)
