"""TAEHV's decoder against the reference's streaming class."""

from unittest import mock

import jax
import numpy as np
import pytest

from fdjax_convert import rules
from fdjax_convert.tables import taehv
from fdjax_models.networks.taehv.decoder import TaehvDecoder, TaehvDecoderConfig
from fdjax_models.networks.taehv.encoder import TaehvEncoderConfig
from tests.parity import imports
from tests.parity.comparison import assert_allclose, assert_close

torch = imports.lazy("torch")
reference_wrapper = imports.lazy("flashdreams.recipes.taehv")
reference_taehv = imports.lazy("flashdreams.recipes.taehv.impl")

pytestmark = imports.requires("torch", "flashdreams")

decode = jax.jit(TaehvDecoder.decode, static_argnums=0)


def _state(widths, channels, patch, oversize=False):
    """Random weights under the published names; encoder keys are there as well."""
    config = TaehvDecoderConfig(
        widths=widths, latent_channels=channels, patch=patch, dtype="float32"
    )
    shapes = {
        key: tensor.shape
        for key, tensor in rules.export(
            config.setup().param_shapes(), taehv.DECODER
        ).items()
    }
    if oversize:
        rows, *rest = shapes["decoder.7.conv.weight"]
        shapes["decoder.7.conv.weight"] = (2 * rows, *rest)
    generator = np.random.default_rng(0)
    state = {}
    for key, shape in shapes.items():
        gain = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        state[key] = (gain * generator.normal(size=shape)).astype(np.float32)
    # Mid grey, with little of the output beyond what is clamped.
    state["decoder.22.weight"] *= 0.3
    state["decoder.22.bias"] += 0.5
    state["encoder.0.weight"] = np.zeros((8, 3, 3, 3), np.float32)
    return config, state


def _stream(decoder, params, latent, sizes):
    batch, _, height, width, _ = latent.shape
    cache, outputs = decoder.initialize_cache(params, batch, height, width), []
    for chunk in np.split(latent, np.cumsum(sizes)[:-1], axis=1):
        cache, video = decode(decoder, params, cache, chunk)
        outputs.append(video)
    return np.concatenate(outputs, axis=1)


def _torch(state):
    return {key: torch.from_numpy(value) for key, value in state.items()}


@pytest.mark.parametrize(
    ("model_type", "channels", "patch", "sizes"),
    [("wan21", 16, 1, (3, 3)), ("wan21", 16, 1, (1, 1, 4)), ("wan22", 48, 2, (2, 1))],
)
@imports.inference_mode
def test_decoding_equals_the_reference(model_type, channels, patch, sizes):
    widths = (16, 12, 8, 8)
    config, state = _state(widths, channels, patch, oversize=True)
    with mock.patch.object(
        reference_taehv, "load_checkpoint", return_value=_torch(state)
    ):
        module = reference_taehv.TAEHV(
            checkpoint_path="taew.pth",
            channels=widths,
            model_type=model_type,
            use_cuda_graph=False,
        )
    decoder = config.setup()
    params = rules.convert(state, taehv.DECODER, decoder.param_shapes())
    shape = (2, sum(sizes), 3, 2, channels)
    latent = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    cache, outputs = module.prepare_cache(), []
    for chunk in np.split(latent, np.cumsum(sizes)[:-1], axis=1):
        chunk = torch.from_numpy(np.moveaxis(chunk, -1, 2).copy())
        outputs.append(np.moveaxis(module.decode(chunk, cache=cache).numpy(), 2, -1))
    expected = 2 * np.concatenate(outputs, axis=1) - 1
    actual = _stream(decoder, params, latent, sizes)
    assert actual.shape == expected.shape
    assert np.mean(np.abs(expected) == 1) < 0.5, "most of the output is clamped"
    assert_allclose(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("path", "needs_scaling"), [("lighttae", True), ("x", False)])
@imports.inference_mode
def test_scaling_equals_the_reference(path, needs_scaling):
    """At the published widths: the reference's wrapper has no others."""
    _, state = _state((256, 128, 64, 64), 16, 1)
    with mock.patch.object(
        reference_taehv, "load_checkpoint", return_value=_torch(state)
    ):
        wrapper = reference_wrapper.TeahvVAEDecoderConfig(
            checkpoint_path=path,
            dtype=torch.float32,
            use_cuda_graph=False,
            use_compile=False,
        ).setup()
    latent = np.random.default_rng(1).normal(size=(1, 2, 2, 2, 16)).astype(np.float32)
    expected = wrapper(torch.from_numpy(np.moveaxis(latent, -1, 2).copy()))
    decoder = TaehvDecoderConfig(needs_scaling=needs_scaling, dtype="float32").setup()
    params = rules.convert(state, taehv.DECODER, decoder.param_shapes())
    actual = _stream(decoder, params, latent, (2,))
    assert np.mean(np.abs(actual) == 1) < 0.5, "most of the output is clamped"
    assert_allclose(actual, np.moveaxis(expected.numpy(), 2, -1), rtol=0, atol=1e-4)


def _torch_encoder(state, video):
    """The published encoder, layer by layer as its keys number them.

    No package ships it; it is written from madebyollin/taehv, taehv.py, in torch.

    Args:
        state: Weights by published key.
        video: RGB in [0, 1].  [T, C, H, W], T a multiple of 4.
    """

    def conv(x, key, stride=1):
        weight, bias = state[f"{key}.weight"], state.get(f"{key}.bias")
        return torch.nn.functional.conv2d(
            x, weight, bias, stride=stride, padding=weight.shape[-1] // 2
        )

    x = conv(video, "encoder.0").relu()
    for start, stride in ((2, 2), (7, 2), (12, 1)):
        x = x.reshape(-1, stride * x.shape[1], *x.shape[2:])
        x = conv(conv(x, f"encoder.{start}.conv"), f"encoder.{start + 1}", 2)
        for block in range(start + 2, start + 5):
            past = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
            y = torch.cat([x, past], dim=1)
            for layer in (0, 2):
                y = conv(y, f"encoder.{block}.conv.{layer}").relu()
            x = (conv(y, f"encoder.{block}.conv.4") + x).relu()
    return conv(x, "encoder.17")


def test_encoding_equals_torch():
    config = TaehvEncoderConfig(
        widths=(12, 8, 8, 16), latent_channels=4, dtype="float32"
    )
    encoder = config.setup()
    generator = np.random.default_rng(0)
    state = {
        key: generator.normal(
            size=tensor.shape, scale=np.prod(tensor.shape[1:]) ** -0.5
        )
        for key, tensor in rules.export(encoder.param_shapes(), taehv.ENCODER).items()
    }
    state = {key: value.astype(np.float32) for key, value in state.items()}
    params = rules.convert(state, taehv.ENCODER, encoder.param_shapes())
    video = generator.uniform(-1, 1, (1, 8, 16, 24, 3)).astype(np.float32)
    rgb = torch.from_numpy((np.moveaxis(video[0], -1, 1) + 1) / 2)
    expected = np.moveaxis(_torch_encoder(_torch(state), rgb).numpy(), 1, -1)
    cache, actual = encoder.initialize_cache(params, 1, 2, 3), []
    for chunk in (video[:, :4], video[:, 4:]):
        cache, latent = jax.jit(encoder.encode)(params, cache, chunk)
        actual.append(latent)
    actual = np.concatenate(actual, axis=1)[0]
    assert_close(actual, expected, 1e-5)
