"""The Wan VAEs: chunks against whole clips, recorded outputs, sizes, bad input."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.nn.resample import depth_to_space, space_to_depth
from fdjax_convert import rules
from fdjax_convert.tables import wan_vae
from fdjax_models.networks.wan_vae import vae
from fdjax_models.networks.wan_vae.networks import WanVaeConfig
from tests import golden

SIZES = {
    "widths": (4, 6, 8),
    "temporal": (True, True),
    "num_blocks": 1,
    "latents_per_pass": 6,
    "latent_mean": (0.5, -1.0, 0.25),
    "latent_std": (2.0, 0.5, 1.5),
    "dtype": "float32",
}
# Wan 2.2's parts: shortcuts around stages, pixels folded into channels.
RESIDUAL = {"residual_stages": True, "patch": 2, "widths": (4, 8, 8)}
KINDS = {"2.1": SIZES, "2.2": SIZES | RESIDUAL}

# Components are static and hashable: tests of one config share compiled code.
decode = jax.jit(vae.WanVaeDecoder.decode, static_argnums=0)
encode = jax.jit(vae.WanVaeEncoder.encode, static_argnums=0)


def _decoder(kind="2.1", **fields):
    return vae.WanVaeDecoderConfig(**KINDS[kind] | fields).setup()


def _encoder(kind="2.1", **fields):
    return vae.WanVaeEncoderConfig(**KINDS[kind] | fields).setup()


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _stream(component, params, x, sizes):
    step = decode if isinstance(component, vae.WanVaeDecoder) else encode
    cache, outputs = vae.WanVaeCache(), []
    for chunk in np.split(x, np.cumsum(sizes)[:-1], axis=1):
        cache, output = step(component, params, cache, chunk)
        outputs.append(output)
    return jnp.concatenate(outputs, axis=1)


def assert_sums(actual, expected):
    """Equal up to the order of sums: convolutions of 27 taps by at most 8 channels."""
    testing.assert_close(actual, expected, testing.tolerance(jnp.float32, 27 * 8))


@pytest.mark.isa
@pytest.mark.parametrize("kind", KINDS)
def test_decoding_chunks_gives_the_whole_clip(kind):
    decoder = _decoder(kind, context="exact")
    params, latent = decoder.init_params(jax.random.key(0)), _normal(1, 1, 6, 2, 3, 3)
    whole = _stream(decoder, params, latent, (6,))
    ratio = decoder.spatial_compression_ratio
    assert ratio == {"2.1": 4, "2.2": 8}[kind]
    assert whole.shape == (1, 21, 2 * ratio, 3 * ratio, 3)
    chunks = _stream(decoder, params, latent, (1, 1, 1, 3))
    assert_sums(chunks, whole)
    # Causal: changing latent 4 leaves the frames before it, 1 + 4 * 3, as they were.
    changed = _stream(decoder, params, latent.at[:, 4].add(1), (6,))
    np.testing.assert_array_equal(changed[:, :13], whole[:, :13])
    assert jnp.abs(changed - whole)[:, 13:].max() > 1e-3


@pytest.mark.isa
@pytest.mark.parametrize("kind", KINDS)
def test_encoding_chunks_gives_the_whole_clip(kind):
    encoder = _encoder(kind)
    ratio = encoder.config.spatial_ratio
    params = encoder.init_params(jax.random.key(0))
    video = jnp.clip(_normal(1, 1, 13, 2 * ratio, 3 * ratio, 3), -1, 1)
    whole = _stream(encoder, params, video, (13,))
    assert whole.shape == (1, 4, 2, 3, 3)
    chunks = _stream(encoder, params, video, (1, 4, 8))
    assert_sums(chunks, whole)
    changed = _stream(encoder, params, video.at[:, 5].add(1), (13,))
    np.testing.assert_array_equal(changed[:, :2], whole[:, :2])
    assert jnp.abs(changed - whole)[:, 2:].max() > 1e-3


def test_context_rules_differ_for_single_latents_only():
    exact, reference = _decoder(context="exact"), _decoder(context="reference")
    params, latent = exact.init_params(jax.random.key(0)), _normal(1, 1, 4, 2, 3, 3)
    singles = _stream(exact, params, latent, (1, 1, 1, 1))
    short = _stream(reference, params, latent, (1, 1, 1, 1))
    # From the fourth latent on, frame 9: the third has no second latent before it that
    # the first doubling of the frame rate would see.
    assert_sums(short[:, :9], singles[:, :9])
    assert jnp.abs(short - singles)[:, 9:].max() > 1e-3
    several = _stream(reference, params, latent, (1, 3))
    assert_sums(several, singles)


def test_passes_within_a_chunk_give_the_same():
    whole, passes = _decoder(context="exact"), _decoder(latents_per_pass=2)
    params, latent = whole.init_params(jax.random.key(0)), _normal(1, 1, 6, 2, 3, 3)
    expected = _stream(whole, params, latent, (6,))
    # One latent, then two: the context rule for chunks of one is none for passes.
    actual = _stream(passes, params, latent, (3, 3))
    assert_sums(actual, expected)
    whole, passes = _encoder("2.2"), _encoder("2.2", latents_per_pass=2)
    params, video = whole.init_params(jax.random.key(0)), _normal(1, 1, 13, 16, 24, 3)
    expected = _stream(whole, params, video, (13,))
    assert_sums(_stream(passes, params, video, (13,)), expected)


def test_two_executables_and_a_steady_cache():
    decoder = _decoder()
    params, latent = decoder.init_params(jax.random.key(0)), _normal(1, 2, 2, 2, 2, 3)
    counted = jax.jit(chex.assert_max_traces(decoder.decode, n=2))
    cache = decoder.initialize_cache(params, 2, 2, 2)
    caches = [cache]
    for first in (True, False, False, False):
        cache, video = counted(params, cache, latent)
        caches.append(cache)
        assert video.shape[1] == decoder.num_output_frames(2, first)
    chex.assert_trees_all_equal_shapes_and_dtypes(*caches[1:])
    assert jax.tree.structure(caches[0]) != jax.tree.structure(caches[1])
    np.testing.assert_array_equal(counted(params, caches[3], latent)[1], video)
    assert jnp.abs(video).max() <= 1
    # Sessions of a batch do not see each other.
    _, changed = counted(params, caches[3], latent.at[0].add(1))
    np.testing.assert_array_equal(changed[1], video[1])
    assert jnp.abs(changed[0] - video[0]).max() > 1e-3


@pytest.mark.isa
def test_folding_time_changes_the_order_of_sums_only():
    folded, plain = (
        _decoder(context="exact"),
        _decoder(context="exact", fold_time=False),
    )
    params, latent = folded.init_params(jax.random.key(0)), _normal(1, 1, 6, 2, 3, 3)
    expected = _stream(plain, params, latent, (6,))
    assert_sums(_stream(folded, params, latent, (6,)), expected)
    folded, plain = _encoder(), _encoder(fold_time=False)
    params, video = folded.init_params(jax.random.key(0)), _normal(1, 1, 13, 8, 12, 3)
    expected = _stream(plain, params, video, (13,))
    assert_sums(_stream(folded, params, video, (13,)), expected)


def test_latents_are_normalised_by_the_statistics():
    mean, std = np.float32(SIZES["latent_mean"]), np.float32(SIZES["latent_std"])
    plain = {"latent_mean": (0.0,) * 3, "latent_std": (1.0,) * 3}
    encoder, raw = _encoder(), _encoder(**plain)
    params, video = encoder.init_params(jax.random.key(0)), _normal(1, 1, 1, 8, 12, 3)
    latent = _stream(encoder, params, video, (1,))
    expected = _stream(raw, params, video, (1,))
    assert_sums(latent * std + mean, expected)
    decoder, raw = _decoder(), _decoder(**plain)
    params = decoder.init_params(jax.random.key(0))
    video = _stream(decoder, params, latent, (1,))
    expected = _stream(raw, params, latent * std + mean, (1,))
    assert_sums(video, expected)


def test_bfloat16_is_close_to_float32():
    exact, short = _decoder(), _decoder(dtype="bfloat16")
    params, latent = exact.init_params(jax.random.key(0)), _normal(1, 1, 1, 2, 3, 3)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    cache, video = decode(short, low, vae.WanVaeCache(), latent)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype("bfloat16")}
    assert video.dtype == jnp.float32
    expected = _stream(exact, params, latent, (1,))
    error = jnp.sqrt(jnp.mean((video - expected) ** 2) / jnp.mean(expected**2))
    # Some twenty layers of 8-bit mantissas.
    assert 1e-4 < error < 0.05


GOLDEN = {
    ("2.1", "decoder"): "6035.461749 22543.720571 0.046461 0.142897 0.368797 "
    "0.131452 -0.031737 0.456645 0.487966 0.313641",
    ("2.1", "encoder"): "7.830783 85.361997 0.202611 0.286491 -0.245602 "
    "-0.021282 0.285291 -0.489260 -0.271465 -0.718328",
    ("2.2", "decoder"): "-21869.628616 109367.920804 0.043414 0.211366 -0.004232 "
    "-0.125065 -0.126949 0.182962 0.079326 0.134357",
    ("2.2", "encoder"): "-7.409973 82.083516 0.323037 -0.467855 -0.132760 "
    "0.103718 -0.207210 -0.483640 -0.558402 -0.144947",
}
TABLES = {
    ("2.1", "decoder"): wan_vae.OFFICIAL_21_DECODER,
    ("2.1", "encoder"): wan_vae.OFFICIAL_21_ENCODER,
    ("2.2", "decoder"): wan_vae.OFFICIAL_22_DECODER,
    ("2.2", "encoder"): wan_vae.OFFICIAL_22_ENCODER,
}


@pytest.mark.isa
@pytest.mark.parametrize(("kind", "part"), GOLDEN)
def test_output_of_the_reference(kind, part):
    config = {"decoder": vae.WanVaeDecoderConfig, "encoder": vae.WanVaeEncoderConfig}
    patch = {"2.1": 1, "2.2": 2}[kind]
    component = config[part](
        widths=(8, 16, 32, 32),
        latent_mean=(0.0,) * 4,
        latent_std=(1.0,) * 4,
        residual_stages=kind == "2.2",
        patch=patch,
        dtype="float32",
    ).setup()
    shapes, table = component.param_shapes(), TABLES[kind, part]
    published = {
        key: golden.fill_weight(key, tensor.shape)
        for key, tensor in rules.export(shapes, table).items()
    }
    params = {"params": rules.convert(published, table, shapes)}
    if part == "decoder":
        x, sizes = golden.fill_input("z", (1, 4, 7, 3, 4)), (3, 2, 2)
    else:
        x, sizes = golden.fill_input("v", (1, 3 * patch**2, 9, 24, 32)), (1, 4, 4)
    x = np.moveaxis(x, 1, -1)
    if part == "encoder":
        x = depth_to_space(x, patch, column_first=True)

    @jax.jit
    def step(params, cache, chunk):
        method = {"decoder": "pixels", "encoder": "features"}[part]
        y, state = component.network.apply(params, chunk, cache.state, method=method)
        return vae.WanVaeCache(state=state), y

    cache, outputs = vae.WanVaeCache(), []
    for chunk in np.split(x, np.cumsum(sizes)[:-1], axis=1):
        cache, output = step(params, cache, chunk)
        outputs.append(output)
    y = jnp.concatenate(outputs, axis=1)
    if part == "decoder":
        y = space_to_depth(y, patch, column_first=True)
    recorded = [float(word) for word in GOLDEN[kind, part].split()]
    golden.assert_summary(np.moveaxis(y, -1, 1), recorded, length=27 * 32)


@pytest.mark.parametrize(
    ("decoder", "encoder", "count"),
    [
        (vae.WAN21_VAE_DECODER, vae.WAN21_VAE_ENCODER, 126_892_531),
        (vae.LIGHTVAE_DECODER, vae.LIGHTVAE_ENCODER, 8_035_003),
        (vae.WAN22_VAE_DECODER, vae.WAN22_VAE_ENCODER, 704_688_668),
    ],
)
def test_published_sizes(decoder, encoder, count):
    shapes = [config.setup().param_shapes() for config in (decoder, encoder)]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
    ("config", "num_contexts"),
    [(vae.WAN21_VAE_DECODER, 32), (vae.WAN22_VAE_DECODER, 32)],
)
def test_published_decoders_run_through(config, num_contexts):
    decoder = config.setup()
    latent = jax.ShapeDtypeStruct((1, 3, 60, 104, config.latent_channels), jnp.float32)
    params, cache = decoder.param_shapes(), vae.WanVaeCache()
    for frames in (9, 12):
        cache, video = jax.eval_shape(decoder.decode, params, cache, latent)
        size = (60 * config.spatial_ratio, 104 * config.spatial_ratio)
        assert video.shape == (1, frames, *size, 3)
        assert len(jax.tree.leaves(cache)) == num_contexts


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temporal": (True,)}, r"len\(widths\) - 1 = 3; got \(True,\)"),
        ({"latent_mean": (0.0,)}, "one entry per channel each, got 1 and 16"),
        ({"num_blocks": 0}, "num_blocks must be >= 1, got 0"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ValueError, match=message):
        WanVaeConfig(**fields)
    with pytest.raises(ValueError, match=r"context must be one of .* got 'both'"):
        vae.WanVaeDecoderConfig(context="both")


@pytest.mark.parametrize(
    ("frames", "height", "first", "message"),
    [
        (4, 8, True, r"needs 1 \+ 4 k frames, .*got 4 in a first chunk"),
        (5, 8, False, "a later one 4 k; got 5 in a later chunk"),
        (1, 9, True, r"multiples of 4, got \(9, 8\)"),
    ],
)
def test_encoder_refuses_part_of_a_latent(frames, height, first, message):
    encoder = _encoder()
    cache = vae.WanVaeCache(state=None if first else {})
    with pytest.raises(ValueError, match=message):
        encoder.encode({}, cache, jnp.zeros((1, frames, height, 8, 3)))


@pytest.mark.parametrize("channels", [1, 48])
def test_decoder_refuses_latents_of_another_vae(channels):
    decoder, latent = vae.WAN21_VAE_DECODER.setup(), jnp.zeros((1, 1, 2, 2, channels))
    with pytest.raises(ValueError, match=f"have 16 channels .* got {channels};"):
        jax.eval_shape(decoder.decode, {}, vae.WanVaeCache(), latent)


def test_equal_configs_share_compiled_code():
    one, other = _decoder(), _decoder()
    assert one == other
    assert hash(one) == hash(other)
    assert one != _decoder(context="exact")
    assert dataclasses.replace(one.config, context="exact").setup() != one
