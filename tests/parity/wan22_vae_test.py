"""The Wan 2.2 VAE against the reference's own configs of it, by chunks.

Its published latents of 48 channels with their statistics, and a decoder wider than
the encoder; only the widths are smaller.
"""

import dataclasses
import functools
from unittest import mock

import jax
import numpy as np
import pytest

from fdjax_convert import rules
from fdjax_convert.tables import wan_vae
from fdjax_models.networks.wan_vae import vae
from tests import golden
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
published_files = imports.lazy("tests.parity.published_files")
reference_vae = imports.lazy("flashdreams.recipes.wan.autoencoder.vae")

pytestmark = imports.requires("torch", "flashdreams")

ENCODER_BASE, DECODER_BASE = 8, 12
SIZE = (2, 3)  # latent rows and columns


def _widths(base):
    return tuple(base * factor for factor in (1, 2, 4, 4))


COMPONENTS = {
    "encoder": dataclasses.replace(
        vae.WAN22_VAE_ENCODER, widths=_widths(ENCODER_BASE), dtype="float32"
    ).setup(),
    "decoder": dataclasses.replace(
        vae.WAN22_VAE_DECODER, widths=_widths(DECODER_BASE), dtype="float32"
    ).setup(),
}
# Components are static and hashable: chunks of one size share compiled code.
STEPS = {
    "encoder": jax.jit(vae.WanVaeEncoder.encode, static_argnums=0),
    "decoder": jax.jit(vae.WanVaeDecoder.decode, static_argnums=0),
}
TABLES = {
    "encoder": wan_vae.DIFFUSERS_22_ENCODER,
    "decoder": wan_vae.DIFFUSERS_22_DECODER,
}


@functools.cache
def _tensors():
    """One file in diffusers' layout, which the reference renames; filled by name."""
    shapes = {}
    for part, component in COMPONENTS.items():
        shapes |= rules.export(component.param_shapes(), TABLES[part])
    state = {key: golden.fill_weight(key, leaf.shape) for key, leaf in shapes.items()}
    # The video stays inside [-1, 1], where it is not clamped.
    state["decoder.conv_out.weight"] *= np.float32(0.3)
    return state


@functools.cache
def _reference(part):
    published = published_files.rows_first(_tensors())
    tensors = {key: torch.from_numpy(value) for key, value in published.items()}
    fields = {
        "base_dim": ENCODER_BASE,
        "dtype": torch.float32,
        "use_cuda_graph": False,
    }
    if part == "decoder":
        fields["decoder_base_dim"] = DECODER_BASE
    config = {
        "encoder": reference_vae.Wan22TI2V5BVAEEncoderConfig,
        "decoder": reference_vae.Wan22TI2V5BVAEDecoderConfig,
    }[part](**fields)
    with mock.patch.object(reference_vae, "load_checkpoint", return_value=tensors):
        return config.setup()


def _streams(part, x, sizes):
    """Ours and the reference's outputs over the chunks of x, [B, T, H, W, C]."""
    component, reference = COMPONENTS[part], _reference(part)
    params = rules.convert(_tensors(), TABLES[part], component.param_shapes())
    cache, theirs = vae.WanVaeCache(), reference.initialize_autoregressive_cache()
    ours, expected = [], []
    for index, chunk in enumerate(np.split(x, np.cumsum(sizes)[:-1], axis=1)):
        cache, output = STEPS[part](component, params, cache, chunk)
        ours.append(output)
        chunk = torch.from_numpy(np.moveaxis(chunk, -1, 2).copy())
        expected.append(np.moveaxis(reference(chunk, index, theirs).numpy(), 2, -1))
    return np.concatenate(ours, axis=1), np.concatenate(expected, axis=1)


@pytest.mark.parametrize("sizes", [(5, 4, 4), (1, 8)])
@imports.inference_mode
def test_encoding(sizes):
    shape = (2, sum(sizes), 16 * SIZE[0], 16 * SIZE[1], 3)
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    ours, expected = _streams("encoder", video, sizes)
    assert ours.shape == (2, 1 + (sum(sizes) - 1) // 4, *SIZE, 48)
    assert_close(ours, expected)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 1, 2)])
@imports.inference_mode
def test_decoding(sizes):
    shape = (2, sum(sizes), *SIZE, 48)
    latent = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    ours, expected = _streams("decoder", latent, sizes)
    frames = 1 + 4 * (sum(sizes) - 1)
    assert ours.shape == (2, frames, 16 * SIZE[0], 16 * SIZE[1], 3)
    assert np.mean(np.abs(expected) == 1) < 0.5, "most of the output is clamped"
    assert_close(ours, expected)
