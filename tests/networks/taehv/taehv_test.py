"""TAEHV: chunks against whole clips, recorded outputs, sizes, training, bad input."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax_convert import rules
from fdjax_convert.tables import taehv
from fdjax_models.networks.taehv.decoder import TAEW2_1, TAEW2_2, TaehvDecoderConfig
from fdjax_models.networks.taehv.encoder import TaehvEncoderConfig
from fdjax_models.networks.wan_vae.statistics import WAN21_MEAN, WAN21_STD, denormalize
from tests import golden

SMALL = TaehvDecoderConfig(
    widths=(16, 12, 8),
    spatial_scales=(2, 2),
    temporal_scales=(2, 2),
    patch=2,
    latent_channels=4,
    blocks_per_stage=1,
    dtype="float32",
)
SMALL_ENCODER = TaehvEncoderConfig(
    widths=(8, 12, 16),
    spatial_scales=(2, 2),
    temporal_scales=(2, 2),
    patch=2,
    latent_channels=4,
    blocks_per_stage=1,
    causal=True,
    dtype="float32",
)


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _stream(step, params, cache, x, sizes):
    outputs = []
    for chunk in np.split(x, np.cumsum(sizes)[:-1], axis=1):
        cache, output = step(params, cache, chunk)
        outputs.append(output)
    return jnp.concatenate(outputs, axis=1)


def assert_sums(actual, expected):
    """Equal up to the order of sums: 9 pixels of two frames' 16 channels at most."""
    length = 9 * 2 * 16
    testing.assert_close(actual, expected, testing.tolerance(jnp.float32, length))


@pytest.mark.isa
def test_decoding_chunks_gives_the_whole_clip():
    decoder = SMALL.setup()
    decode = jax.jit(decoder.decode_unclamped)
    params, latent = decoder.init_params(jax.random.key(0)), _normal(1, 2, 5, 3, 2, 4)
    cache = decoder.initialize_cache(params, 2, 3, 2)
    _, whole = decode(params, cache, latent)
    chunks = _stream(decode, params, cache, latent, (1, 1, 3))
    assert whole.shape == (2, decoder.num_output_frames(5, first=True), 24, 16, 3)
    assert whole.shape[1] == 17
    assert_sums(chunks, whole)
    # No frame sees a later latent, and every latent is seen.
    changed = latent.at[:, 3].add(1)
    difference = jnp.abs(decode(params, cache, changed)[1] - whole)
    np.testing.assert_array_equal(difference[:, :9], 0)
    assert difference[:, 9:13].min(axis=(0, 2, 3, 4)).max() > 0


def test_two_executables_and_a_steady_cache():
    decoder = SMALL.setup()
    params = decoder.init_params(jax.random.key(0))
    decode = jax.jit(chex.assert_max_traces(decoder.decode, n=2))
    cache, latent = decoder.initialize_cache(params, 1, 2, 2), _normal(1, 1, 2, 2, 2, 4)
    caches = [cache]
    for _ in range(4):
        cache, video = decode(params, cache, latent)
        caches.append(cache)
    chex.assert_trees_all_equal_shapes_and_dtypes(*caches[1:])
    assert jax.tree.structure(caches[0]) != jax.tree.structure(caches[1])
    assert video.shape == (1, 8, 16, 16, 3)
    # A cache is not used up: the same chunk can be decoded from it again.
    np.testing.assert_array_equal(decode(params, caches[3], latent)[1], video)


def test_encoding_chunks_gives_the_whole_clip():
    encoder = SMALL_ENCODER.setup()
    encode = jax.jit(encoder.encode)
    params = encoder.init_params(jax.random.key(0))
    video = jnp.clip(_normal(1, 2, 17, 24, 16, 3), -1, 1)
    cache = encoder.initialize_cache(params, 2, 3, 2)
    _, whole = encode(params, cache, video)
    chunks = _stream(encode, params, cache, video, (1, 8, 8))
    assert whole.shape == (2, 5, 3, 2, 4)
    assert_sums(chunks, whole)
    # Causal: latent i sees no frame after 4 i, and does see frame 4 i.
    changed = video.at[:, 8].multiply(0.5)
    difference = jnp.abs(encode(params, cache, changed)[1] - whole)
    np.testing.assert_array_equal(difference[:, :2], 0)
    assert difference[:, 2].max() > 0


def test_published_encoder_pads_at_the_end():
    encoder = dataclasses.replace(SMALL_ENCODER, causal=False).setup()
    encode = jax.jit(encoder.encode)
    params = encoder.init_params(jax.random.key(0))
    video = jnp.clip(_normal(1, 1, 7, 16, 16, 3), -1, 1)
    cache = encoder.initialize_cache(params, 1, 2, 2)
    padded = jnp.concatenate([video, video[:, -1:]], axis=1)
    _, latent = encode(params, cache, video)
    assert latent.shape == (1, 2, 2, 2, 4)
    np.testing.assert_array_equal(latent, encode(params, cache, padded)[1])
    chunks = _stream(encode, params, cache, video, (4, 3))
    assert_sums(chunks, latent)


@pytest.mark.isa
def test_output_of_the_reference():
    config = TaehvDecoderConfig(
        widths=(32, 16, 8, 8), latent_channels=4, dtype="float32"
    )
    decoder = config.setup()
    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), decoder.param_shapes()
    )
    published = {
        key: golden.fill_weight(key, value.shape)
        for key, value in rules.to_torch(zeros, taehv.DECODER).items()
    }
    params = rules.convert(published, taehv.DECODER, decoder.param_shapes())
    latent = np.moveaxis(golden.fill_input("z", (1, 3, 4, 3, 4)), 2, -1)
    cache = decoder.initialize_cache(params, 1, 3, 4)
    decode = jax.jit(decoder.decode)
    video = (_stream(decode, params, cache, latent, (2, 1)) + 1) / 2
    expected = [1913.651929, 1913.651929]
    expected += [0.068087, 0.069230, 0.083253, 0.078780, 0.083421, 0, 0, 0.030221]
    assert video.shape == (1, 9, 24, 32, 3)
    # Blocks see 9 pixels of this frame's and the last one's 32 channels.
    golden.assert_summary(np.moveaxis(video, -1, 2), expected, length=9 * 2 * 32)


def test_lighttae_works_in_the_scale_of_the_vae():
    config = dataclasses.replace(SMALL, latent_channels=16)
    plain = config.setup()
    scaled = dataclasses.replace(config, needs_scaling=True).setup()
    params, latent = plain.init_params(jax.random.key(0)), _normal(1, 1, 2, 2, 2, 16)
    cache = plain.initialize_cache(params, 1, 2, 2)
    decode = jax.jit(plain.decode)
    _, actual = jax.jit(scaled.decode)(params, cache, latent)
    raw = denormalize(latent, WAN21_MEAN, WAN21_STD)
    assert_sums(actual, decode(params, cache, raw)[1])
    assert jnp.abs(actual - decode(params, cache, latent)[1]).max() > 1e-3


def test_training_reaches_every_parameter():
    encoder, decoder = SMALL_ENCODER.setup(), SMALL.setup()
    video = jnp.clip(_normal(1, 1, 9, 16, 16, 3), -1, 1)
    params = {
        "encoder": encoder.init_params(jax.random.key(2)),
        "decoder": decoder.init_params(jax.random.key(3)),
    }

    @jax.jit
    @jax.grad
    def gradient(params):
        cache = encoder.initialize_cache(params["encoder"], 1, 2, 2)
        _, latent = encoder.encode(params["encoder"], cache, video)
        cache = decoder.initialize_cache(params["decoder"], 1, 2, 2)
        _, output = decoder.decode_unclamped(params["decoder"], cache, latent)
        return jnp.mean(jnp.abs(output - video))

    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        assert jnp.isfinite(leaf).all(), path
        assert jnp.abs(leaf).max() > 0, path


def test_bfloat16_is_close_to_float32():
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    decoder, exact = config.setup(), SMALL.setup()
    params, latent = exact.init_params(jax.random.key(0)), _normal(1, 1, 2, 4, 4, 4)
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    cache = decoder.initialize_cache(short, 1, 4, 4)
    cache, video = jax.jit(decoder.decode)(short, cache, latent)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype("bfloat16")}
    assert video.dtype == jnp.float32
    cache = exact.initialize_cache(params, 1, 4, 4)
    _, expected = jax.jit(exact.decode)(params, cache, latent)
    # A dozen layers of 8-bit mantissas, on a scale of 1.
    assert jnp.abs(video - expected).max() < 0.05


@pytest.mark.parametrize(
    ("config", "count"),
    [(TAEW2_1, 9_844_611), (TaehvEncoderConfig(), 1_470_928)],
)
def test_published_sizes(config, count):
    shapes = config.setup().param_shapes()
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}


def test_compression_ratios():
    decoder = TAEW2_2.setup()
    assert decoder.spatial_compression_ratio == 16
    assert decoder.temporal_compression_ratio == 4
    assert [decoder.num_output_frames(3, first) for first in (True, False)] == [9, 12]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (8, 8)}, "spatial_scales must hold .* 1 stages, got"),
        ({"temporal_scales": (1, 3, 2)}, "temporal_scales must hold .*3"),
        ({"patch": 0}, "patch must be >= 1, got 0"),
        ({"needs_scaling": True, "latent_channels": 48}, "16-channel .*=48"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        TaehvDecoderConfig(**fields)


def test_causal_encoder_refuses_part_of_a_latent():
    encoder = SMALL_ENCODER.setup()
    cache = encoder.initialize_cache({}, 1, 2, 2)
    with pytest.raises(ValueError, match=r"1 \+ 4 k frames first, .*got 4 with"):
        encoder.encode({}, cache, jnp.zeros((1, 4, 16, 16, 3)))
