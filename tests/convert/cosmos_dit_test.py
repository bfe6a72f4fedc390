"""The key layouts of the Cosmos DiT: complete at full size, inverted, told apart."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from fdjax import checkpoint
from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.tensors import LazyTensor
from fdjax_convert import convert as convert_module
from fdjax_convert.rules import Conversion, convert, to_torch
from fdjax_convert.rules.problems import ConversionError
from fdjax_convert.tables import cosmos_dit
from fdjax_convert.tables.layouts import detect
from fdjax_models.networks.cosmos_dit.config import (
    COSMOS_2B,
    COSMOS_2B_HDMAP,
    COSMOS_2B_VIEWS,
)
from fdjax_models.networks.cosmos_dit.fusion import Kernels, fuse, unfuse
from fdjax_models.networks.cosmos_dit.transformer import CosmosTransformerConfig
from tests.convert import torch_files
from tests.networks.cosmos_dit import tiny

MAP = dataclasses.replace(tiny.CONFIG, control_dim=16)
VIEWS = dataclasses.replace(tiny.CONFIG, control_dim=192, num_cameras=7)
PUBLISHED = {
    "Cosmos-Predict2.5 2B": (COSMOS_2B, 569, 2_059_174_912),
    "OmniDreams 2B, HD map of 16 channels": (COSMOS_2B_HDMAP, 570, 2_059_305_984),
    "OmniDreams 2B, HD map of 192 channels, several views of 7 cameras": (
        COSMOS_2B_VIEWS,
        797,
        2_568_413_184,
    ),
}
"""Description, sizes, and numbers of tensors and of values in the checkpoint."""

TRAINING_KEYS = (
    "blocks.0.self_attn._extra_state",
    "pos_embedder.dim_spatial_range",
    "accum_video_sample_counter",
    "accum_image_sample_counter",
    "accum_iteration",
    "accum_train_in_hours",
)
PATCH, HEAD = "x_embedder.proj.1.weight", "final_layer.linear.weight"


def _unreadable():
    raise AssertionError("no value must be read")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_key_fills_a_leaf(name):
    config, count, size = PUBLISHED[name]
    shapes = tiny.published_shapes(config)
    assert len(shapes) == count
    assert sum(map(np.prod, shapes.values())) == size
    dtype = np.dtype("float32")
    source = {
        key: LazyTensor(shape, dtype, _unreadable) for key, shape in shapes.items()
    }
    target = tiny.target(config)
    Conversion(source, cosmos_dit.RULES, target)  # raises on any problem
    # The padding mask has a column for each of the four positions of a patch.
    held = sum(leaf.size for leaf in jax.tree.leaves(target))
    assert held == size - 4 * config.dim
    (layout,) = detect(shapes)
    assert (layout.name, layout.architecture) == ("published", "cosmos_dit")
    assert layout.describe(shapes) == name


def _without_mask(source, config):
    """The checkpoint whose padding mask has the weight zero."""
    patch = source[PATCH].copy()
    patch[:, 4 * (config.out_dim + 1) :] = 0
    return source | {PATCH: patch}


@pytest.mark.parametrize("config", [tiny.CONFIG, VIEWS])
def test_every_rule_is_needed_and_inverted(config):
    source = _without_mask(tiny.checkpoint(config), config)
    target = tiny.target(config)
    params = convert(source, cosmos_dit.RULES, target)
    exported = to_torch(params, cosmos_dit.RULES)
    assert exported.keys() == source.keys()
    for key, value in source.items():
        np.testing.assert_array_equal(exported[key], value, err_msg=key)
    for key in source:
        rest = {other: value for other, value in source.items() if other != key}
        with pytest.raises(ConversionError, match=key.replace(".", r"\.")):
            Conversion(rest, cosmos_dit.RULES, target)


def test_what_only_training_needs_is_left_out():
    source = tiny.checkpoint(tiny.CONFIG)
    more = {key: np.zeros((3,), np.float32) for key in TRAINING_KEYS}
    jax.tree.map(
        np.testing.assert_array_equal,
        tiny.params(tiny.CONFIG, source | more),
        tiny.params(tiny.CONFIG, source),
    )
    with pytest.raises(ConversionError, match="other_counter"):
        tiny.params(tiny.CONFIG, source | {"other_counter": np.zeros((3,), "f4")})


def test_a_fused_checkpoint_is_known_by_its_shape():
    source, volume = tiny.checkpoint(tiny.CONFIG), 4
    patch = source[PATCH][:, :-volume]
    # (kt kh kw c) -> (c kt kh kw)
    head = source[HEAD].reshape(1, 2, 2, 16, -1).transpose(3, 0, 1, 2, 4)
    fused = source | {PATCH: patch, HEAD: head.reshape(source[HEAD].shape)}
    jax.tree.map(
        np.testing.assert_array_equal,
        tiny.params(tiny.CONFIG, fused),
        tiny.params(tiny.CONFIG, source),
    )
    with pytest.raises(ConversionError, match=r"must take 72 features.* or 68 without"):
        tiny.params(tiny.CONFIG, source | {PATCH: source[PATCH][:, :-8]})


def test_fusion_leaves_the_network_as_it_is():
    rng = np.random.default_rng(0)
    published = Kernels(rng.normal(size=(18 * 4, 8)), rng.normal(size=(8, 4 * 16)))
    fused = fuse(published)
    tokens, hidden = rng.normal(size=(5, 17 * 4)), rng.normal(size=(5, 8))
    # Training joins a mask of zeros, and sorts the output (t, h, w, channel).
    padded = np.concatenate([tokens, np.zeros((5, 4))], axis=-1)
    np.testing.assert_allclose(tokens @ fused.patch, padded @ published.patch)
    out = (hidden @ published.head).reshape(5, 4, 16)
    np.testing.assert_allclose(
        (hidden @ fused.head).reshape(5, 16, 4), out.transpose(0, 2, 1)
    )
    again = unfuse(fused)
    np.testing.assert_array_equal(again.head, published.head)
    np.testing.assert_array_equal(again.patch[:-4], published.patch[:-4])
    assert not again.patch[-4:].any()
    jax.tree.map(np.testing.assert_array_equal, fuse(again), fused)


def test_another_size_is_refused_by_key():
    wider = dataclasses.replace(tiny.CONFIG, ffn_dim=96)
    with pytest.raises(ConversionError, match=r"blocks\.0\.mlp\.layer1\.weight"):
        tiny.params(wider, tiny.checkpoint(tiny.CONFIG))
    with pytest.raises(ConversionError, match=r"additional_patch_embedding"):
        tiny.params(tiny.CONFIG, tiny.checkpoint(MAP))


def test_a_published_file_there_and_back(tmp_path, monkeypatch):
    """A `.pt` of training: every key after `net.`, counters beside the weights."""
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    config = VIEWS
    source = _without_mask(tiny.checkpoint(config), config)
    counters = {
        "accum_iteration": np.zeros((), np.int64),
        "pos_embedder.seq": np.zeros((4,), np.float32),
    }
    path = torch_files.save(
        tmp_path / "model.pt",
        {f"net.{key}": value for key, value in (source | counters).items()},
    )
    component = CosmosTransformerConfig(
        network=config,
        len_t=1,
        window_size_t=2,
        cameras=(0, 1),
        checkpoint_path=str(path),
    ).setup()
    params = checkpoint.load_params(component)
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params(config, source))

    ours = tmp_path / "ours"
    checkpoint.save(ours, params, component=component)
    back = tmp_path / "back.safetensors"
    convert_module.write_torch(ours, back, layout="published")
    exported = safetensors.load_file(back)
    assert exported.keys() == {f"net.{key}" for key in source}
    for key, value in source.items():
        np.testing.assert_array_equal(exported[f"net.{key}"], value, err_msg=key)


HEADLINES = {
    "no map": (tiny.CONFIG, "Cosmos-Predict2.5 {}, text of 20"),
    "another map": (dataclasses.replace(MAP, control_dim=192), "HD map of 192"),
    "views": (VIEWS, "HD map of 192 channels, several views of 7 cameras, text"),
    "other text": (dataclasses.replace(MAP, text_dim=24), "text of 24 features"),
    "no text": (MAP, "without a projection of text"),
    "no frame": (MAP, "text of 20 features, without the mask of a first frame"),
}


@pytest.mark.parametrize("name", HEADLINES)
def test_another_variant_is_named_in_the_first_line(name, tmp_path):
    config, is_now = HEADLINES[name]
    tensors = tiny.checkpoint(config)
    if name == "no text":
        tensors = {k: v for k, v in tensors.items() if "crossattn_proj" not in k}
    if name == "no frame":
        tensors[PATCH] = np.ascontiguousarray(tensors[PATCH][:, :-8])
    path = tmp_path / "cosmos.safetensors"
    safetensors.save_file({f"net.{key}": value for key, value in tensors.items()}, path)
    component = CosmosTransformerConfig(network=MAP, checkpoint_path=str(path)).setup()
    with pytest.raises(ConversionError) as caught:
        checkpoint.load_params(component)
    first, size = str(caught.value).partition("\n")[0], "64 wide, 2 blocks"
    found, asked = first.split("; you asked for ")
    assert is_now.format(size) in found
    assert asked.startswith(f"OmniDreams {size}, HD map of 16 channels, text of 20")


def test_a_lora_is_named(tmp_path):
    tensors = {}
    for name in ("lora_A", "lora_B"):
        key = f"net.blocks.0.self_attn.q_proj.{name}.default.weight"
        tensors[key] = np.zeros((4, 4), np.float32)
    path = tmp_path / "lora.safetensors"
    safetensors.save_file(tensors, path)
    component = CosmosTransformerConfig(network=MAP, checkpoint_path=str(path)).setup()
    with pytest.raises(CheckpointError, match="is a LoRA"):
        checkpoint.load_params(component)
