"""The Wan 2.2 TI2V-5B runner against the reference, from files in published layouts.

With a first frame, which the VAE of the method encodes, and from text alone. The
network's file is diffusers', as published; the reference is given the same weights
under the official names.
"""

from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fdjax.config import derive_config
from fdjax_convert import rules
from fdjax_convert.tables import wan_dit, wan_vae
from fdjax_models.methods.wan22.config import RUNNER_CONFIGS
from tests import golden
from tests.networks.wan_dit import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
published_files = imports.lazy("tests.parity.published_files")
reference_model = imports.lazy("flashdreams.infra.diffusion.model")
reference_unipc = imports.lazy("flashdreams.infra.diffusion.scheduler.fm_unipc")
reference_i2v = imports.lazy("flashdreams.recipes.wan.autoencoder.i2v")
reference_vae = imports.lazy("flashdreams.recipes.wan.autoencoder.vae")
reference_constants = imports.lazy("flashdreams.recipes.wan.transformer.constants")
reference_network = imports.lazy("flashdreams.recipes.wan.transformer.impl.network")
reference_wan21 = imports.lazy("flashdreams.recipes.wan.transformer.wan21")

pytestmark = imports.requires("torch", "diffusers", "transformers", "flashdreams")

PROMPT = "the red sea"
HEIGHT, WIDTH, LEN_T, NUM_STEPS = 64, 32, 2, 4
VAE = {"widths": (8, 16, 32, 32), "dtype": "float32"}
SIZES = {
    name: getattr(tiny.CONFIG, name)
    for name in ("dim", "ffn_dim", "num_heads", "num_layers")
} | {"text_dim": 32, "text_len": 512}


def _runner_config(folder, image):
    vae = VAE | {"checkpoint_path": str(folder / "vae.safetensors")}
    text_encoder = published_files.UMT5 | {
        "checkpoint_path": str(folder / "text_encoder"),
        "tokenizer_path": str(folder / "tokenizer"),
    }
    transformer = {
        "network": SIZES | {"dtype": "float32", "param_dtype": "float32"},
        "len_t": LEN_T,
        "window_size_t": LEN_T,
    }
    return derive_config(
        RUNNER_CONFIGS["wan22-ti2v-5b"],
        pipeline={
            "diffusion_model": {
                "transformer": transformer,
                "scheduler": {"num_inference_steps": NUM_STEPS},
            },
            "encoder": {"encoder": vae, "len_t": LEN_T},
            "decoder": vae,
            "conditioner": {"text_encoder": text_encoder},
        },
        checkpoint_path=str(folder / "wan.safetensors"),
        output_dir=str(folder / "outputs"),
        prompt=PROMPT,
        pixel_height=HEIGHT,
        pixel_width=WIDTH,
        image=image,
    )


def _write_transformer(config, folder):
    """Ours in diffusers' layout, the reference's in the official one."""
    network = config.pipeline.diffusion_model.transformer.network
    official = tiny.checkpoint(network, prefix="ti2v")
    save_file(official, folder / "official.safetensors")
    params = tiny.params(network, official)
    save_file(
        {
            k: np.asarray(v)
            for k, v in rules.to_torch(params, wan_dit.DIFFUSERS).items()
        },
        folder / "wan.safetensors",
    )


def _write_vae(config, path):
    """The VAE of both sides, in diffusers' layout; returns it by name."""
    state = {}
    for part, table in (
        (config.pipeline.encoder.encoder, wan_vae.DIFFUSERS_22_ENCODER),
        (config.pipeline.decoder, wan_vae.DIFFUSERS_22_DECODER),
    ):
        for key, leaf in rules.export(part.setup().param_shapes(), table).items():
            state[key] = golden.fill_weight(key, leaf.shape)
    # The video stays inside [-1, 1], where it is not clamped.
    state["decoder.conv_out.weight"] *= np.float32(0.3)
    save_file(state, path)
    return state


def _reference_vae(state):
    """Encoder and decoder."""
    tensors = {
        k: torch.from_numpy(v) for k, v in published_files.rows_first(state).items()
    }
    common = {"base_dim": 8, "dtype": torch.float32, "use_cuda_graph": False}
    with mock.patch.object(reference_vae, "load_checkpoint", return_value=tensors):
        return (
            reference_vae.Wan22TI2V5BVAEEncoderConfig(**common).setup(),
            reference_vae.Wan22TI2V5BVAEDecoderConfig(
                **common, decoder_base_dim=8
            ).setup(),
        )


def _reference_model(config, folder, with_image):
    ours = config.pipeline.diffusion_model
    return reference_model.DiffusionModelConfig(
        transformer=reference_wan21.Wan21TransformerConfig(
            network=reference_network.WanDiTNetworkConfig(
                **SIZES, in_dim=48, out_dim=48, freq_dim=256
            ),
            checkpoint_path=str(folder / "official.safetensors"),
            batch_shape=(),
            len_t=LEN_T,
            window_size_t=LEN_T,
            guidance_scale=ours.transformer.guidance_scale,
            stamp_image_latent=with_image,
            ti2v_first_frame_per_token_timestep=with_image,
            **flashdreams_cpu.EAGER,
        ),
        scheduler=reference_unipc.FlowMatchUniPCSchedulerConfig(
            num_inference_steps=NUM_STEPS, shift=ours.scheduler.shift
        ),
    ).setup()


def _noise(config):
    """The one draw of the runner, from the seed of the config."""
    key = jax.random.fold_in(jax.random.key(config.pipeline.diffusion_model.seed), 0)
    shape = (LEN_T * (HEIGHT // 32) * (WIDTH // 32), 4 * 48)
    return np.asarray(jax.random.normal(jax.random.split(key)[0], (1, 1, *shape)))[0, 0]


@imports.inference_mode
def _reference_video(config, folder, text_encoder, state, image):
    encoder, decoder = _reference_vae(state)
    model = _reference_model(config, folder, image is not None)
    cache = model.transformer.initialize_autoregressive_cache(
        height=HEIGHT // 16,
        width=WIDTH // 16,
        text_embeddings=text_encoder([PROMPT]),
        negative_text_embeddings=text_encoder([reference_constants.NEGATIVE_PROMPT]),
    )
    control = None
    if image is not None:
        frames = torch.zeros(1 + 4 * (LEN_T - 1), 3, HEIGHT, WIDTH)
        frames[0] = image
        latent = encoder(frames)
        mask = torch.zeros_like(latent)
        mask[0] = 1
        control = reference_i2v.I2VCtrl(latent=latent, mask=mask)
    with flashdreams_cpu.draws([_noise(config)]):
        latent, _ = model.generate(0, cache, control)
    return decoder(latent).movedim(1, -1).numpy()


@pytest.mark.parametrize("with_image", [True, False])
def test_runner(with_image, tmp_path, monkeypatch, chunks):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    text_encoder, path, image = published_files.write_text_encoder(tmp_path), "", None
    if with_image:
        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        path = str(tmp_path / "frame.png")
        Image.fromarray(pixels).save(path)
        image = torch.from_numpy(pixels / np.float32(127.5) - 1).movedim(-1, 0)
    config = _runner_config(tmp_path, path)
    _write_transformer(config, tmp_path)
    state = _write_vae(config, tmp_path / "vae.safetensors")

    config.setup().run()
    [ours] = chunks
    theirs = _reference_video(config, tmp_path, text_encoder, state, image)
    assert ours.shape == theirs.shape == (5, HEIGHT, WIDTH, 3)
    assert np.mean(np.abs(theirs) == 1) < 0.5, "most of the video is clamped"
    assert_close(ours, theirs)
