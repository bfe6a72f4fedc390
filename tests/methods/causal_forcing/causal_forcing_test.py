"""Causal-Forcing: its published values, its runner on tiny networks, its contracts."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import fdjax
from fdjax import testing
from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions
from fdjax.run import media
from fdjax_models.methods.causal_forcing.config import RUNNER_CONFIGS
from fdjax_models.methods.self_forcing.config import RUNNER_CONFIGS as SELF_FORCING
from tests.networks.wan_dit.tiny_methods import shrink

CHUNKWISE = "causal-forcing-wan2.1-t2v-1.3b-chunkwise"
FRAMEWISE = "causal-forcing-wan2.1-t2v-1.3b-framewise"
IMAGE = "causal-forcing-wan2.1-i2v-1.3b-framewise"
TWO_STEPS = f"{FRAMEWISE}-2step"
ONE_STEP = f"{FRAMEWISE}-1step"
FOUR = 1000, 937.5, 833.3333, 625


@pytest.mark.parametrize(
    ("slug", "len_t", "timesteps", "path"),
    [
        (CHUNKWISE, 3, FOUR, "chunkwise/causal_forcing.pt"),
        (FRAMEWISE, 1, FOUR, "framewise/causal_forcing.pt"),
        (IMAGE, 1, FOUR, "framewise/causal_forcing.pt"),
        (TWO_STEPS, 1, (1000, 833.3333), "causal-forcing++/framewise-2step.pt"),
        (ONE_STEP, 1, (1000,), "causal-forcing++/framewise-1step.pt"),
    ],
)
def test_published_values(slug, len_t, timesteps, path):
    """Warped timesteps of the reference's own tests; steps of the authors' configs."""
    config = RUNNER_CONFIGS[slug]
    model = config.setup().pipeline.diffusion_model
    usual, first = (each.scheduler.steps for each in (model, model.first))
    np.testing.assert_allclose(usual.timestep, timesteps, rtol=1e-6)
    np.testing.assert_allclose(first.timestep, FOUR, rtol=1e-6)
    transformer = config.pipeline.diffusion_model.transformer
    assert (transformer.len_t, transformer.window_size_t) == (len_t, 21)
    assert transformer.sink_size_t == 0
    assert transformer.checkpoint_path == f"hf://zhuhz22/Causal-Forcing/{path}"
    assert (config.total_blocks, config.pixel_height, config.fps) == (21, 480, 16)


@pytest.mark.parametrize(
    ("slug", "frames"), [(CHUNKWISE, 21), (FRAMEWISE, 5), (ONE_STEP, 5)]
)
def test_text_to_video(slug, frames, tmp_path):
    config = shrink(RUNNER_CONFIGS[slug], tmp_path, total_blocks=2, prompt="a heron")
    result = dataclasses.replace(config, progress=False).setup().run()
    assert result.num_frames == frames == len(media.read_video(result.output))


def test_the_first_chunk_takes_its_own_steps(tmp_path, chunks):
    """Weights are the same: the four-step method's first frame, then another one."""
    videos = []
    for slug, changes in (
        (TWO_STEPS, {}),
        (FRAMEWISE, {}),
        (TWO_STEPS, {"diffusion_model": {"first_scheduler": None}}),
    ):
        chunks.clear()
        config = shrink(RUNNER_CONFIGS[slug], tmp_path, total_blocks=2, prompt="a")
        derive_config(config, progress=False, pipeline=changes).setup().run()
        videos.append(np.concatenate(chunks))
    two, four, plain = videos
    np.testing.assert_array_equal(two[0], four[0])
    assert np.abs(two[1:] - four[1:]).max() > 0.01
    assert np.abs(two[0] - plain[0]).max() > 0.01


def test_a_session_is_resumed_without_a_second_first_chunk(tmp_path, chunks):
    config = shrink(RUNNER_CONFIGS[ONE_STEP], tmp_path, total_blocks=3, prompt="a")
    config = dataclasses.replace(config, progress=False)
    config.setup().run()
    whole = np.concatenate(chunks)
    chunks.clear()
    saved = dataclasses.replace(config, total_blocks=1, save_session=True)
    [session] = [p for p in saved.setup().run().files if p.suffix == ".session"]
    dataclasses.replace(config, total_blocks=2, resume=session).setup().run()
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_pipeline_rollout_and_live_session_take_them_too(tmp_path):
    model = {"transformer": {"network": {"num_layers": 1}}}
    small = shrink(RUNNER_CONFIGS[TWO_STEPS], tmp_path).pipeline
    config = derive_config(small, decoder=None, diffusion_model=model)
    config = derive_config(config, conditioner=None, spatial_compression_ratio=8)
    start = {
        "conditions": Conditions(text=jax.random.normal(jax.random.key(1), (1, 8, 24))),
        "pixel_height": 32,
        "pixel_width": 48,
        "key": jax.random.key(3),
    }

    def chunks_of(pipeline, later=None):
        cache, found = pipeline.initialize_cache(params, **start), []
        assert cache.is_first == (
            pipeline.config.diffusion_model.first_scheduler is not None
        )
        for _ in range(3):
            noise = fdjax.chunk_noise(pipeline, cache)
            cache, latent = pipeline.generate(params, cache, noise=noise)
            cache = (later or pipeline).finalize(params, cache, noise=noise)
            found.append(np.asarray(latent))
            pipeline = later or pipeline
        return found

    def without_first(scheduler):
        changes = {"first_scheduler": None, "scheduler": scheduler}
        return derive_config(config, diffusion_model=changes).setup()

    pipeline = config.setup()
    params = pipeline.init_params(jax.random.key(0))
    model = config.diffusion_model
    wanted = chunks_of(
        without_first(model.first_scheduler), without_first(model.scheduler)
    )
    found = chunks_of(pipeline)
    live = fdjax.Session(pipeline, params, **start)
    ticked = [np.asarray(live.tick()) for _ in range(3)]
    live.undo(3)
    again = [np.asarray(latent) for latent in live.redo(3)]
    _, scanned = pipeline.rollout(
        params, pipeline.initialize_cache(params, **start), num_chunks=3
    )
    for chunk, latent in enumerate(wanted):
        np.testing.assert_array_equal(found[chunk], latent)
        np.testing.assert_array_equal(again[chunk], ticked[chunk])
        testing.assert_close(ticked[chunk], latent, 1e-5)
        testing.assert_close(scanned[:, chunk : chunk + 1], latent, 1e-5)


@pytest.mark.parametrize("timesteps", [(1200, 500), (500, 1000), ()])
def test_wrong_first_steps_are_named(timesteps):
    own = {
        "denoising_timesteps": timesteps,
        "num_inference_steps": len(timesteps),
    }
    model = {"diffusion_model": {"first_scheduler": own}}
    with pytest.raises(ValueError, match="FlowMatchSchedulerConfig") as raised:
        derive_config(RUNNER_CONFIGS[TWO_STEPS], pipeline=model)
    assert raised.value.__notes__[0].endswith(
        "pipeline.diffusion_model.first_scheduler"
    )


def test_image_to_video_begins_with_the_image(tmp_path, chunks):
    """With one latent frame a chunk, the first is the image's own latent."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = rng.integers(0, 256, (32, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    videos = []
    for seed, name in ((0, "a.png"), (1, "a.png"), (0, "b.png")):
        chunks.clear()
        config = shrink(RUNNER_CONFIGS[IMAGE], tmp_path / "out", total_blocks=3)
        changes = {"image": str(tmp_path / name), "prompt": "a heron", "seed": seed}
        dataclasses.replace(config, progress=False, **changes).setup().run()
        videos.append(np.concatenate(chunks))
    assert [len(video) for video in videos] == [9, 9, 9]
    testing.assert_close(videos[0][0], videos[1][0], 1e-6)  # whatever the noise
    assert np.abs(videos[0][1:] - videos[1][1:]).max() > 0.01
    assert np.abs(videos[0][0] - videos[2][0]).max() > 0.01


# Contracts: of the text-to-video methods, those of Self-Forcing hold. The VAE's encoder
# takes a minute without jit; tests/networks/camera/encoder_test.py has it.
LONG = ("check_without_jit", "check_sessions", "check_rollout")
CHECKS = [check for check in testing.CHECKS if check.__name__ not in LONG]


def _conditions(seed):
    keys = jax.random.split(jax.random.key(seed))
    text = jax.random.normal(keys[0], (2, 8, 24))
    image = jax.random.uniform(keys[1], (2, 16, 32, 3), minval=-1.0)
    return Conditions(text=text, image=image)


def _initialize(pipeline, params, key):
    return pipeline.initialize_cache(params, conditions=_conditions(1), key=key)


def _case():
    # The autoencoder's own tests cover it; the smaller decoder compiles faster.
    small = SELF_FORCING["self-forcing-wan2.1-t2v-1.3b-taehv"]
    config = derive_config(
        shrink(RUNNER_CONFIGS[IMAGE], "outputs").pipeline,
        conditioner=None,
        decoder=shrink(small, "outputs").pipeline.decoder,
        diffusion_model={
            "transformer": {"window_size_t": 3, "network": {"num_layers": 1}}
        },
    )
    return testing.PipelineCase(
        config=config,
        initialize=_initialize,
        num_chunks=5,
        new_conditions=lambda pipeline, params: _conditions(2),
    )


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(_case())
