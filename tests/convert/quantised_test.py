"""Integers are refused by key, 8-bit floats multiplied out, other files named."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from fdjax import checkpoint
from fdjax.checkpoint.errors import CheckpointError
from fdjax_convert import cli, inspect, recognise, rules
from fdjax_convert import convert as load
from fdjax_convert.formats import readers
from fdjax_convert.rules.problems import ConversionError
from tests.convert import tiny_components as tiny
from tests.convert import torch_files
from tests.convert.load_test import OFFICIAL, make, save

F8 = ml_dtypes.float8_e4m3fn
ROWS = np.arange(1, 7, dtype=np.float32)
X = np.linspace(-3, 3, 48, dtype=np.float32).reshape(6, 8)
_NAMES = {
    np.dtype(F8): "F8_E4M3",
    np.dtype(np.float32): "F32",
    np.dtype(np.uint8): "U8",
}


def write(path, tensors):
    """A safetensors file, 8-bit floats included, by hand."""
    header, position, data = {}, 0, b""
    for key, value in tensors.items():
        data += value.tobytes()
        header[key] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [position, len(data)],
        }
        position = len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def read(path, key):
    tensor = readers.open_checkpoint(path).tensors[key]
    assert tensor.dtype == np.float32
    return tensor.read()


@pytest.fixture(scope="module")
def tensors():
    return tiny.published(OFFICIAL)


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "bool", "int64", "int16", "complex64", "uint32"]
)
@pytest.mark.parametrize("key", ["ffn.0.weight", "ffn.0.bias", "self_attn.k.weight"])
def test_what_is_not_floating_is_refused_by_key(tmp_path, tensors, dtype, key):
    wrong = {k: v.astype(dtype) if key in k else v for k, v in tensors.items()}
    path = save(tmp_path / "a.safetensors", wrong)
    with pytest.raises(ConversionError) as error:
        load.load_params(make(OFFICIAL, path), str(path))
    for number in range(3):
        assert f"blocks.{number}.{key}: holds {dtype}, must be" in str(error.value)
    assert "a quantised checkpoint" in str(error.value)
    assert len(error.value.problems) == 3


def test_our_own_format_is_looked_at_too(tmp_path):
    layout = next(one for one in tiny.ALL if one.architecture == "taehv_decoder")
    component = make(layout, tmp_path / "a.safetensors")
    flat = {
        key: np.zeros(leaf.shape, np.int8 if "bias" in key else np.float32)
        for key, leaf in flatten(component.param_shapes()).items()
    }
    safetensors.numpy.save_file(flat, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"bias holds int8, .* quantised check"):
        checkpoint.load_params(component)


def flatten(tree):
    from flax import traverse_util

    return traverse_util.flatten_dict(tree, sep="/")


SCALES = {
    "scalar": (np.full((), 0.25, np.float32), 0.25),
    "one": (np.full(1, 0.25, np.float32), 0.25),
    "rows": (ROWS, ROWS[:, None]),
    "rows of one": (
        np.arange(1, 7, dtype=np.float32)[:, None],
        np.arange(1, 7)[:, None],
    ),
    "columns": (np.arange(1, 9, dtype=np.float32)[None], np.arange(1, 9)[None]),
    "blocks": (
        np.arange(1, 5, dtype=np.float32).reshape(2, 2),
        np.kron([[1, 2], [3, 4]], np.ones((3, 4))),
    ),
}


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("kind", list(SCALES))
def test_scales_are_multiplied_in_float32(tmp_path, name, kind):
    scale, factors = SCALES[kind]
    values = X.astype(F8)
    file = {"a.weight": values, f"a.{name}": np.asarray(scale), "b.weight": values}
    opened = readers.open_checkpoint(write(tmp_path / "a.safetensors", file))
    assert set(opened.tensors) == {"a.weight", "b.weight"}
    assert opened.tensors["b.weight"].dtype == F8
    np.testing.assert_array_equal(
        read(opened.path, "a.weight"), values.astype(np.float32) * np.float32(factors)
    )
    assert f"a.{name}: multiplied with a.weight" in opened.skipped


def test_scales_of_blocks_of_128(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((200, 130)).astype(F8)
    scale = np.array([[1, 2], [4, 8]], np.float32)
    path = write(
        tmp_path / "a.safetensors", {"a.weight": values, "a.weight_scale_inv": scale}
    )
    factors = np.kron(scale, np.ones((128, 128), np.float32))[:200, :130]
    np.testing.assert_array_equal(
        read(path, "a.weight"), values.astype(np.float32) * factors
    )


@pytest.mark.parametrize(
    ("weight", "scales", "message"),
    [
        (
            X.astype(F8),
            {"weight_scale": np.ones(5, np.float32)},
            r"\[5\] does not suit",
        ),
        (
            X.astype(F8),
            {"weight_scale_inv": np.ones((2, 2), np.float32)},
            r"\[2, 2\] does not suit a weight of \[6, 8\]",
        ),
        (
            X.astype(F8),
            {"weight_scale": np.ones((1, 1, 2), np.float32)},
            "does not suit",
        ),
        (
            X.astype(np.uint8),
            {"weight_scale": np.ones(6, np.float32)},
            "scales uint8",
        ),
        (X, {"weight_scale": np.full(1, 2, np.float32)}, "must scale an 8-bit float"),
        (
            X.astype(F8),
            {"weight_scale": np.ones(6, np.uint8)},
            "must be floating",
        ),
        (
            X.astype(F8),
            {
                "weight_scale": np.ones(1, np.float32),
                "scale_weight": np.ones(1, np.float32),
            },
            "second scale of one tensor",
        ),
    ],
)
def test_scales_that_do_not_suit_are_refused_by_key(tmp_path, weight, scales, message):
    file = {"a.weight": weight} | {f"a.{name}": s for name, s in scales.items()}
    with pytest.raises((CheckpointError, ConversionError), match=message) as error:
        readers.open_checkpoint(write(tmp_path / "a.safetensors", file))
    assert "quantised checkpoint" in str(error.value)
    assert "a.weight_scale" in str(error.value) or "a.scale_weight" in str(error.value)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "dit."])
@pytest.mark.parametrize("marker", [0, 2])
def test_a_scaled_network_loads(tmp_path, tensors, prefix, marker):
    """ComfyUI's scaled fp8: marker, scales of weights and of inputs, any prefix."""
    scaled = {"scaled_fp8": np.zeros(marker, F8)}
    for key, value in tensors.items():
        scaled[key] = value
        if value.ndim == 2 and "blocks" in key:
            scale = np.abs(value).max() / 448
            scaled[key] = (value / scale).astype(F8)
            start = key.removesuffix("weight")
            scaled[start + "scale_weight"] = np.asarray(scale, np.float32)
            scaled[start + "scale_input"] = np.ones((), np.float32)
            scaled[start + "comfy_quant"] = np.zeros(9, np.uint8)
    path = write(
        tmp_path / "a.safetensors", {prefix + key: v for key, v in scaled.items()}
    )
    params = load.load_params(make(OFFICIAL, path), str(path))
    expected = flatten(tiny.random_params(tiny.config_of(OFFICIAL)))
    for name, value in flatten(params).items():
        wanted = expected[name]
        worst = np.abs(np.asarray(value, np.float32) - wanted).max()
        assert worst <= np.abs(wanted).max() * 2**-4, name  # 3 bits of mantissa
    assert "unknown keys" not in inspect.inspect(path)
    assert "of activations, which are not quantised here" in inspect.inspect(path)


@pytest.mark.parametrize(
    ("key", "dtype", "message"),
    [
        ("blocks.0.q.lora_A.weight", "float32", "is a LoRA"),
        ("base_model.model.blocks.0.q.lora_B.default.weight", "float32", "is a LoRA"),
        ("diffusion_model.blocks.0.q.lora_down.weight", "float32", "is a LoRA"),
        ("lora_unet_blocks_0_q.lora_up.weight", "float32", "is a LoRA"),
        ("lora_unet_blocks_0_q.hada_w1_a", "float32", "is a LoHa or LoKr"),
        ("transformer.blocks.0.q.lokr_w1", "float32", "is a LoHa or LoKr"),
        ("blocks.0.q.weight.absmax", "uint8", "quantised by bitsandbytes"),
        ("blocks.0.q.weight.quant_map", "float32", "quantised by bitsandbytes"),
        (
            "blocks.0.q.weight.quant_state.bitsandbytes__nf4",
            "uint8",
            "quantised by bitsandbytes",
        ),
        ("blocks.0.q.SCB", "float32", "quantised by bitsandbytes"),
        ("blocks.0.q.qweight", "int32", "quantised by GPTQ or AWQ"),
        ("blocks.0.q.qzeros", "int32", "quantised by GPTQ or AWQ"),
        ("blocks.0.q.weight_scale_2", "float32", "4-bit floats"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, key, dtype, message):
    path = save(tmp_path / "a.safetensors", {key: np.ones((2, 2), dtype)})
    with pytest.raises(CheckpointError, match=message) as error:
        load.load_params(make(OFFICIAL, path), str(path))
    assert "take the " in str(error.value)
    assert message.removeprefix("is ") in inspect.inspect(path)


def test_a_folder_of_peft_is_a_lora(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save(
        tmp_path / "adapter_model.safetensors",
        {"base_model.model.blocks.0.q.lora_A.weight": X},
    )
    assert cli.run([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "is a LoRA" in capsys.readouterr().err


def test_known_layouts_are_not_taken_for_others():
    from fdjax_convert import kinds

    for layout in tiny.ALL:
        assert kinds.foreign_kind(tiny.published(layout)) is None


# --- mixed types ------------------------------------------------------------------

_FLOATS = (np.float32, np.float16, ml_dtypes.bfloat16, F8, ml_dtypes.float8_e5m2)


@pytest.mark.parametrize("q", _FLOATS)
@pytest.mark.parametrize("k", _FLOATS)
def test_projections_of_any_types_are_joined(tmp_path, q, k):
    values = np.array([[1.5, -0.25], [96.0, 0.0]])
    source = {"q": values.astype(q), "k": values.astype(k), "v": values.astype(q)}
    table = (rules.Rule(("q", "k", "v"), "x", rules_concatenate()),)
    import jax

    target = {"x": jax.ShapeDtypeStruct((6, 2), np.float32)}
    params = rules.convert(source, table, target)
    np.testing.assert_array_equal(params["x"], np.concatenate([values] * 3))


def rules_concatenate():
    from fdjax_convert.rules import transforms

    return transforms.concatenate(3)


# --- what torch takes -------------------------------------------------------------


def test_names_are_those_of_torch():
    torch = pytest.importorskip("torch", reason="compares with torch's own list")
    from torch import _weights_only_unpickler

    from fdjax_convert.formats.torch_names import ALLOWED

    assert torch is not None
    assert set(ALLOWED) == set(_weights_only_unpickler._get_allowed_globals())


def test_what_torch_takes_may_stand_beside_the_weights(tmp_path):
    torch = pytest.importorskip("torch", reason="writes objects of torch")
    import collections

    values = {
        "counter": collections.Counter("aab"),
        "bytearray": bytearray(b"a"),
        "bytes": b"abc",
        "layout": torch.strided,
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "conjugated": torch.zeros(2, dtype=torch.complex64).conj(),
        "size": torch.Size([1]),
        "set": {1, 2},
        "complex": 1j,
        "device": torch.device("cuda:1"),
        "dtypes": [torch.uint3, torch.float8_e5m2, torch.quint8, torch.bits8],
        "parameter": torch.nn.Parameter(torch.zeros(2)),
        "numbers": [float("nan"), 2**100, None, True, "ü"],
    }
    for name, value in values.items():
        path = tmp_path / f"{name}.pt"
        torch.save({"generator": {"w": torch.ones(2)}, "extra": value}, path)
        torch.load(path, weights_only=True)
        np.testing.assert_array_equal(
            readers.open_checkpoint(path).tensors["w"].read(), [1, 1]
        )


def test_a_tensor_that_cannot_be_read_is_not_taken(tmp_path):
    torch = pytest.importorskip("torch", reason="writes a sparse tensor")
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2), "v": torch.eye(3).to_sparse()}, path)
    opened = readers.open_checkpoint(path)
    assert list(opened.tensors) == ["w"]
    assert opened.skipped == ("v: a sparse tensor, which cannot be read",)
    weights = {k: torch.from_numpy(v) for k, v in tiny.published(OFFICIAL).items()}
    key = "blocks.1.ffn.0.weight"
    torch.save(weights | {key: weights[key].to_sparse()}, path)
    with pytest.raises(ConversionError, match=rf"{key}: a sparse tensor, which cannot"):
        load.load_params(make(OFFICIAL, path), str(path))


def test_saved_alone(tmp_path):
    path = torch_files.write(
        tmp_path / "a.pt",
        torch_files.dumps(torch_files.tensor(torch_files.storage("0", X), X.shape)),
        {"0": X},
    )
    assert list(recognise.find(path, "wan_dit").tensors) == ["tensor"]
