"""TAEHV's key layouts: every key and leaf, there and back, oversize weights."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fdjax_convert import rules
from fdjax_convert.tables import layouts, taehv
from fdjax_models.networks.taehv.decoder import TAEW2_1, TaehvDecoderConfig
from fdjax_models.networks.taehv.encoder import TaehvEncoderConfig

SMALL = {
    "taehv_decoder": TaehvDecoderConfig(widths=(6, 5, 4, 3), latent_channels=2),
    "taehv_encoder": TaehvEncoderConfig(widths=(3, 4, 5, 6), latent_channels=2),
}
DECODER_SHAPES = {
    "1.weight": (256, 16, 3, 3),
    "1.bias": (256,),
    "3.conv.0.weight": (256, 512, 3, 3),
    "3.conv.4.bias": (256,),
    "7.conv.weight": (256, 256, 1, 1),
    "8.weight": (128, 256, 3, 3),
    "13.conv.weight": (256, 128, 1, 1),
    "14.weight": (64, 128, 3, 3),
    "17.conv.2.weight": (64, 64, 3, 3),
    "19.conv.weight": (128, 64, 1, 1),
    "20.weight": (64, 64, 3, 3),
    "22.weight": (3, 64, 3, 3),
}
ENCODER_SHAPES = {
    "0.weight": (64, 3, 3, 3),
    "2.conv.weight": (64, 128, 1, 1),
    "3.weight": (64, 64, 3, 3),
    "6.conv.0.weight": (64, 128, 3, 3),
    "12.conv.weight": (64, 64, 1, 1),
    "17.weight": (16, 64, 3, 3),
}


def _random(shapes, dtype=np.float32):
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype(dtype), shapes
    )


@pytest.mark.parametrize(
    ("config", "prefix", "expected"),
    [
        (TAEW2_1, "decoder", DECODER_SHAPES),
        (TaehvEncoderConfig(), "encoder", ENCODER_SHAPES),
    ],
)
@pytest.mark.parametrize("middle", [".", ".blocks."])
def test_published_keys(config, prefix, expected, middle):
    component = config.setup()
    name = "flashdreams" if "blocks" in middle else "madebyollin"
    layout = next(
        layout
        for layout in layouts.layouts(component.architecture)
        if layout.name == name
    )
    written = rules.export(component.param_shapes(), layout.rules)
    assert len(written) == 64
    for key, shape in expected.items():
        assert written[prefix + middle + key].shape == shape
    assert layouts.detect(written) == (layout,)


@pytest.mark.parametrize("layout", taehv.LAYOUTS, ids=lambda x: x.rules[0].source)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_there_and_back(layout, dtype):
    shapes = SMALL[layout.architecture].setup().param_shapes()
    params = _random(shapes, dtype)
    published = rules.to_torch(params, layout.rules)
    # The other network's keys are left out, and only those.
    other = {"taehv_decoder": "encoder", "taehv_encoder": "decoder"}
    extra = {f"{other[layout.architecture]}.0.weight": np.zeros(1, dtype)}
    back = rules.convert(published | extra, layout.rules, shapes)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    with pytest.raises(ValueError, match="transformer"):
        rules.convert(
            published | {"transformer.0.weight": np.zeros(1, dtype)},
            layout.rules,
            shapes,
        )


def test_growth_stored_for_two_frames_keeps_its_last_rows():
    shapes = SMALL["taehv_decoder"].setup().param_shapes()
    published = rules.to_torch(_random(shapes), taehv.DECODER)
    weight = np.random.default_rng(1).normal(size=(12, 6, 1, 1)).astype(np.float32)
    published["decoder.7.conv.weight"] = weight
    params = rules.convert(published, taehv.DECODER, shapes)
    kernel = params["stages_0"]["grow"]["kernel"]
    np.testing.assert_array_equal(kernel, weight[6:].transpose(2, 3, 1, 0))


def test_wrong_sizes_are_named():
    shapes = SMALL["taehv_decoder"].setup().param_shapes()
    published = rules.to_torch(_random(shapes), taehv.DECODER)
    wide = dataclasses.replace(SMALL["taehv_decoder"], latent_channels=3)
    with pytest.raises(ValueError, match=r"decoder\.1\.weight: shape \[6, 2, 3, 3\]"):
        rules.convert(published, taehv.DECODER, wide.setup().param_shapes())
    del published["decoder.22.bias"]
    with pytest.raises(ValueError, match=r"decoder\.22\.bias"):
        rules.convert(published, taehv.DECODER, shapes)


def test_descriptions_name_the_sizes():
    written = rules.export(TAEW2_1.setup().param_shapes(), taehv.DECODER)
    sizes = {key: tensor.shape for key, tensor in written.items()}
    described = taehv.LAYOUTS[0].describe(sizes)
    assert described == "TAEHV decoder of 16-channel latents, first width 256"
    assert jnp.dtype(written["decoder.1.weight"].dtype) == jnp.bfloat16
