"""Pieces of the training run: what is kept, the schedule, the autoencoder's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax_models.methods.maze_world.training import (
    autoencoder,
    data,
    journal,
    pool,
    state,
)
from fdjax_models.networks.taehv.decoder import TaehvDecoderConfig
from fdjax_models.networks.taehv.encoder import TaehvEncoderConfig

SIZES = {"latent_channels": 4, "patch": 2, "blocks_per_stage": 1, "dtype": "float32"}


@pytest.fixture(scope="module")
def codec():
    encoder = TaehvEncoderConfig(
        widths=(8, 8, 8), spatial_scales=(2, 2), temporal_scales=(2, 2), **SIZES
    ).setup()
    decoder = TaehvDecoderConfig(
        widths=(8, 8, 8), spatial_scales=(2, 2), temporal_scales=(2, 2), **SIZES
    ).setup()
    keys = jax.random.split(jax.random.key(0))
    params = {
        "encoder": encoder.init_params(keys[0]),
        "decoder": decoder.init_params(keys[1]),
    }
    return encoder, decoder, params


def test_state_is_split_saved_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "MAX_BYTES", 90)
    tree = {"a": {"b": np.arange(20.0, dtype=np.float32)}, "c": np.ones(3, np.float32)}
    state.save(tmp_path, {"params": tree}, {"spent": {"denoiser": 4.5}})
    assert len(list(tmp_path.glob("params-*.safetensors"))) == 2
    state.save(tmp_path, {"params": {"c": tree["c"]}}, {"spent": {}})
    assert len(list(tmp_path.glob("params-*.safetensors"))) == 1
    state.save(tmp_path, {"params": tree}, {"spent": {"denoiser": 4.5}})
    loaded = state.load(tmp_path, "params")
    jax.tree.map(np.testing.assert_array_equal, loaded, tree)
    assert state.load_progress(tmp_path)["spent"]["denoiser"] == 4.5


def test_nothing_to_resume_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"params-\*"):
        state.load(tmp_path, "params")


def test_the_learning_rate_warms_up_stays_and_falls():
    rates = [journal.learning_rate(1.0, share, 10_000) for share in (0, 0.5, 0.8, 1)]
    assert rates[0] == rates[1] == 1.0
    assert rates[1] > rates[2] > rates[3] > 0
    assert journal.learning_rate(1.0, 0.3, 0) < 0.01


def test_folding_whitens_the_latents(codec):
    encoder, _, params = codec
    video = jax.random.uniform(jax.random.key(1), (3, 5, 16, 24, 3), minval=-1.0)
    latent = autoencoder.encode_raw(encoder, params["encoder"], video)
    axes = (0, 1, 2, 3)
    folded = autoencoder.fold_statistics(
        params["encoder"], latent.mean(axes), latent.std(axes)
    )
    white = autoencoder.encode_raw(encoder, folded, video)
    np.testing.assert_allclose(white.mean(axes), 0, atol=1e-4)
    np.testing.assert_allclose(white.std(axes), 1, atol=1e-3)


def test_whole_clips_equal_the_stream(codec):
    """Training encodes and decodes as the components do chunk by chunk."""
    encoder, decoder, params = codec
    video = jax.random.uniform(jax.random.key(2), (1, 5, 16, 24, 3), minval=-1.0)
    latent = autoencoder.encode_raw(encoder, params["encoder"], video)
    out = autoencoder.decode_raw(decoder, params["decoder"], latent)
    cache = decoder.initialize_cache(params["decoder"], 1, 2, 3)
    frames = []
    for index in range(2):
        cache, part = decoder.decode_unclamped(
            params["decoder"], cache, latent[:, index : index + 1]
        )
        frames.append(part)
    np.testing.assert_allclose(jnp.concatenate(frames, 1), out, atol=1e-5)


def test_the_loss_is_zero_only_for_the_target():
    video = jax.random.normal(jax.random.key(3), (1, 2, 16, 24, 3))
    assert float(autoencoder.reconstruction_loss(video, video)) == 0
    blurred = (video + jnp.roll(video, 1, 3)) / 2
    assert float(autoencoder.reconstruction_loss(blurred, video)) > 0.1


def test_clips_start_with_a_frame_without_control():
    clip = jax.jit(data.make_clip, static_argnums=1)(jax.random.key(0), 2)
    assert clip.video.shape == (5, 96, 160, 3)
    assert clip.controls.shape == (2, 4, 2)
    np.testing.assert_array_equal(clip.controls[0], 0)


def test_a_pool_replaces_its_oldest_clips(codec):
    encoder, _, params = codec
    clips_pool = pool.ClipPool.create(encoder, params["encoder"], 2, 2)
    filled = []
    for seed in range(3):
        clips_pool = clips_pool.refill(jax.random.key(seed), 1)
        filled.append(np.array(clips_pool.clips.video, np.float32))
    assert clips_pool.next == 1
    assert filled[0][0].any()
    assert not filled[0][1].any()
    np.testing.assert_array_equal(filled[1][0], filled[0][0])
    np.testing.assert_array_equal(filled[2][1], filled[1][1])
    assert (filled[2][0] != filled[1][0]).any()
    assert clips_pool.clips.video.shape == (2, 2, 12, 20, 4)
    assert np.isfinite(filled[2]).all()
