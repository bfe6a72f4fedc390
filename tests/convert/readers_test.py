"""Which checkpoints are opened, how wrappers are removed, what is refused and why."""

import builtins
import json
import os
import pickle
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from fdjax.checkpoint.errors import CheckpointError
from fdjax_convert.formats import readers
from tests.convert import torch_files
from tests.convert.torch_files import Call, Global, Reference, dumps

X = np.arange(24, dtype=np.float32).reshape(4, 6)


def read(path, **kwargs):
    tensors = readers.open_checkpoint(path, **kwargs).tensors
    return {key: tensor.read() for key, tensor in tensors.items()}


def test_safetensors_keep_bfloat16(tmp_path):
    values = {"a": X.astype(ml_dtypes.bfloat16), "b": X.astype(np.float16)}
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(values, path, metadata={"format": "pt"})
    checkpoint = readers.open_checkpoint(path)
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.num_bytes == 2 * X.nbytes // 2
    for key, value in values.items():
        array = checkpoint.tensors[key].read()
        assert array.dtype == value.dtype
        assert array.tobytes() == value.tobytes()
        assert not array.flags.writeable


def test_values_stay_valid_after_release_and_after_the_file_is_gone(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"x": X}, path)
    tensor = readers.open_checkpoint(path).tensors["x"]
    array = tensor.read()
    tensor.release()
    path.unlink()
    np.testing.assert_array_equal(array, X)


def test_the_content_decides_not_the_name(tmp_path):
    safetensors.numpy.save_file({"x": X}, tmp_path / "a.pth")
    torch_files.save(tmp_path / "b.safetensors", {"x": X})
    np.testing.assert_array_equal(read(tmp_path / "a.pth")["x"], X)
    np.testing.assert_array_equal(read(tmp_path / "b.safetensors")["x"], X)


def make_shards(directory, name="model.safetensors.index.json"):
    safetensors.numpy.save_file({"a": X}, directory / "one.safetensors")
    safetensors.numpy.save_file({"b": -X}, directory / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (directory / name).write_text(json.dumps(index))
    return directory / name


def test_sharded_index_and_its_directory(tmp_path):
    index = make_shards(tmp_path)
    for path in (index, tmp_path, str(tmp_path)):
        values = read(path)
        np.testing.assert_array_equal(values["a"], X)
        np.testing.assert_array_equal(values["b"], -X)
    assert [f.name for f in readers.open_checkpoint(index).files] == [
        "one.safetensors",
        "two.safetensors",
    ]


def test_all_missing_shards_are_named(tmp_path):
    index = make_shards(tmp_path)
    (tmp_path / "one.safetensors").unlink()
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"one\.safetensors, two\.safetensors"):
        readers.open_checkpoint(index)


def test_a_shard_of_another_checkpoint_is_refused(tmp_path):
    index = make_shards(tmp_path)
    safetensors.numpy.save_file({"other": X}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"lack 1 of its 2 .* b \(two\.safe"):
        readers.open_checkpoint(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "must hold a `weight_map`"),
        ('{"weight_map": {}}', "must hold a `weight_map`"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "not a file beside it"),
        ('{"weight_map": {"a": 3}}', "not a file beside it"),
    ],
)
def test_bad_indices_are_refused(tmp_path, content, message):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        readers.open_checkpoint(path)


def test_directories_that_do_not_say_which_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint$"):
        readers.open_checkpoint(tmp_path)
    inner = tmp_path / "transformer"
    inner.mkdir()
    make_shards(inner)
    with pytest.raises(FileNotFoundError, match="its folders transformer do"):
        readers.open_checkpoint(tmp_path)
    safetensors.numpy.save_file({"x": X}, tmp_path / "a.safetensors")
    assert readers.open_checkpoint(tmp_path).path.name == "a.safetensors"
    torch_files.save(tmp_path / "b.pth", {"x": X})
    with pytest.raises(CheckpointError, match=r"a\.safetensors, b\.pth"):
        readers.open_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing\.pt"):
        readers.open_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "model.",
        "net.",
        "module.",
        "model._fsdp_wrapped_module.",
        "_fsdp_wrapped_module.",
        "net._orig_mod.",
        "model.diffusion_model.",
    ],
)
@pytest.mark.parametrize(
    "levels",
    [(), ("generator_ema",), ("generator",), ("state_dict",), ("run", "weights")],
)
def test_wrappers_and_prefixes(tmp_path, levels, prefix):
    content = {prefix + "blocks.0.w": X, prefix + "head.w": -X}
    for level in reversed(levels):
        content = {"step": 3, level: content}
    checkpoint = readers.open_checkpoint(torch_files.save(tmp_path / "a.pt", content))
    assert set(checkpoint.tensors) == {"blocks.0.w", "head.w"}
    np.testing.assert_array_equal(checkpoint.tensors["head.w"].read(), -X)
    assert checkpoint.wrapper == levels
    assert checkpoint.prefix == prefix


def test_prefixes_inside_keys_and_on_some_keys(tmp_path):
    content = {"model.blocks.0._fsdp_wrapped_module.w": X, "head.w": X}
    checkpoint = readers.open_checkpoint(torch_files.save(tmp_path / "a.pt", content))
    assert set(checkpoint.tensors) == {"blocks.0.w", "head.w"}
    assert checkpoint.prefix == ""


def test_the_ema_is_preferred_and_others_can_be_chosen(tmp_path):
    content = {"generator": {"w": X}, "generator_ema": {"w": -X}, "critic": {"v": X}}
    path = torch_files.save(tmp_path / "a.pt", content)
    np.testing.assert_array_equal(read(path)["w"], -X)
    np.testing.assert_array_equal(read(path, wrapper="generator")["w"], X)
    flat = {
        f"{a}.model.{b}": v for a, inner in content.items() for b, v in inner.items()
    }
    safetensors.numpy.save_file(flat, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read(tmp_path / "a.safetensors")["w"], -X)
    path = torch_files.save(
        tmp_path / "b.pt", {"student": {"w": X}, "teacher": {"w": X}}
    )
    with pytest.raises(CheckpointError, match=r"--wrapper: student, teacher"):
        readers.open_checkpoint(path)


def test_keys_that_prefixes_alone_tell_apart_are_refused(tmp_path):
    path = torch_files.save(tmp_path / "a.pt", {"w": X, "model.w": X})
    with pytest.raises(CheckpointError, match=r"w and model\.w are the same key"):
        readers.open_checkpoint(path)


@pytest.mark.parametrize("content", [{}, {"step": 3}, [1, 2], 5, None, "text"])
def test_files_without_tensors_are_refused(tmp_path, content):
    path = torch_files.save(tmp_path / "a.pt", content)
    with pytest.raises(CheckpointError, match="tensors"):
        readers.open_checkpoint(path)


def test_values_that_are_no_tensors_are_listed(tmp_path):
    path = torch_files.save(tmp_path / "a.pt", {"w": X, "_extra_state": None, "n": 1})
    checkpoint = readers.open_checkpoint(path)
    assert list(checkpoint.tensors) == ["w"]
    assert checkpoint.skipped == ("_extra_state: NoneType", "n: int")


# --- damaged files ----------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.97])
def test_truncated_files_are_refused(tmp_path, suffix, keep):
    path = tmp_path / f"a{suffix}"
    values = {"x": np.zeros((50, 50), np.float32), "y": np.ones(2000, np.float16)}
    if suffix == ".pt":
        torch_files.save(path, values)
    else:
        safetensors.numpy.save_file(values, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(CheckpointError, match=r"truncated|not finish") as error:
        readers.open_checkpoint(path)
    assert str(path) in str(error.value)


def test_a_byte_cut_anywhere_never_gives_another_error(tmp_path):
    path = tmp_path / "a.pt"
    data = torch_files.save(path, {"x": X}).read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            readers.open_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_flipped_bytes_never_give_another_error(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch_files.save(path, {"generator": {"x": X}})
    else:
        safetensors.numpy.save_file({"x": X, "y": X[0]}, path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            tensors = readers.open_checkpoint(path).tensors
            for tensor in tensors.values():
                tensor.read()
        except CheckpointError:
            pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
        (b"\x80\x04\x95\x05\x00", "plain pickle"),
        (b"\0" * 4096, "starts with zeros"),
        (b"GGUF\x03\x00\x00\x00" + b"x" * 99, "starts with b'GGUF"),
        (b"PK\x03\x04" + b"x" * 99, "truncated or corrupt"),
        (readers.LEGACY_MAGIC + b"rest", r"torch\.save\(torch\.load\("),
        ((200).to_bytes(8, "little") + b"{" + b" " * 300, "not a valid safetensors"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, message):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        readers.open_checkpoint(path)
    assert str(path) in str(error.value)


def test_zip_files_of_other_programs_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"not one of torch\.save"):
        readers.open_checkpoint(path)
    data = dumps({"x": torch_files.tensor(torch_files.storage("0", X), X.shape)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data * 1)
        archive.writestr("archive/data/0", X.tobytes())
    with pytest.raises(CheckpointError, match="compressed"):
        readers.open_checkpoint(path)


# --- hostile files ----------------------------------------------------------------


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that the hostile pickles would create."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


class Reduce:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("touch canary",), f"{os.name}.system"),
        (builtins.eval, ("open('canary', 'w')",), "builtins.eval"),
        (builtins.exec, ("open('canary', 'w')",), "builtins.exec"),
        (builtins.getattr, (os, "system"), "builtins.getattr"),
        (builtins.open, ("canary", "w"), r"(_?io|builtins).open"),
        (np.load, ("canary",), "numpy.load"),
        (pickle.loads, (b"x",), "_?pickle.loads"),
        (__import__("subprocess").Popen, ("touch canary",), "subprocess.Popen"),
    ],
)
def test_a_call_of_any_other_function_is_refused_by_name(
    canary, tmp_path, protocol, function, args, name
):
    if function is builtins.getattr:
        args = ("text", "upper")
    data = pickle.dumps({"x": Reduce(function, args)}, protocol)
    path = torch_files.write(tmp_path / "a.pt", data)
    pattern = name if "?" in name or "(" in name else re.escape(name)
    with pytest.raises(CheckpointError, match=rf"asks for {pattern},.*Nothing of it"):
        readers.open_checkpoint(path)


ORDERED = Global("collections", "OrderedDict")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")


@pytest.mark.parametrize(
    "data",
    [
        # Names reached through an allowed one.
        dumps(Call(Global("collections", "OrderedDict.fromkeys"), (1, 2))),
        dumps(Call(Global("torch", "load"), "canary")),
        dumps(Call(Global("torch._utils", "_rebuild_tensor_v2.__globals__"))),
        # The old opcodes that build an instance, and an extension code.
        b"(S'touch canary'\nios\nsystem\n.",
        b"cos\nsystem\n(S'touch canary'\no.",
        b"\x80\x02\x82\x01.",
        # An allowed function that would call another one.
        dumps(Call(Global("torch._tensor", "_rebuild_from_type_v2"), print, 0, (), 0)),
        dumps(Call(Global("torch", "BFloat16Storage"), 3)),
        # State that would replace what a stand-in does.
        b"\x80\x02ccollections\nOrderedDict\n}U\x05_callcos\nsystem\nsb.",
        b"\x80\x02ccollections\nOrderedDict\nN}U\x05_callK\x01s\x86b.",
        b"\x80\x02ctorch\nFloatStorage\n}U\x05dtypeK\x01sb.",
        # A class method through NEWOBJ.
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    ],
)
def test_tricks_are_refused(canary, tmp_path, data):
    with pytest.raises(CheckpointError):
        readers.open_checkpoint(torch_files.write(tmp_path / "a.pt", data))
    # The stand-ins are as they were.
    assert read(torch_files.save(tmp_path / "b.pt", {"x": X}))["x"].shape == X.shape


def _x(**kwargs):
    return torch_files.tensor(torch_files.storage("0", X), **kwargs)


@pytest.mark.parametrize(
    "tensor",
    [
        _x(shape=(4, 7)),
        _x(shape=(4, 6), offset=1),
        _x(shape=(4, 6), stride=(6, 2)),
        _x(shape=(4,), stride=(-1,), offset=8),
        _x(shape=(4,), stride=(1,), offset=-8),
        _x(shape=(-4,), stride=(1,)),
        _x(shape=(2, 2), stride=(1,)),
        _x(shape=(1 << 62, 1 << 62), stride=(1, 1)),
        _x(shape=(2.0, 2), stride=(2, 1)),
        _x(shape=(True, 2), stride=(2, 1)),
        torch_files.tensor(torch_files.storage("1", X), X.shape),
        torch_files.tensor(torch_files.storage("0", X, count=25), X.shape),
        torch_files.tensor(torch_files.storage("0", X, count=-24), X.shape),
        torch_files.tensor(torch_files.storage("0", X, count=1 << 70), X.shape),
        torch_files.tensor(torch_files.storage("../../0", X), X.shape),
        torch_files.tensor(Reference("file", "/etc/passwd"), X.shape),
        torch_files.tensor(
            Reference("storage", "FloatStorage", "0", "cpu", 24), (4, 6)
        ),
        Call(REBUILD, "no storage", 0, (4,), (1,), False, {}),
        Call(REBUILD, torch_files.storage("0", X)),
        Call(
            REBUILD, torch_files.storage("0", X), 0, (4,), (1,), False, {}, {"neg": 1}
        ),
    ],
)
def test_tensors_outside_their_storage_are_refused(tmp_path, tensor):
    path = torch_files.write(tmp_path / "a.pt", dumps({"x": tensor}), {"0": X})
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        readers.open_checkpoint(path)


def test_structures_without_end_are_refused(tmp_path):
    x = _x(shape=X.shape)
    loop = {"x": x}
    loop["loop"] = loop
    path = torch_files.write(tmp_path / "a.pt", dumps(loop), {"0": X})
    with pytest.raises(CheckpointError, match="contains itself"):
        readers.open_checkpoint(path)
    laughs = {"x": x}
    for _ in range(40):
        laughs = {"x": x, "a": laughs, "b": laughs}
    path = torch_files.write(tmp_path / "b.pt", dumps(laughs), {"0": X})
    with pytest.raises(CheckpointError, match="more than 100000 entries"):
        readers.open_checkpoint(path)
