"""The Causal-Forcing runners against the `flashdreams` package, from published layouts.

The package has one solver for all chunks; here the first chunk gets another one, as
thu-ml/Causal-Forcing, pipeline/causal_inference.py, has it.
"""

import jax
import numpy as np
import pytest
from PIL import Image

from fdjax.config import derive_config
from fdjax_models.methods.causal_forcing.config import RUNNER_CONFIGS
from tests.networks.wan_dit import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
published_files = imports.lazy("tests.parity.published_files")
reference_model = imports.lazy("flashdreams.infra.diffusion.model")
reference_fm = imports.lazy("flashdreams.infra.diffusion.scheduler.fm")
reference_i2v = imports.lazy("flashdreams.recipes.wan.autoencoder.i2v")
reference_network = imports.lazy("flashdreams.recipes.wan.transformer.impl.network")
reference_wan21 = imports.lazy("flashdreams.recipes.wan.transformer.wan21")

pytestmark = imports.requires("torch", "transformers", "flashdreams")

IMAGE = "causal-forcing-wan2.1-i2v-1.3b-framewise"
TWO_STEPS = "causal-forcing-wan2.1-t2v-1.3b-framewise-2step"
# Timesteps of the first chunk, and of the others.
STEPS = {
    IMAGE: ([1000, 750, 500, 250], [1000, 750, 500, 250]),
    TWO_STEPS: ([1000, 750, 500, 250], [1000, 500]),
}
PROMPT, HEIGHT, WIDTH, NUM_CHUNKS, WINDOW = "the red sea", 32, 48, 6, 4
SIZES = {
    name: getattr(tiny.CONFIG, name)
    for name in ("dim", "ffn_dim", "num_heads", "num_layers")
} | {"text_dim": 32, "text_len": 512}
PREFIX = "model._fsdp_wrapped_module."


def _runner_config(slug, folder):
    vae = published_files.VAE | {"checkpoint_path": str(folder / "vae.pth")}
    network = SIZES | {"dtype": "float32", "param_dtype": "float32"}
    text_encoder = published_files.UMT5 | {
        "checkpoint_path": str(folder / "text_encoder"),
        "tokenizer_path": str(folder / "tokenizer"),
    }
    pipeline = {
        "diffusion_model": {
            "transformer": {"network": network, "window_size_t": WINDOW}
        },
        "decoder": vae,
        "conditioner": {"text_encoder": text_encoder},
    }
    changes = {}
    if slug == IMAGE:
        pipeline["encoder"] = {"encoder": vae}
        changes["image"] = str(folder / "frame.png")
    return derive_config(
        RUNNER_CONFIGS[slug],
        pipeline=pipeline,
        checkpoint_path=str(folder / "causal_forcing.pt"),
        output_dir=str(folder / "outputs"),
        prompt=PROMPT,
        total_blocks=NUM_CHUNKS,
        pixel_height=HEIGHT,
        pixel_width=WIDTH,
        **changes,
    )


def _write_transformer(config, path):
    """A training checkpoint: the moving average beside other weights."""
    network = config.pipeline.diffusion_model.transformer.network
    tensors = tiny.checkpoint(network, prefix=config.runner_name)
    average = {PREFIX + key: torch.from_numpy(value) for key, value in tensors.items()}
    other = {key: torch.zeros_like(value) for key, value in average.items()}
    torch.save({"generator": other, "generator_ema": average}, path)


def _reference(slug, path, timesteps):
    return reference_model.DiffusionModelConfig(
        transformer=reference_wan21.Wan21TransformerConfig(
            network=reference_network.WanDiTNetworkConfig(
                **SIZES, in_dim=16, out_dim=16, freq_dim=256
            ),
            checkpoint_path=path,
            state_dict_transform=lambda state: {
                key.removeprefix(PREFIX): value
                for key, value in state["generator_ema"].items()
            },
            batch_shape=(),
            len_t=1,
            window_size_t=WINDOW,
            stamp_image_latent=slug == IMAGE,
            **flashdreams_cpu.EAGER,
        ),
        scheduler=reference_fm.FlowMatchSchedulerConfig(
            shift=5.0,
            num_inference_steps=len(timesteps),
            denoising_timesteps=timesteps,
        ),
    ).setup()


def _noise(chunk, num_draws):
    """The draws of the runner: chunk n's key is `fold_in(key, n)`, first half."""
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(42), chunk))
    shape = (num_draws, 1, (HEIGHT // 16) * (WIDTH // 16), 64)
    return list(np.asarray(jax.random.normal(key, shape))[:, 0])


@imports.inference_mode
def _reference_video(slug, folder, text_encoder, vae, pixels):
    path = str(folder / "causal_forcing.pt")
    first, usual = STEPS[slug]
    model = _reference(slug, path, usual)
    solvers = [_reference(slug, path, first).scheduler, model.scheduler]
    cache = model.transformer.initialize_autoregressive_cache(
        height=HEIGHT // 8, width=WIDTH // 8, text_embeddings=text_encoder([PROMPT])
    )
    encoder, decoder, videos = vae.prepare_cache(), vae.prepare_cache(), []
    latent = None
    for chunk in range(NUM_CHUNKS):
        control = None
        if pixels is not None:
            frames = torch.zeros(1, 3, 4 if chunk else 1, HEIGHT, WIDTH)
            if chunk == 0:
                frames[0, :, 0] = pixels
            if chunk < 5:  # the reference encodes five chunks, then repeats the last
                latent = vae.encode(frames, encoder)[0].movedim(0, 1)
            mask = torch.full_like(latent, chunk == 0)
            control = reference_i2v.I2VCtrl(latent=latent, mask=mask)
        model.scheduler = solvers[min(chunk, 1)]
        noise = _noise(chunk, len(usual if chunk else first))
        with flashdreams_cpu.draws(noise):
            clean, state = model.generate(chunk, cache, control)
            model.finalize(state)
        video = vae.decode(clean.movedim(0, 1)[None].contiguous(), decoder)
        videos.append(video[0].movedim(0, -1).numpy())
    return np.concatenate(videos)


@pytest.mark.parametrize("slug", STEPS)
def test_runner(slug, tmp_path, monkeypatch, chunks):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    text_encoder = published_files.write_text_encoder(tmp_path)
    vae = published_files.write_vae(tmp_path / "vae.pth")
    pixels = None
    if slug == IMAGE:
        shown = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(shown).save(tmp_path / "frame.png")
        pixels = torch.from_numpy(shown / np.float32(127.5) - 1).movedim(-1, 0)
    config = _runner_config(slug, tmp_path)
    _write_transformer(config, tmp_path / "causal_forcing.pt")

    config.setup().run()
    ours = np.concatenate(chunks)
    theirs = _reference_video(slug, tmp_path, text_encoder, vae, pixels)
    assert ours.shape == theirs.shape == (1 + 4 * (NUM_CHUNKS - 1), HEIGHT, WIDTH, 3)
    assert np.mean(np.abs(theirs) == 1) < 0.5, "most of the video is clamped"
    assert_close(ours, theirs)
