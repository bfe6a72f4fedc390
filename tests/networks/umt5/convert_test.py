"""UMT5 key layouts: every key and leaf, both directions, bf16, detection."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fdjax_convert import rules
from fdjax_convert.tables import umt5
from fdjax_models.networks.umt5 import Umt5TextEncoderConfig
from tests import golden
from tests.networks.umt5 import tiny

TABLES = {
    "huggingface": (umt5.HUGGING_FACE_RULES, tiny.published_shapes),
    "official": (umt5.OFFICIAL_RULES, tiny.official_shapes),
}


def _fill(shapes, dtype=np.float32):
    return {k: golden.fill_weight(k, s).astype(dtype) for k, s in shapes.items()}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trip(name, dtype):
    table, shapes = TABLES[name]
    source = _fill(shapes(), dtype)
    config = dataclasses.replace(tiny.CONFIG, dtype=jnp.dtype(dtype).name)
    params = rules.convert(source, table, config.setup().param_shapes())
    back = rules.to_torch(params, table)
    assert back.keys() == source.keys()
    for key, value in source.items():
        assert back[key].dtype == value.dtype
        assert back[key].tobytes() == value.tobytes(), key


def test_full_size_keys_are_accounted_for():
    config = Umt5TextEncoderConfig()
    target = config.setup().param_shapes()
    for table, shapes in TABLES.values():
        source = {
            key: np.broadcast_to(np.zeros((), np.float32), shape)
            for key, shape in shapes(config).items()
        }
        rules.Conversion(source, table, target)


def test_layouts_name_the_same_weights():
    target = tiny.CONFIG.setup().param_shapes()
    published = _fill(tiny.published_shapes())
    params = rules.convert(published, umt5.HUGGING_FACE_RULES, target)
    official = rules.to_torch(params, umt5.OFFICIAL_RULES)
    first, second = "encoder.block.1.layer.0", "encoder.block.1.layer.1"
    pairs = {
        "blocks.1.norm1.weight": f"{first}.layer_norm.weight",
        "blocks.1.attn.o.weight": f"{first}.SelfAttention.o.weight",
        "blocks.1.norm2.weight": f"{second}.layer_norm.weight",
        "blocks.1.ffn.gate.0.weight": f"{second}.DenseReluDense.wi_0.weight",
        "blocks.1.ffn.fc1.weight": f"{second}.DenseReluDense.wi_1.weight",
        "blocks.1.ffn.fc2.weight": f"{second}.DenseReluDense.wo.weight",
        "norm.weight": "encoder.final_layer_norm.weight",
    }
    for one, other in pairs.items():
        np.testing.assert_array_equal(official[one], published[other])


def test_tied_embedding_under_either_name():
    target = tiny.CONFIG.setup().param_shapes()
    source = _fill(tiny.published_shapes())
    expected = rules.convert(source, umt5.HUGGING_FACE_RULES, target)
    tied = source | {"encoder.embed_tokens.weight": source["shared.weight"]}
    renamed = dict(tied)
    del renamed["shared.weight"]
    for variant in (tied, renamed):
        got = rules.convert(variant, umt5.HUGGING_FACE_RULES, target)
        jax.tree.map(np.testing.assert_array_equal, expected, got)
    tied["encoder.embed_tokens.weight"] = tied["shared.weight"] + 1
    with pytest.raises(ValueError, match="embed_tokens"):
        rules.convert(tied, umt5.HUGGING_FACE_RULES, target)


def test_decoder_half_is_dropped():
    source = _fill(tiny.published_shapes())
    source["decoder.block.0.layer.0.SelfAttention.q.weight"] = np.zeros((2, 2), "f4")
    source["lm_head.weight"] = np.zeros((2, 2), "f4")
    target = tiny.CONFIG.setup().param_shapes()
    rules.convert(source, umt5.HUGGING_FACE_RULES, target)


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_rule_or_key_is_an_error(name):
    table, shapes = TABLES[name]
    source, target = _fill(shapes()), tiny.CONFIG.setup().param_shapes()
    mapped = [rule for rule in table if rule.targets and not rule.alias]
    for left_out in mapped:
        rest = [rule for rule in table if rule is not left_out]
        with pytest.raises(ValueError, match="does not fit"):
            rules.convert(source, rest, target)
    for key in source:
        with pytest.raises(ValueError, match="does not fit"):
            rules.convert({k: source[k] for k in source if k != key}, table, target)


def test_detect_and_describe():
    for name, (_, shapes) in TABLES.items():
        (layout,) = (each for each in umt5.LAYOUTS if each.detect(shapes().keys()))
        assert layout.name == name
        full = shapes(Umt5TextEncoderConfig())
        assert layout.describe(full) == "UMT5-XXL text encoder"
        assert "width 32, vocabulary 64" in layout.describe(shapes())
