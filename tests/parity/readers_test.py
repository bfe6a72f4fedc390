"""Readers without torch, compared with torch.save, torch.load and safetensors."""

import collections
import pathlib
import warnings

import ml_dtypes
import numpy as np
import pytest

from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.tensors import LazyTensor, as_lazy
from fdjax_convert.formats import readers, writers
from fdjax_convert.formats.torch_format import read_torch
from tests.parity import imports

torch = imports.lazy("torch")
safetensors_torch = imports.lazy("safetensors.torch")

pytestmark = imports.requires("torch")

DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex64": np.complex64,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


def make(dtype, *shape):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(*shape, generator=generator) * 50).abs().to(dtype)


def same_bytes(lazy, tensor):
    """Whether a LazyTensor equals a torch tensor, bit for bit."""
    expected = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    array = lazy.read()
    assert lazy.shape == tuple(tensor.shape)
    assert lazy.dtype == DTYPES[str(tensor.dtype).removeprefix("torch.")]
    return np.ascontiguousarray(array).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path, dtype):
    tensor = make(getattr(torch, dtype), 3, 5)
    torch.save({"x": tensor}, tmp_path / "a.pt")
    checkpoint = readers.open_checkpoint(tmp_path / "a.pt")
    assert same_bytes(checkpoint.tensors["x"], tensor)
    safetensors_torch.save_file({"x": tensor}, tmp_path / "a.safetensors")
    checkpoint = readers.open_checkpoint(tmp_path / "a.safetensors")
    assert same_bytes(checkpoint.tensors["x"], tensor)


def test_views_and_shared_storages(tmp_path):
    base = make(torch.bfloat16, 6, 8, 4)
    saved = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "slice": base[2:5, 1::3],
        "column": base[:, 3, 1],
        "one": base[4, 2, 3],
        "expanded": base[0, 0, :1].expand(7, 4),
        "empty": base[:0],
        "scalar": torch.tensor(3.5),
        "diagonal": torch.diagonal(base[:, :, 0]),
        "parameter": torch.nn.Parameter(base.float()),
        "transposed_parameter": torch.nn.Parameter(base.float()[0].T),
    }
    torch.save(saved, tmp_path / "a.pth")
    tensors = readers.open_checkpoint(tmp_path / "a.pth").tensors
    assert tensors.keys() == saved.keys()
    for key, value in saved.items():
        assert same_bytes(tensors[key], value), key


def test_state_dict_of_a_module(tmp_path):
    module = torch.nn.Sequential(
        torch.nn.Conv3d(3, 4, (1, 2, 2)),
        torch.nn.BatchNorm2d(4),
        torch.nn.Linear(4, 5, bias=False),
    )
    for path, content in {
        "state.pt": module.state_dict(),
        "nested.ckpt": {"epoch": 3, "state_dict": module.state_dict(), "lr": 1e-4},
    }.items():
        torch.save(content, tmp_path / path)
        tensors = readers.open_checkpoint(tmp_path / path).tensors
        assert tensors.keys() == module.state_dict().keys()
        for key, value in module.state_dict().items():
            assert same_bytes(tensors[key], value), key


LATENTS = pathlib.Path(__file__).parents[3] / "shared/data/wan_latents"


@pytest.mark.skipif(not LATENTS.exists(), reason="the shared data are not here")
def test_a_file_of_others():
    """Latents saved on a GPU: one tensor on its own, bfloat16."""
    path = LATENTS / "test_latents_wan.pth"
    tensor = torch.load(path, map_location="cpu", weights_only=True)
    found = readers.open_checkpoint(path).tensors
    assert list(found) == ["tensor"]
    assert same_bytes(found["tensor"], tensor)


def test_structures_are_kept(tmp_path):
    saved = {
        "numbers": [1, 2.5, None, True, "text", b"bytes", (1, 2), {3}],
        "ordered": collections.OrderedDict(a=torch.zeros(1), b=torch.ones(1)),
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "complex": 1 + 2j,
    }
    torch.save(saved, tmp_path / "a.pt")
    content = read_torch(tmp_path / "a.pt")
    assert content["numbers"] == saved["numbers"]
    assert list(content["ordered"]) == ["a", "b"]
    assert content["size"] == (2, 3)
    assert content["complex"] == 1 + 2j
    assert isinstance(content["ordered"]["b"], LazyTensor)
    assert content["ordered"]["b"].read() == 1


def test_optimizer_state_beside_the_weights(tmp_path):
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "critic": {"w": torch.zeros(9)},
        "generator": {"w": torch.zeros(1)},
        "generator_ema": {
            f"model._fsdp_wrapped_module.{key}": value
            for key, value in module.state_dict().items()
        },
        "optimizer": optimizer.state_dict(),
        "step": 7,
    }
    torch.save(content, tmp_path / "a.pt")
    checkpoint = readers.open_checkpoint(tmp_path / "a.pt")
    assert checkpoint.tensors.keys() == {"weight", "bias"}
    assert checkpoint.wrapper == ("generator_ema",)
    assert checkpoint.prefix == "model._fsdp_wrapped_module."
    assert set(checkpoint.skipped) == {"critic", "generator", "optimizer", "step"}
    assert same_bytes(checkpoint.tensors["weight"], module.weight)
    other = readers.open_checkpoint(tmp_path / "a.pt", wrapper="critic")
    assert other.tensors["w"].shape == (9,)
    with pytest.raises(CheckpointError, match=r"no entry 'ema'; .* generator_ema"):
        readers.open_checkpoint(tmp_path / "a.pt", wrapper="ema")


def test_sharded_index_of_torch_files(tmp_path):
    import json

    parts = {
        "a.bin": {"x": make(torch.float32, 3)},
        "b.bin": {"y": make(torch.int8, 2)},
    }
    for name, content in parts.items():
        torch.save(content, tmp_path / name)
    index = {"weight_map": {"x": "a.bin", "y": "b.bin"}}
    (tmp_path / "model.bin.index.json").write_text(json.dumps(index))
    tensors = readers.open_checkpoint(tmp_path).tensors
    assert same_bytes(tensors["x"], parts["a.bin"]["x"])
    assert same_bytes(tensors["y"], parts["b.bin"]["y"])


def test_the_legacy_format_is_refused_with_its_cure(tmp_path, capfd):
    old = tmp_path / "old.pth"
    torch.save({"x": torch.ones(3)}, old, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before 1\.6") as error:
        readers.open_checkpoint(old)
    # The line that it names does what it says.
    line = str(error.value).splitlines()[-1].strip()
    code = line.removeprefix('python -c "').removesuffix('"')
    exec(compile(code, "resave", "exec"), {})
    new = readers.open_checkpoint(tmp_path / "old-new.pth")
    np.testing.assert_array_equal(new.tensors["x"].read(), np.ones(3))


def test_objects_of_other_classes_are_refused_by_name(tmp_path):
    cases = {
        "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2),
        "argparse.Namespace": __import__("argparse").Namespace(lr=1),
    }
    for name, value in cases.items():
        torch.save({"x": value}, tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            readers.open_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_without_plain_values_are_no_weights(tmp_path, kind):
    """Torch's own loader takes them, beside weights too; weights they are not."""
    value = (
        torch.eye(3).to_sparse() if kind == "sparse" else torch.eye(3, device="meta")
    )
    torch.save({"x": value}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        readers.open_checkpoint(tmp_path / "a.pt")
    torch.save({"x": value, "y": torch.ones(2)}, tmp_path / "a.pt")
    assert list(readers.open_checkpoint(tmp_path / "a.pt").tensors) == ["y"]


def test_lazy_negation_is_refused(tmp_path):
    tensor = torch._neg_view(torch.ones(2))
    torch.save({"x": tensor}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="neg"):
        readers.open_checkpoint(tmp_path / "a.pt")


def test_torchscript_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        readers.open_checkpoint(tmp_path / "a.pt")


def test_files_without_checksums_are_read(tmp_path):
    tensor = make(torch.float32, 100)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": tensor}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert same_bytes(readers.open_checkpoint(tmp_path / "a.pt").tensors["x"], tensor)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol):
    tensor = make(torch.bfloat16, 4, 3)
    saved = collections.OrderedDict({"x": tensor, "y": tensor.T})
    torch.save(saved, tmp_path / "a.pt", pickle_protocol=protocol)
    tensors = readers.open_checkpoint(tmp_path / "a.pt").tensors
    assert same_bytes(tensors["x"], tensor)
    assert same_bytes(tensors["y"], tensor.T)


@pytest.mark.parametrize("dtype", list(writers._STORAGES), ids=str)
def test_torch_reads_what_the_writer_wrote(tmp_path, dtype):
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": (rng.standard_normal((4, 6)) * 9).astype(dtype),
        "a.bias": np.zeros(0, dtype),
        "scalar": np.asarray(1, dtype),
        "transposed": (rng.standard_normal((5, 3)) * 9).astype(dtype).T,
    }
    tensors = {key: as_lazy(value) for key, value in arrays.items()}
    path = tmp_path / "a.pt"
    writers.write_checkpoint(path, tensors, wrapper=("ema", "x"), prefix="model.")
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)["ema"]["x"]
        assert list(loaded) == [f"model.{key}" for key in arrays]
        for key, value in arrays.items():
            tensor = loaded[f"model.{key}"]
            assert DTYPES[str(tensor.dtype).removeprefix("torch.")] == dtype.type
            assert tuple(tensor.shape) == value.shape
            found = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            assert found == value.tobytes()
            assert tensor.data_ptr() % 64 == 0 or not mapped or not value.size
    path = tmp_path / "a.safetensors"
    writers.write_checkpoint(path, tensors)
    loaded = safetensors_torch.load_file(path)
    for key, value in arrays.items():
        found = loaded[key].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert found == value.tobytes()
