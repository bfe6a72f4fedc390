"""Cosmos-Reason1's key layouts: whole files there and back, shards, detection."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from fdjax import checkpoint
from fdjax_convert import convert, recognise, rules
from fdjax_convert.formats import readers
from fdjax_convert.methods import Candidate
from fdjax_convert.tables import cosmos_reason1
from fdjax_models.networks.cosmos_reason1 import CosmosReason1EncoderConfig
from tests.networks.cosmos_reason1 import tiny

STARTS = {"published": "model.", "nested": "model.language_model."}
LAYOUTS = {layout.name: layout for layout in cosmos_reason1.LAYOUTS}


def published_shapes(config, start):
    """Shapes of the text path by key, as transformers names them."""
    width, keys = config.width, config.num_kv_heads * config.head_dim
    shapes = {
        f"{start}embed_tokens.weight": (config.vocab_size, width),
        f"{start}norm.weight": (width,),
    }
    for number in range(config.num_layers):
        layer = f"{start}layers.{number}"
        for name, rows in {"q": width, "k": keys, "v": keys}.items():
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, width)
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
        shapes |= {
            f"{layer}.self_attn.o_proj.weight": (width, width),
            f"{layer}.mlp.gate_proj.weight": (config.mlp_dim, width),
            f"{layer}.mlp.up_proj.weight": (config.mlp_dim, width),
            f"{layer}.mlp.down_proj.weight": (width, config.mlp_dim),
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.post_attention_layernorm.weight": (width,),
        }
    return shapes


def _tensors(name):
    rng = np.random.default_rng(0)
    return {
        key: rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
        for key, shape in published_shapes(tiny.CONFIG, STARTS[name]).items()
    }


def _shards(folder, tensors):
    """The files of a repository: two shards and their index."""
    vision = "visual.blocks.0.attn.qkv.weight"
    more = {vision: np.ones((2, 2), "f4"), "lm_head.weight": np.ones((3, 2), "f4")}
    whole = tensors | more
    index = {key: f"m-{i % 2}.safetensors" for i, key in enumerate(sorted(whole))}
    for file in set(index.values()):
        part = {key: whole[key] for key in whole if index[key] == file}
        safetensors.save_file(part, folder / file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": index}))
    return path


@pytest.mark.parametrize("name", STARTS)
def test_shards_there_and_back(tmp_path, name):
    tensors = _tensors(name)
    source = _shards(tmp_path, tensors)
    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = dataclasses.replace(
        tiny.CONFIG,
        checkpoint_path=str(source),
        tokenizer_path=str(tmp_path),
        dtype="bfloat16",
    )
    encoder = config.setup()
    candidate = Candidate("any", "text_encoder", encoder)
    convert.convert(str(source), tmp_path / "ours", components=[candidate])
    loaded = checkpoint.load_params(encoder)
    q = tensors[f"{STARTS[name]}layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(loaded["layers_1"]["attention"]["q"]["kernel"], q.T)
    back = tmp_path / "back.safetensors"
    _, told = convert.write_torch(tmp_path / "ours", back)
    assert "3 layers, width 48, vocabulary 280" in told
    written = safetensors.load_file(back)
    assert written.keys() == tensors.keys()
    for key, value in tensors.items():
        assert written[key].tobytes() == value.tobytes(), key


def test_layouts_are_told_apart(tmp_path):
    for name in STARTS:
        folder = tmp_path / name
        folder.mkdir()
        opened = readers.open_checkpoint(_shards(folder, _tensors(name)))
        (found,) = recognise.describe_parts(opened)
        assert found[0].layout is LAYOUTS[name]
    full = published_shapes(CosmosReason1EncoderConfig(), "")
    assert LAYOUTS["published"].describe(full) == "Cosmos-Reason1-7B (Qwen2.5-VL 7B)"


def test_full_size_keys_are_accounted_for():
    config = CosmosReason1EncoderConfig()
    target = config.setup().param_shapes()
    for start, table in (
        ("", cosmos_reason1.PUBLISHED_RULES),
        ("language_model.", cosmos_reason1.NESTED_RULES),
    ):
        shapes = published_shapes(config, start)
        source = {
            key: np.broadcast_to(np.zeros((), np.float32), shape)
            for key, shape in shapes.items()
        }
        rules.Conversion(source, table, target)
        del source[f"{start}layers.27.self_attn.k_proj.bias"]
        with pytest.raises(ValueError, match="does not fit"):
            rules.Conversion(source, table, target)
