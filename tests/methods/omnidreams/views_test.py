"""Several views: each is conditioned and decoded as it would be by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax_models.methods.omnidreams.encoder import side_by_side
from fdjax_models.methods.omnidreams.views import (
    ViewsConditionerConfig,
    ViewsDecoderConfig,
)
from fdjax_models.networks.cosmos_reason1 import CosmosReason1EncoderConfig
from fdjax_models.networks.taehv.decoder import TaehvDecoderConfig
from fdjax_models.networks.wan_vae.first_frame import FirstFrameEncoderConfig
from fdjax_models.networks.wan_vae.vae import WanVaeEncoderConfig

TEXT = CosmosReason1EncoderConfig(
    max_length=144,
    vocab_size=300,
    width=16,
    mlp_dim=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    dtype="float32",
)
IMAGE = FirstFrameEncoderConfig(
    encoder=WanVaeEncoderConfig(widths=(8, 8, 8, 8), num_blocks=1, dtype="float32")
)
CONDITIONER = ViewsConditionerConfig(
    text_encoder=TEXT, image_encoder=IMAGE, num_views=2, negative_prompt="bad"
).setup()
TOLERANCE = testing.tolerance(jnp.float32, 27 * 8)


@pytest.fixture(scope="module")
def params():
    key = jax.random.key(0)
    return {name: part.init_params(key) for name, part in CONDITIONER.parts.items()}


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(1), (2, 2, 16, 24, 3), minval=-1.0)


def test_a_prompt_and_a_frame_for_every_view(params, image):
    words = ["sun", "rain", "snow", "fog"]
    found = CONDITIONER.encode(params, text=words, image=image)
    assert found.text.shape == (2, 2, 144, 32)
    assert found.image_embedding.shape == (2, 2, 1, 2, 3, 16)
    assert found.image is None
    assert found.batch_size == 2
    each = CONDITIONER.parts["text_encoder"].encode(params["text_encoder"], words)
    np.testing.assert_allclose(found.text.reshape(each.shape), each, atol=1e-4)
    np.testing.assert_array_equal(found.negative_text[0, 0], found.negative_text[1, 1])
    shared = CONDITIONER.encode(params, text=words[:2], image=image)
    np.testing.assert_array_equal(shared.text[:, 0], shared.text[:, 1])
    np.testing.assert_allclose(shared.text[1, 0], each[1], atol=1e-4)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"text": ["a"]}, "starts from a prompt and a first frame"),
        ({"text": ["a"], "image": np.zeros((1, 16, 24, 3))}, r"\[B, 2, H, W, 3\]"),
        ({"text": ["a"] * 3, "image": np.zeros((2, 2, 16, 24, 3))}, "2 views, got 3"),
        ({"text": ["a"], "image": np.full((1, 2, 8, 8, 3), 7.0)}, r"lie in \[-1, 1\]"),
        ({"text": ["a"], "image": np.zeros((1, 2, 8, 8, 3)), "sound": 1}, "sound"),
    ],
)
def test_other_conditions_are_refused(given, problem, params):
    with pytest.raises(ValueError, match=problem):
        CONDITIONER.encode(params, **given)


def test_views_are_decoded_apart():
    decoder = TaehvDecoderConfig(
        widths=(8, 8, 8, 8), blocks_per_stage=1, dtype="float32"
    )
    views = ViewsDecoderConfig(decoder=decoder, cameras=("left", "right")).setup()
    params = views.init_params(jax.random.key(0))
    latents = jax.random.normal(jax.random.key(2), (2, 2, 3, 2, 3, 16))
    cache = views.initialize_cache(params, 2, 2, 2 * 3)
    alone = views.decoder.initialize_cache(params, 1, 2, 3)
    decode, decode_one = jax.jit(views.decode), jax.jit(views.decoder.decode)
    for part in (latents[:, :, :1], latents[:, :, 1:]):
        cache, video = decode(params, cache, side_by_side(part))
        alone, expected = decode_one(params, alone, part[1:, 1])
        assert list(video) == ["left", "right"]
        np.testing.assert_allclose(video["right"][1:], expected, atol=TOLERANCE)
    assert all(leaf.shape[:2] == (2, 2) for leaf in jax.tree.leaves(cache))
