"""The Wan VAEs against diffusers and against the reference's streaming classes."""

import functools
from unittest import mock

import jax
import numpy as np
import pytest

from fdjax_convert import rules
from fdjax_convert.tables import wan_vae
from fdjax_models.networks.wan_vae import vae
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
diffusers = imports.lazy("diffusers")
reference_vae = imports.lazy("flashdreams.recipes.wan.autoencoder.vae")

pytestmark = imports.requires("torch", "diffusers", "flashdreams")

BASE = 8
MEAN = (0.3, -0.6, 0.1, 0.9)
STD = (2.0, 0.7, 1.3, 1.1)
KINDS = {
    "2.1": {"widths": (8, 16, 32, 32)},
    "2.2": {"widths": (8, 16, 32, 32), "residual_stages": True, "patch": 2},
}

decode = jax.jit(vae.WanVaeDecoder.decode, static_argnums=0)
encode = jax.jit(vae.WanVaeEncoder.encode, static_argnums=0)


def _components(kind, **fields):
    common = {"latent_mean": MEAN, "latent_std": STD, "dtype": "float32"}
    return (
        vae.WanVaeEncoderConfig(**KINDS[kind], **common).setup(),
        vae.WanVaeDecoderConfig(**KINDS[kind], **common, **fields).setup(),
    )


def _random_state(shapes, seed=0):
    """Gives every parameter a value that matters, norms and zeroed layers too."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in shapes.items():
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith("gamma"):
            state[key] = 1 + 0.1 * noise
        elif value.ndim > 1:
            state[key] = noise / value[0].numel() ** 0.5
        else:
            state[key] = 0.1 * noise
    return state


def _params(state, component, name):
    layout = next(
        layout
        for layout in wan_vae.LAYOUTS
        if (layout.name, layout.architecture) == (name, component.architecture)
    )
    assert layout.detect(state)
    return rules.convert(state, layout.rules, component.param_shapes())


def _stream(component, params, x, sizes):
    step = decode if isinstance(component, vae.WanVaeDecoder) else encode
    cache, outputs = vae.WanVaeCache(), []
    for chunk in np.split(x, np.cumsum(sizes)[:-1], axis=1):
        cache, output = step(component, params, cache, chunk)
        outputs.append(output)
    return np.concatenate(outputs, axis=1)


def _channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def _channels_last(x):
    return np.moveaxis(x.numpy(), 1, -1)


@functools.cache
def _diffusers_vae(kind):
    fields = {}
    if kind == "2.2":
        fields = {
            "is_residual": True,
            "patch_size": 2,
            "in_channels": 12,
            "out_channels": 12,
            "scale_factor_spatial": 16,
        }
    module = diffusers.AutoencoderKLWan(
        base_dim=BASE,
        decoder_base_dim=BASE,
        z_dim=4,
        latents_mean=list(MEAN),
        latents_std=list(STD),
        **fields,
    ).eval()
    state = _random_state(module.state_dict())
    module.load_state_dict(state, strict=True)
    return module, {key: value.numpy() for key, value in state.items()}


@pytest.mark.parametrize("kind", KINDS)
@imports.inference_mode
def test_encoding_equals_diffusers(kind):
    module, state = _diffusers_vae(kind)
    encoder, _ = _components(kind)
    params = _params(state, encoder, f"diffusers {kind}")
    ratio = encoder.config.spatial_ratio
    video = np.random.default_rng(1).uniform(-1, 1, (2, 17, 2 * ratio, 3 * ratio, 3))
    video = video.astype(np.float32)
    mean = module.encode(_channels_first(video)).latent_dist.mean
    expected = (_channels_last(mean) - np.float32(MEAN)) / np.float32(STD)
    assert_close(_stream(encoder, params, video, (5, 8, 4)), expected)


@pytest.mark.parametrize(("kind", "sizes"), [("2.1", (1, 1, 1, 2)), ("2.2", (2, 3))])
@imports.inference_mode
def test_decoding_equals_diffusers(kind, sizes):
    module, state = _diffusers_vae(kind)
    _, decoder = _components(kind, context="exact")
    params = _params(state, decoder, f"diffusers {kind}")
    latent = np.random.default_rng(1).normal(size=(2, 5, 2, 3, 4)).astype(np.float32)
    raw = latent * np.float32(STD) + np.float32(MEAN)
    expected = _channels_last(module.decode(_channels_first(raw)).sample)
    assert np.mean(np.abs(expected) == 1) < 0.5, "most of the output is clamped"
    assert_close(_stream(decoder, params, latent, sizes), expected)


@functools.cache
def _reference(base=BASE, use_lightvae=False):
    """The reference's VAE and the state it is loaded from, official layout."""

    def build(state):
        with mock.patch.object(reference_vae, "load_checkpoint", return_value=state):
            return reference_vae.WanVAE(
                vae_path="Wan2.1_VAE.pth",
                use_cuda_graph=False,
                use_compile=False,
                use_lightvae=use_lightvae,
                base_dim=base,
                z_dim=4,
                latent_mean=MEAN,
                latent_std=STD,
            )

    # It registers its networks a second time, under names that no file has.
    empty = build({}).state_dict()
    shapes = {key: value for key, value in empty.items() if "_call." not in key}
    state = _random_state(shapes)
    return build(state), {key: value.numpy() for key, value in state.items()}


@pytest.mark.parametrize("sizes", [(5, 8, 4), (1, 4, 12)])
@imports.inference_mode
def test_encoding_equals_the_reference(sizes):
    module, state = _reference()
    encoder, _ = _components("2.1")
    params = _params(state, encoder, "official 2.1")
    video = np.random.default_rng(2).uniform(-1, 1, (2, 17, 16, 24, 3))
    video = video.astype(np.float32)
    cache = module.prepare_cache()
    expected = [
        _channels_last(module.encode(_channels_first(chunk), cache))
        for chunk in np.split(video, np.cumsum(sizes)[:-1], axis=1)
    ]
    expected = np.concatenate(expected, axis=1)
    assert_close(_stream(encoder, params, video, sizes), expected)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 1, 1), (2, 3)])
@imports.inference_mode
def test_decoding_equals_the_reference(sizes):
    module, state = _reference()
    _, decoder = _components("2.1", context="reference")
    params = _params(state, decoder, "official 2.1")
    latent = np.random.default_rng(3).normal(size=(2, 5, 2, 3, 4)).astype(np.float32)
    cache = module.prepare_cache()
    expected = [
        _channels_last(module.decode(_channels_first(chunk), cache))
        for chunk in np.split(latent, np.cumsum(sizes)[:-1], axis=1)
    ]
    expected = np.concatenate(expected, axis=1)
    assert np.mean(np.abs(expected) == 1) < 0.5, "most of the output is clamped"
    assert_close(_stream(decoder, params, latent, sizes), expected)


@pytest.mark.parametrize("base", [32, 96], ids=["small", "published width"])
@imports.inference_mode
def test_lightvae_equals_the_reference(base):
    """The pruned network, which the reference makes of the whole one's widths."""
    module, state = _reference(base, use_lightvae=True)
    common = {"latent_mean": MEAN, "latent_std": STD, "dtype": "float32"}
    widths = tuple(base // 4 * factor for factor in (1, 2, 4, 4))
    if base == 96:
        assert widths == vae.LIGHTVAE_ENCODER.widths == vae.LIGHTVAE_DECODER.widths
    encoder = vae.WanVaeEncoderConfig(widths=widths, **common).setup()
    decoder = vae.WanVaeDecoderConfig(
        widths=widths, context="reference", **common
    ).setup()
    video = np.random.default_rng(4).uniform(-1, 1, (1, 9, 16, 24, 3))
    video = video.astype(np.float32)
    latent = np.random.default_rng(5).normal(size=(1, 3, 2, 3, 4)).astype(np.float32)
    for component, x, sizes, step in (
        (encoder, video, (5, 4), module.encode),
        (decoder, latent, (2, 1), module.decode),
    ):
        params = _params(state, component, "official 2.1")
        cache = module.prepare_cache()
        expected = [
            _channels_last(step(_channels_first(chunk), cache))
            for chunk in np.split(x, np.cumsum(sizes)[:-1], axis=1)
        ]
        assert_close(
            _stream(component, params, x, sizes), np.concatenate(expected, axis=1)
        )
