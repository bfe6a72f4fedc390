"""CLIP: recorded outputs, preprocessing sizes, published size, the component."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax_convert import rules
from fdjax_convert.tables import clip
from fdjax_models.networks.clip import ClipImageEncoderConfig, preprocess
from tests import golden
from tests.networks.clip import tiny

ENCODER = tiny.CONFIG.setup()


@pytest.fixture(scope="module")
def params():
    source = {
        key: golden.fill_weight(key, shape)
        for key, shape in tiny.published_shapes().items()
    }
    return rules.convert(source, clip.HUGGING_FACE_RULES, ENCODER.param_shapes())


@pytest.mark.isa
def test_golden(params):
    pixels = golden.fill_input("px", (1, 3, 28, 28)).transpose(0, 2, 3, 1)
    rows = ENCODER.module.apply({"params": params}, pixels)
    chex.assert_shape(rows, (1, 5, 32))
    first = [0.786250, -2.605413, -0.883191, 1.783182, 1.753706]
    last = [-1.502090, 1.186768, 1.136960]
    expected = [32.282527, 186.555079, *first, *last]
    golden.assert_summary(rows, expected, length=14 * 14 * 3)


def test_output_layer_counts(params):
    """The golden output is after block 2; every other count gives something else."""
    image = jnp.linspace(-1, 1, 28 * 28 * 3).reshape(1, 28, 28, 3)
    outputs = [
        dataclasses.replace(tiny.CONFIG, output_layer=n).setup().encode(params, image)
        for n in (1, 2, 3)
    ]
    np.testing.assert_array_equal(outputs[1], ENCODER.encode(params, image))
    assert jnp.abs(outputs[0] - outputs[1]).max() > 0.1
    assert jnp.abs(outputs[2] - outputs[1]).max() > 0.1


def test_published_parameter_count():
    shapes = ClipImageEncoderConfig().setup().param_shapes()
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    # transformers' CLIPVisionModel of ViT-H/14, the whole tower.
    assert count == 630_766_080
    output = jax.eval_shape(
        ClipImageEncoderConfig().setup().encode,
        shapes,
        jax.ShapeDtypeStruct((2, 480, 832, 3), jnp.float32),
    )
    assert (output.shape, output.dtype) == ((2, 257, 1280), jnp.bfloat16)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((832, 480), (82, 306), (0, 224)),  # resized to 388 x 224
        ((480, 832), (0, 224), (82, 306)),
        ((224, 225), (0, 224), (0, 224)),
    ],
)
def test_crop_keeps_the_centre(size, rows, columns):
    short = min(size)
    tall, wide = (224 * side // short for side in size)
    ramp = jnp.linspace(0, 1, size[0])[:, None] + 2 * jnp.linspace(0, 1, size[1])
    image = jnp.repeat(ramp[None, ..., None], 3, axis=-1)
    resized = jax.image.resize(image, (1, tall, wide, 3), "bicubic")
    want = resized[:, slice(*rows), slice(*columns)]
    got = preprocess.crop_frame(image, 224)
    chex.assert_shape(got, (1, 224, 224, 3))
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_squash_keeps_everything():
    image = jnp.broadcast_to(
        jnp.linspace(0, 1, 100)[None, :, None, None], (1, 100, 30, 3)
    )
    got = preprocess.squash_frame(image, 20)
    chex.assert_shape(got, (1, 20, 20, 3))
    assert got[0, 0, 0, 0] < 0.05
    assert got[0, -1, 0, 0] > 0.95
    np.testing.assert_allclose(jnp.diff(got[0, :, 0, 0]), 5 / 99, atol=1e-5)


def test_normalize_maps_the_mean_to_zero():
    mean = jnp.asarray(preprocess.MEAN) * 2 - 1
    np.testing.assert_allclose(preprocess.normalize(mean), 0, atol=1e-6)
    one_std = mean + 2 * jnp.asarray(preprocess.STD)
    np.testing.assert_allclose(preprocess.normalize(one_std), 1, rtol=1e-6)


def test_preprocessing_is_selected(params):
    image = golden.fill_input("image", (1, 40, 90, 3))
    squash = dataclasses.replace(tiny.CONFIG, preprocessing="squash").setup()
    crop = ENCODER.encode(params, image)
    assert jnp.abs(squash.encode(params, image) - crop).max() > 0.1


def test_random_weights_are_of_use():
    params = ENCODER.init_params(jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, ENCODER.param_shapes())
    image = jnp.stack([jnp.zeros((30, 30, 3)), jnp.ones((30, 30, 3))])
    rows = ENCODER.encode(params, image)
    assert jnp.all(jnp.isfinite(rows))
    assert 0.1 < jnp.std(rows) < 10
    assert jnp.abs(rows[0] - rows[1]).max() > 0.1


def test_bfloat16_is_near_float32(params):
    narrow = dataclasses.replace(tiny.CONFIG, dtype="bfloat16").setup()
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    image = jnp.linspace(-1, 1, 40 * 90 * 3).reshape(1, 40, 90, 3)
    wide, got = ENCODER.encode(params, image), narrow.encode(rounded, image)
    assert got.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits; two blocks of rounding leave about 2 %.
    assert jnp.abs(got - wide).max() < 0.05 * jnp.abs(wide).max()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preprocessing": "stretch"}, "must be one of .*crop.*squash"),
        ({"image_size": 30}, "image_size=30 must be a multiple of patch_size=14"),
        ({"num_heads": 5}, "width=32 of num_heads=5"),
        ({"output_layer": 4}, r"output_layer must lie in \[1, 3\], got 4"),
    ],
)
def test_bad_config(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny.CONFIG, **fields)
