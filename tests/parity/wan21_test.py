"""The Wan 2.1 runners against the reference, from files in the published layouts.

Guidance with the negative prompt, UniPC, and for image to video the first frame
through CLIP and the VAE's encoder.
"""

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fdjax.config import derive_config
from fdjax_models.methods.wan21.config import RUNNER_CONFIGS
from tests.networks.wan_dit import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
published_files = imports.lazy("tests.parity.published_files")
reference_model = imports.lazy("flashdreams.infra.diffusion.model")
reference_unipc = imports.lazy("flashdreams.infra.diffusion.scheduler.fm_unipc")
reference_i2v = imports.lazy("flashdreams.recipes.wan.autoencoder.i2v")
reference_constants = imports.lazy("flashdreams.recipes.wan.transformer.constants")
reference_network = imports.lazy("flashdreams.recipes.wan.transformer.impl.network")
reference_wan21 = imports.lazy("flashdreams.recipes.wan.transformer.wan21")

pytestmark = imports.requires("torch", "transformers", "flashdreams")

T2V, I2V = "wan21-t2v-1.3b-480p", "wan21-i2v-14b-480p"
PROMPT = "the red sea"
HEIGHT, WIDTH, LEN_T, NUM_STEPS = 48, 32, 3, 4
SIZES = {
    name: getattr(tiny.CONFIG, name)
    for name in ("dim", "ffn_dim", "num_heads", "num_layers")
} | {"text_dim": 32, "text_len": 512}


def _runner_config(slug, folder):
    vae = published_files.VAE | {"checkpoint_path": str(folder / "vae.pth")}
    network = SIZES | {"dtype": "float32", "param_dtype": "float32"}
    conditioner = {
        "text_encoder": published_files.UMT5
        | {
            "checkpoint_path": str(folder / "text_encoder"),
            "tokenizer_path": str(folder / "tokenizer"),
        }
    }
    pipeline = {
        "diffusion_model": {
            "transformer": {
                "network": network,
                "len_t": LEN_T,
                "window_size_t": LEN_T,
            },
            "scheduler": {"num_inference_steps": NUM_STEPS},
        },
        "decoder": vae,
        "conditioner": conditioner,
    }
    changes = {}
    if slug == I2V:
        pipeline["encoder"] = {"encoder": vae, "len_t": LEN_T}
        conditioner["image_encoder"] = published_files.CLIP | {
            "checkpoint_path": str(folder / "image_encoder")
        }
        changes["image"] = str(folder / "frame.png")
    return derive_config(
        RUNNER_CONFIGS[slug],
        pipeline=pipeline,
        checkpoint_path=str(folder / "wan.safetensors"),
        output_dir=str(folder / "outputs"),
        prompt=PROMPT,
        pixel_height=HEIGHT,
        pixel_width=WIDTH,
        **changes,
    )


def _write_transformer(config, path):
    network = config.pipeline.diffusion_model.transformer.network
    save_file(tiny.checkpoint(network, prefix=config.runner_name), path)


def _noise(config):
    """The one draw of the runner, from the seed of the config."""
    key = jax.random.fold_in(jax.random.key(config.pipeline.diffusion_model.seed), 0)
    shape = (LEN_T * (HEIGHT // 16) * (WIDTH // 16), 64)
    return np.asarray(jax.random.normal(jax.random.split(key)[0], (1, 1, *shape)))[0, 0]


def _reference_model(config, folder):
    ours = config.pipeline.diffusion_model
    image = bool(ours.transformer.network.image_dim)
    return reference_model.DiffusionModelConfig(
        transformer=reference_wan21.Wan21TransformerConfig(
            network=reference_network.WanDiTNetworkConfig(
                **SIZES,
                in_dim=36 if image else 16,
                out_dim=16,
                freq_dim=256,
                cross_attn_enable_img=image,
            ),
            checkpoint_path=str(folder / "wan.safetensors"),
            batch_shape=(),
            len_t=LEN_T,
            window_size_t=LEN_T,
            guidance_scale=ours.transformer.guidance_scale,
            concat_image_mask_to_latent=image,
            **flashdreams_cpu.EAGER,
        ),
        scheduler=reference_unipc.FlowMatchUniPCSchedulerConfig(
            num_inference_steps=NUM_STEPS, shift=ours.scheduler.shift
        ),
    ).setup()


def _image_control(image, vae):
    """The first frame and zeros through the VAE; the mask is one on its latent."""
    frames = torch.zeros(1, 3, 1 + 4 * (LEN_T - 1), HEIGHT, WIDTH)
    frames[:, :, 0] = image
    latent = vae.encode(frames, vae.prepare_cache())[0].movedim(0, 1)
    mask = torch.zeros_like(latent)
    mask[0] = 1
    return reference_i2v.I2VCtrl(latent=latent, mask=mask)


@imports.inference_mode
def _reference_video(config, folder, text_encoder, vae, image, image_encoder):
    model = _reference_model(config, folder)
    cache = model.transformer.initialize_autoregressive_cache(
        height=HEIGHT // 8,
        width=WIDTH // 8,
        text_embeddings=text_encoder([PROMPT]),
        negative_text_embeddings=text_encoder([reference_constants.NEGATIVE_PROMPT]),
        image_embeddings=None if image is None else image_encoder(image),
    )
    control = None if image is None else _image_control(image, vae)
    with flashdreams_cpu.draws([_noise(config)]):
        latent, _ = model.generate(0, cache, control)
    latent = latent.movedim(0, 1)[None].contiguous()
    return vae.decode(latent, vae.prepare_cache())[0].movedim(0, -1).numpy()


@pytest.mark.parametrize("slug", [T2V, I2V])
def test_runner(slug, tmp_path, monkeypatch, chunks):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    text_encoder = published_files.write_text_encoder(tmp_path)
    vae = published_files.write_vae(tmp_path / "vae.pth")
    image = image_encoder = None
    if slug == I2V:
        image_encoder = published_files.write_image_encoder(tmp_path)
        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "frame.png")
        image = torch.from_numpy(pixels / np.float32(127.5) - 1).movedim(-1, 0)
    config = _runner_config(slug, tmp_path)
    _write_transformer(config, tmp_path / "wan.safetensors")

    config.setup().run()
    [ours] = chunks
    theirs = _reference_video(config, tmp_path, text_encoder, vae, image, image_encoder)
    assert ours.shape == theirs.shape == (9, HEIGHT, WIDTH, 3)
    assert np.mean(np.abs(theirs) == 1) < 0.5, "most of the video is clamped"
    assert_close(ours, theirs)
