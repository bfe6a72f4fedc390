"""CLIP's image tower against transformers, its preprocessing against torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax_convert import rules
from fdjax_convert.tables import clip
from fdjax_models.networks.clip import ClipImageEncoderConfig, preprocess
from tests.networks.clip import tiny
from tests.parity import imports
from tests.parity.comparison import assert_allclose, assert_close

torch = imports.lazy("torch")
transformers = imports.lazy("transformers")

pytestmark = imports.requires("torch", "transformers")

CASES = {
    "three layers": tiny.CONFIG,
    "odd head width, one layer dropped": ClipImageEncoderConfig(
        image_size=48,
        patch_size=8,
        width=40,
        mlp_dim=56,
        num_layers=5,
        output_layer=4,
        num_heads=8,
        dtype="float32",
    ),
}


def _torch_model(config):
    torch.manual_seed(0)
    model = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            layer_norm_eps=config.epsilon,
            hidden_act="gelu",
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Larger than the library's init, so that every part shows in the output.
            noise = torch.randn_like(weight)
            norm = "norm" in name and name.endswith("weight")
            weight.copy_(1 + 0.1 * noise if norm else 0.2 * noise)
    return model


def _params(model, config):
    source = {key: value.numpy() for key, value in model.state_dict().items()}
    (layout,) = (each for each in clip.LAYOUTS if each.detect(source.keys()))
    return rules.convert(source, layout.rules, config.setup().param_shapes())


def _torch_rows(model, pixels, layer):
    with torch.no_grad():
        tensor = torch.tensor(np.asarray(pixels).transpose(0, 3, 1, 2))
        output = model(tensor.to(model.dtype), output_hidden_states=True)
    return output.hidden_states[layer].float().numpy()


def _images(count, height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_tower(config):
    model = _torch_model(config)
    pixels = 2 * _images(3, config.image_size, config.image_size)
    want = _torch_rows(model, pixels, config.output_layer)
    np.testing.assert_array_equal(want, _torch_rows(model, pixels, -2))
    module = config.setup().module
    got = module.apply({"params": _params(model, config)}, pixels)
    assert_close(got, want)


def test_bfloat16_error_is_that_of_the_reference():
    config = CASES["three layers"]
    model = _torch_model(config)
    pixels = 2 * _images(3, config.image_size, config.image_size)
    exact = _torch_rows(model, pixels, -2)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.bfloat16), _params(model, config)
    )
    narrow = dataclasses.replace(config, dtype="bfloat16").setup()
    got = narrow.module.apply({"params": params}, pixels)
    reference = _torch_rows(model.to(torch.bfloat16), pixels, -2)
    ours, theirs = (
        np.abs(np.asarray(rows, np.float32) - exact).mean() for rows in (got, reference)
    )
    # Ours keeps logits in float32, so it may only be nearer to the float32 output.
    assert 0 < ours < 1.2 * theirs


def _interpolate(image, size, antialias):
    tensor = torch.tensor(image.transpose(0, 3, 1, 2))
    resized = torch.nn.functional.interpolate(
        tensor, size=size, mode="bicubic", align_corners=False, antialias=antialias
    )
    return resized.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("height", "width"), [(480, 832), (832, 480), (300, 301), (224, 500), (97, 60)]
)
def test_crop(height, width):
    image = _images(2, height, width)
    short = min(height, width)
    tall, wide = 224 * height // short, 224 * width // short
    resized = _interpolate(image, (tall, wide), antialias=True)
    top, left = (tall - 224) // 2, (wide - 224) // 2
    want = resized[:, top : top + 224, left : left + 224]
    # Both libraries compute the kernel's weights in float32; measured 1e-5.
    assert_allclose(preprocess.crop_frame(image, 224), want, atol=5e-5)


@pytest.mark.parametrize(("height", "width"), [(480, 832), (832, 480), (100, 224)])
def test_squash(height, width):
    image = _images(2, height, width)
    want = _interpolate(image, (224, 224), antialias=False)
    # Whether torch fuses the multiply and add of a coordinate depends on the CPU; that
    # moves single rows by 5e-5.
    assert_allclose(preprocess.squash_frame(image, 224), want, atol=1e-4)


def test_sizes_crop_and_statistics_of_the_processor():
    """The library's PIL twin of the processor: same geometry, 8-bit resize apart."""
    from transformers.models.clip import image_processing_pil_clip

    processor = image_processing_pil_clip.CLIPImageProcessorPil()
    assert_allclose(processor.image_mean, preprocess.MEAN, rtol=1e-7)
    assert_allclose(processor.image_std, preprocess.STD, rtol=1e-7)
    ramp = np.linspace(0, 255, 480)[:, None] * np.linspace(0.2, 1, 331)
    image = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1).round().astype(np.uint8)
    want = processor(images=image, return_tensors="np")["pixel_values"]
    config = dataclasses.replace(tiny.CONFIG, image_size=224)
    got = config.setup().preprocess(image[None] / np.float32(127.5) - 1)
    # The twin rounds the resized image to 8 bits: 1/255 over the smallest deviation.
    difference = np.abs(got - want.transpose(0, 2, 3, 1))
    assert difference.max() < 1 / 255 / 0.26
    assert difference.mean() < 0.5 / 255 / 0.26


def test_whole_encoder_against_the_reference(tmp_path, monkeypatch):
    """From a first frame, through the reference's class and a published folder."""
    pytest.importorskip("flashdreams")
    from tests.parity.published_files import TorchProcessor, reference_clip

    config = CASES["odd head width, one layer dropped"]
    model = _torch_model(config)
    model.save_pretrained(tmp_path / "image_encoder")
    monkeypatch.setattr(TorchProcessor, "size", config.image_size)
    monkeypatch.setattr(reference_clip, "CLIPImageProcessor", TorchProcessor)
    theirs = reference_clip.CLIPImageEncoderConfig(
        model_id_or_local_path=str(tmp_path), dtype=torch.float32
    ).setup()
    image = _images(1, 60, 100)
    want = theirs(torch.tensor(image.transpose(0, 3, 1, 2))).numpy()
    got = config.setup().encode(_params(model, config), jnp.asarray(image))
    assert_close(got, want)
