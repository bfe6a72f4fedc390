"""HD-map encoders: by chunks as at once, views and sessions apart; what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.contract.conditioner import Conditions
from fdjax_models.networks.hdmap.pixel_shuffle import PixelShuffleEncoderConfig
from fdjax_models.networks.hdmap.vae_encoder import HdMapVaeEncoderConfig
from fdjax_models.networks.wan_vae.first_frame import FirstFrameEncoderConfig
from fdjax_models.networks.wan_vae.vae import LIGHTVAE_ENCODER

VAE = dataclasses.replace(
    LIGHTVAE_ENCODER, widths=(8, 8, 8, 8), num_blocks=1, dtype="float32"
)
ENCODERS = {
    "vae": HdMapVaeEncoderConfig(encoder=VAE).setup(),
    "last": PixelShuffleEncoderConfig().setup(),
    "first": PixelShuffleEncoderConfig(frame_selection_mode="first_frame").setup(),
}
HEIGHT, WIDTH = 2, 3
FRAMES = {"vae": (5, 8), "last": (9, 12), "first": (9, 12)}


@pytest.fixture(scope="module")
def params():
    key = jax.random.key(0)
    return {name: encoder.init_params(key) for name, encoder in ENCODERS.items()}


def video(*shape, seed=1):
    size = (*shape, 8 * HEIGHT, 8 * WIDTH, 3)
    return np.random.default_rng(seed).uniform(-1, 1, size).astype(np.float32)


def stream(name, params, given):
    """Latents of a video [..., T, H, W, 3], by chunks."""
    encoder, found = ENCODERS[name], []
    encode = jax.jit(encoder.encode)
    cache = encoder.initialize_cache({}, Conditions(), HEIGHT, WIDTH)
    first, later = FRAMES[name]
    cuts = range(first, given.shape[-4], later)
    for chunk in np.split(given, cuts, axis=-4):
        cache, latent = encode(params[name], cache, chunk)
        found.append(latent)
    return np.concatenate(found, axis=-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_views_and_sessions_are_encoded_apart(name, params):
    first, later = FRAMES[name]
    given = video(2, 3, first + later)
    found = stream(name, params, given)
    channels = 16 if name == "vae" else 192
    assert found.shape == (2, 3, (first + later + 3) // 4, HEIGHT, WIDTH, channels)
    # A view by itself, of another session by itself.
    alone = stream(name, params, given[1:, 2])
    tolerance = testing.tolerance(jnp.float32, 27 * 8)
    np.testing.assert_allclose(found[1:, 2], alone, rtol=0, atol=tolerance)


def test_chunks_equal_the_whole(params):
    given = video(1, 13)
    whole = ENCODERS["vae"].initialize_cache({}, Conditions(), HEIGHT, WIDTH)
    _, expected = ENCODERS["vae"].encode(params["vae"], whole, given)
    tolerance = testing.tolerance(jnp.float32, 27 * 8)
    found = stream("vae", params, given)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("last", [0, 4, 8, 12, 16, 20]), ("first", [0, 1, 5, 9, 13, 17])],
)
def test_pixels_are_folded_by_colour_row_and_column(name, kept, params):
    given = video(1, 21)
    found = stream(name, params, given)
    for latent, frame in enumerate(kept):
        for channel in (0, 9, 77, 191):
            colour, row, column = np.unravel_index(channel, (3, 8, 8))
            np.testing.assert_array_equal(
                found[0, latent, :, :, channel],
                given[0, frame, row::8, column::8, colour],
            )


def test_the_first_frame_is_the_first_latent_of_a_video(params):
    encoder = FirstFrameEncoderConfig(encoder=VAE).setup()
    given = video(2, 3, 5)
    found = encoder.encode(params["vae"], jnp.asarray(given[:, :, 0]))
    expected = stream("vae", params, given)[:, :, :1]
    tolerance = testing.tolerance(jnp.float32, 27 * 8)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    one = encoder.encode(params["vae"], jnp.asarray(given[:, 1, 0]))
    np.testing.assert_allclose(one, found[:, 1], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (None, "HD map of this chunk is missing"),
        (np.zeros((1, 5, 16, 24), np.float32), r"must be video.*\(1, 5, 16, 24\)"),
        (np.zeros((1, 5, 16, 24, 3), np.uint8), "floating point.*uint8"),
        (np.zeros((1, 5, 24, 16, 3), np.float32), "16 x 24 pixels.*24 x 16"),
        (np.zeros((1, 4, 16, 24, 3), np.float32), r"1 \+ 4 k frames.*got 4"),
    ],
)
def test_other_input_is_refused(given, problem, params):
    for name, encoder in ENCODERS.items():
        cache = encoder.initialize_cache({}, Conditions(), HEIGHT, WIDTH)
        with pytest.raises(ValueError, match=problem):
            encoder.encode(params[name], cache, given)
