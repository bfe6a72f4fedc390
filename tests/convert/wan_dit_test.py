"""The key layouts of the Wan DiT: complete at full size, inverted, told apart."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from fdjax.checkpoint.tensors import LazyTensor
from fdjax_convert.rules import Conversion, convert, to_torch
from fdjax_convert.rules.problems import ConversionError
from fdjax_convert.tables import wan_dit
from fdjax_convert.tables.layouts import detect
from fdjax_models.networks.wan_dit.config import (
    LINGBOT_WORLD_1_3B,
    LINGBOT_WORLD_14B,
    WAN_1_3B,
    WAN_14B_I2V,
    WAN_14B_T2V,
    WAN_TI2V_5B,
)
from fdjax_models.networks.wan_dit.dit import init_params
from tests.networks.wan_dit import tiny

PUBLISHED = {
    "Wan 1.3B T2V": (WAN_1_3B, 825),
    "Wan 14B T2V": (WAN_14B_T2V, 1095),
    "Wan 14B I2V": (WAN_14B_I2V, 1303),
    "Wan 5B TI2V": (WAN_TI2V_5B, 825),
    "LingBot-World 14B": (LINGBOT_WORLD_14B, 1421),
    "LingBot-World 1.3B": (LINGBOT_WORLD_1_3B, 1071),
}
"""Description, sizes, and number of tensors in the published checkpoint."""


def _unreadable():
    raise AssertionError("no value must be read")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_key_fills_a_leaf(name):
    config, count = PUBLISHED[name]
    shapes = tiny.official_shapes(config)
    assert len(shapes) == count
    dtype = np.dtype("float32")
    source = {
        key: LazyTensor(shape, dtype, _unreadable) for key, shape in shapes.items()
    }
    target = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    Conversion(source, wan_dit.OFFICIAL, target)  # raises on any problem
    (layout,) = detect(shapes)
    assert (layout.name, layout.architecture) == ("official", "wan_dit")
    assert layout.describe(shapes) == name


@pytest.mark.parametrize(
    "config", [tiny.CONFIG, tiny.IMAGE_CONFIG, tiny.LINGBOT_CONFIG]
)
def test_every_rule_is_needed_and_inverted(config):
    source = tiny.checkpoint(config)
    target = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    params = convert(source, wan_dit.OFFICIAL, target)
    exported = to_torch(params, wan_dit.OFFICIAL)
    assert exported.keys() == source.keys()
    for key, value in source.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key)
    for key in source:
        rest = {other: value for other, value in source.items() if other != key}
        with pytest.raises(ConversionError, match=key.replace(".", r"\.")):
            Conversion(rest, wan_dit.OFFICIAL, target)


def _diffusers_key(key: str, mlp: tuple[str, str]) -> str:
    """diffusers' name of an official key, from its WanTransformer3DModel."""
    embedder = "condition_embedder."
    start = {
        "text_embedding.0": embedder + "text_embedder.linear_1",
        "text_embedding.2": embedder + "text_embedder.linear_2",
        "time_embedding.0": embedder + "time_embedder.linear_1",
        "time_embedding.2": embedder + "time_embedder.linear_2",
        "time_projection.1": embedder + "time_proj",
        "img_emb.proj.0": embedder + "image_embedder.norm1",
        "img_emb.proj.1": embedder + "image_embedder.ff.net.0.proj",
        "img_emb.proj.3": embedder + "image_embedder.ff.net.2",
        "img_emb.proj.4": embedder + "image_embedder.norm2",
        "head.modulation": "scale_shift_table",
        "head.head": "proj_out",
    }
    for old, new in start.items():
        if key == old or key.startswith(old + "."):
            return new + key.removeprefix(old)
    inner = {
        ".modulation": ".scale_shift_table",
        ".self_attn.": ".attn1.",
        ".cross_attn.k_img.": ".attn2.add_k_proj.",
        ".cross_attn.v_img.": ".attn2.add_v_proj.",
        ".norm_k_img.": ".norm_added_k.",
        ".cross_attn.": ".attn2.",
        ".norm3.": ".norm2.",
        ".ffn.0.": f".ffn.{mlp[0]}.",
        ".ffn.2.": f".ffn.{mlp[1]}.",
        "1.o.": "1.to_out.0.",
        "2.o.": "2.to_out.0.",
        **{f"attn{n}.{p}.": f"attn{n}.to_{p}." for n in (1, 2) for p in "qkv"},
    }
    for old, new in inner.items():
        key = key.replace(old, new)
    return key


@pytest.mark.parametrize(
    ("name", "rules", "mlp"),
    [
        ("diffusers", wan_dit.DIFFUSERS, ("net.0.proj", "net.2")),
        ("fastvideo", wan_dit.FASTVIDEO, ("fc_in", "fc_out")),
    ],
)
def test_other_names_give_the_same_parameters(name, rules, mlp):
    source = tiny.checkpoint(tiny.IMAGE_CONFIG)
    renamed = {_diffusers_key(key, mlp): value for key, value in source.items()}
    (layout,) = detect(renamed)
    assert layout.name == name
    assert layout.describe({k: v.shape for k, v in renamed.items()}).endswith("I2V")
    expected = tiny.params(tiny.IMAGE_CONFIG)
    result = tiny.params(tiny.IMAGE_CONFIG, renamed, rules)
    jax.tree.map(np.testing.assert_array_equal, result, expected)


def test_a_patch_embedding_stored_as_a_matrix():
    source = tiny.checkpoint(tiny.CONFIG)
    matrix = source["patch_embedding.weight"].reshape(tiny.CONFIG.dim, -1)
    result = tiny.params(tiny.CONFIG, source | {"patch_embedding.weight": matrix})
    jax.tree.map(np.testing.assert_array_equal, result, tiny.params(tiny.CONFIG))


def test_another_size_is_refused_by_key():
    wider = dataclasses.replace(tiny.CONFIG, ffn_dim=96)
    with pytest.raises(ConversionError, match=r"blocks\.0\.ffn\.0\.weight"):
        tiny.params(wider, tiny.checkpoint(tiny.CONFIG))
