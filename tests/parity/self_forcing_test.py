"""The Self-Forcing runner against the reference, from files in the published layouts.

One prompt, one wrapped training checkpoint, one VAE file and one text encoder folder;
our runner converts, encodes, streams and writes, the reference's parts do the same.
"""

import dataclasses
import re

import jax
import numpy as np
import pytest

from fdjax.config import derive_config
from fdjax.run import media
from fdjax_models.methods.self_forcing.config import RUNNER_CONFIGS
from tests.networks.wan_dit import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
published_files = imports.lazy("tests.parity.published_files")
reference_model = imports.lazy("flashdreams.infra.diffusion.model")
reference_fm = imports.lazy("flashdreams.infra.diffusion.scheduler.fm")
reference_network = imports.lazy("flashdreams.recipes.wan.transformer.impl.network")
reference_wan21 = imports.lazy("flashdreams.recipes.wan.transformer.wan21")

pytestmark = imports.requires("torch", "transformers", "flashdreams")

BASE = "self-forcing-wan2.1-t2v-1.3b"
PROMPT = " the  red &amp;amp; sea"
HEIGHT, WIDTH, NUM_CHUNKS = 32, 48, 6
NETWORK = {
    name: getattr(tiny.CONFIG, name)
    for name in ("dim", "ffn_dim", "num_heads", "num_layers")
} | {"text_dim": 32, "text_len": 512}


def _write_transformer(path):
    """A training checkpoint: moving average beside other weights, wrapped twice."""
    network = dataclasses.replace(tiny.CONFIG, **NETWORK)
    tensors = tiny.checkpoint(network, prefix="self-forcing")
    average = {
        f"model._fsdp_wrapped_module.{key}": torch.from_numpy(value)
        for key, value in tensors.items()
    }
    other = {key: torch.zeros_like(value) for key, value in average.items()}
    torch.save({"generator": other, "generator_ema": average, "step": 3}, path)


def _unwrap(state):
    state = state["generator_ema"]
    prefix = re.compile(r"^(model\.|net\.)?(_fsdp_wrapped_module\.)?")
    return {prefix.sub("", key): value for key, value in state.items()}


def _runner_config(slug, folder):
    published = RUNNER_CONFIGS[slug]
    window = published.pipeline.diffusion_model.transformer.window_size_t
    transformer = {
        "network": NETWORK | {"dtype": "float32", "param_dtype": "float32"},
        "window_size_t": min(window, 9),  # so that it slides within the test
    }
    decoder = published_files.VAE | {"checkpoint_path": str(folder / "vae.pth")}
    text_encoder = published_files.UMT5 | {
        "checkpoint_path": str(folder / "text_encoder"),
        "tokenizer_path": str(folder / "tokenizer"),
    }
    return derive_config(
        published,
        pipeline={
            "diffusion_model": {"transformer": transformer},
            "decoder": decoder,
            "conditioner": {"text_encoder": text_encoder},
        },
        checkpoint_path=str(folder / "self_forcing_dmd.pt"),
        output_dir=str(folder / "outputs"),
        prompt=PROMPT,
        total_blocks=NUM_CHUNKS,
        pixel_height=HEIGHT,
        pixel_width=WIDTH,
    )


def _noise(config, shape):
    """The draws of the runner: chunk n's key is `fold_in(key, n)`, first half."""
    key = jax.random.key(config.pipeline.diffusion_model.seed)
    for chunk in range(NUM_CHUNKS):
        noise_key, _ = jax.random.split(jax.random.fold_in(key, chunk))
        yield np.asarray(jax.random.normal(noise_key, (4, 1, *shape)))[:, 0]


@imports.inference_mode
def _reference_video(config, folder, text_encoder, vae):
    ours = config.pipeline.diffusion_model
    sizes = {"in_dim": 16, "out_dim": 16, "freq_dim": 256}
    model = reference_model.DiffusionModelConfig(
        transformer=reference_wan21.Wan21TransformerConfig(
            network=reference_network.WanDiTNetworkConfig(
                **NETWORK,
                **sizes,
                cross_attn_enable_img=False,
                apply_rope_before_kvcache=ours.transformer.apply_rope_before_kvcache,
            ),
            checkpoint_path=str(folder / "self_forcing_dmd.pt"),
            state_dict_transform=_unwrap,
            batch_shape=(),
            len_t=ours.transformer.len_t,
            window_size_t=ours.transformer.window_size_t,
            sink_size_t=ours.transformer.sink_size_t,
            **flashdreams_cpu.EAGER,
        ),
        scheduler=reference_fm.FlowMatchSchedulerConfig(shift=8.0),
    ).setup()
    cache = model.transformer.initialize_autoregressive_cache(
        height=HEIGHT // 8, width=WIDTH // 8, text_embeddings=text_encoder([PROMPT])
    )
    vae_cache, chunks = vae.prepare_cache(), []
    tokens = 3 * (HEIGHT // 16) * (WIDTH // 16)
    for index, noise in enumerate(_noise(config, (tokens, 64))):
        with flashdreams_cpu.draws(list(noise)):
            latent, state = model.generate(index, cache, None)
            model.finalize(state)
        video = vae.decode(latent.movedim(0, 1)[None].contiguous(), vae_cache)
        chunks.append(video[0].movedim(0, -1).numpy())
    return np.concatenate(chunks)


@pytest.mark.parametrize("slug", [BASE, f"{BASE}-sink5-window7-rerope"])
def test_runner(slug, tmp_path, monkeypatch, chunks):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    text_encoder = published_files.write_text_encoder(tmp_path)
    vae = published_files.write_vae(tmp_path / "vae.pth")
    _write_transformer(tmp_path / "self_forcing_dmd.pt")
    config = _runner_config(slug, tmp_path)

    result = config.setup().run()
    ours = np.concatenate(chunks)
    assert result.num_frames == len(ours) == 9 + 12 * (NUM_CHUNKS - 1)

    theirs = _reference_video(config, tmp_path, text_encoder, vae)
    assert ours.shape == theirs.shape == (result.num_frames, HEIGHT, WIDTH, 3)
    assert np.mean(np.abs(theirs) == 1) < 0.5, "most of the video is clamped"
    assert_close(ours, theirs)
    # The film shows it, up to the loss of H.264.
    film = media.read_video(result.output).astype(np.float32) / 127.5 - 1
    assert np.corrcoef(film.ravel(), theirs.ravel())[0, 1] > 0.9
