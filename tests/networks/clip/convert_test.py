"""CLIP key layouts: every key and leaf, both directions, bf16, detection."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fdjax_convert import rules
from fdjax_convert.tables import clip
from fdjax_models.networks.clip import ClipImageEncoderConfig
from tests import golden
from tests.networks.clip import tiny

TABLES = {
    "huggingface": (clip.HUGGING_FACE_RULES, tiny.published_shapes),
    "huggingface-bare": (clip.HUGGING_FACE_BARE_RULES, tiny.bare_shapes),
    "official": (clip.OFFICIAL_RULES, tiny.official_shapes),
}

UNUSED = {
    "huggingface": (
        "vision_model.embeddings.position_ids",
        "visual_projection.weight",
        "text_projection.weight",
        "logit_scale",
        "text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    "huggingface-bare": ("embeddings.position_ids", "visual_projection.weight"),
    "official": ("visual.head", "log_scale", "textual.head.0.weight"),
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
        assert back[key].shape == value.shape
        assert back[key].tobytes() == value.tobytes(), key


def test_full_size_keys_are_accounted_for():
    config = ClipImageEncoderConfig()
    target = config.setup().param_shapes()
    for name, (table, shapes) in TABLES.items():
        source = {
            key: np.broadcast_to(np.zeros((), np.float32), shape)
            for key, shape in shapes(config).items()
        }
        source |= dict.fromkeys(UNUSED[name], np.zeros(3, np.float32))
        rules.Conversion(source, table, target)


def test_layouts_name_the_same_weights():
    target = tiny.CONFIG.setup().param_shapes()
    published = _fill(tiny.published_shapes())
    params = rules.convert(published, clip.HUGGING_FACE_RULES, target)
    bare = rules.to_torch(params, clip.HUGGING_FACE_BARE_RULES)
    assert {f"vision_model.{key}" for key in bare} == published.keys()
    official = rules.to_torch(params, clip.OFFICIAL_RULES)
    assert official.keys() == tiny.official_shapes().keys()
    attention = "vision_model.encoder.layers.1.self_attn"
    for kind in ("weight", "bias"):
        parts = [published[f"{attention}.{name}_proj.{kind}"] for name in "qkv"]
        fused = official[f"visual.transformer.1.attn.to_qkv.{kind}"]
        np.testing.assert_array_equal(fused, np.concatenate(parts))
    pairs = {
        "visual.transformer.1.attn.proj.weight": f"{attention}.out_proj.weight",
        "visual.transformer.1.mlp.0.bias": "vision_model.encoder.layers.1.mlp.fc1.bias",
        "visual.pre_norm.bias": "vision_model.pre_layrnorm.bias",
        "visual.patch_embedding.weight": (
            "vision_model.embeddings.patch_embedding.weight"
        ),
    }
    for one, other in pairs.items():
        np.testing.assert_array_equal(official[one], published[other])
    again = rules.convert(official, clip.OFFICIAL_RULES, target)
    jax.tree.map(np.testing.assert_array_equal, params, again)


@pytest.mark.parametrize("name", TABLES)
def test_a_missing_rule_or_key_is_an_error(name):
    table, shapes = TABLES[name]
    source, target = _fill(shapes()), tiny.CONFIG.setup().param_shapes()
    with pytest.raises(ValueError, match="surprise"):
        rules.convert(source | {"surprise": np.zeros(1, "f4")}, table, target)
    for left_out in table:
        if left_out.targets:
            rest = [rule for rule in table if rule is not left_out]
            with pytest.raises(ValueError, match="does not fit"):
                rules.convert(source, rest, target)
    for key in source:
        with pytest.raises(ValueError, match="does not fit"):
            rules.convert({k: source[k] for k in source if k != key}, table, target)


def test_detect_and_describe():
    for name, (_, shapes) in TABLES.items():
        (layout,) = (each for each in clip.LAYOUTS if each.detect(shapes().keys()))
        assert layout.name == name
        full = shapes(ClipImageEncoderConfig())
        assert layout.describe(full) == "CLIP ViT-H/14 image tower"
        assert layout.describe(shapes()) == "CLIP image tower, width 32"
