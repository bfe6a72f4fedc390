"""The Cosmos-Predict2.5 runners against the reference's pipeline, from published files.

The chat through Cosmos-Reason1, guidance with the negative prompt, UniPC on Karras'
noise levels, and for image to video the first frame through the VAE's encoder.
"""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fdjax.config import derive_config
from fdjax_models.methods.cosmos.config import RUNNER_CONFIGS
from tests.networks.cosmos_dit import tiny
from tests.networks.cosmos_reason1 import tiny as tiny_reason1
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
published_files = imports.lazy("tests.parity.published_files")
reason1_files = imports.lazy("tests.parity.reason1_files")
reference_model = imports.lazy("flashdreams.infra.diffusion.model")
reference_unipc = imports.lazy("flashdreams.infra.diffusion.scheduler.fm_unipc")
reference_pipeline = imports.lazy("flashdreams.recipes.cosmos.pipeline")
reference_cosmos = imports.lazy("flashdreams.recipes.cosmos.transformer")
reference_network = imports.lazy("flashdreams.recipes.cosmos.transformer.impl.network")
reference_vae = imports.lazy("flashdreams.recipes.wan.autoencoder.vae")

pytestmark = imports.requires("torch", "transformers", "flashdreams")

T2V, I2V = "cosmos2-t2v-2b-720p", "cosmos2-i2v-2b-720p"
PROMPT = "an ocean and a bus"
HEIGHT, WIDTH, LEN_T, NUM_STEPS = 48, 32, 3, 4
TEXT_LEN = 640  # the negative prompt and its chat are 605
# As wide as the features of the tiny text encoder.
NETWORK = dataclasses.replace(
    tiny.CONFIG,
    num_layers=1,
    text_dim=tiny_reason1.CONFIG.num_layers * tiny_reason1.CONFIG.width,
    text_len=TEXT_LEN,
)
# Guidance of 8 amplifies what the two sides round differently.
TOLERANCE = 3e-5


def _runner_config(slug, folder):
    vae = published_files.VAE | {"checkpoint_path": str(folder / "vae.pth")}
    text_encoder = {
        "max_length": TEXT_LEN,
        "checkpoint_path": str(folder / "reason1"),
        "tokenizer_path": str(folder / "reason1" / "tokenizer.json"),
    }
    conditioner = {
        "text_encoder": dataclasses.replace(tiny_reason1.CONFIG, **text_encoder),
    }
    pipeline = {
        "diffusion_model": {
            "transformer": {
                "network": NETWORK,
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
        pipeline["encoder"] = {"len_t": LEN_T}
        conditioner["image_encoder"] = {"encoder": vae}
        changes["image"] = str(folder / "frame.png")
    return derive_config(
        RUNNER_CONFIGS[slug],
        pipeline=pipeline,
        checkpoint_path=str(folder / "cosmos.safetensors"),
        output_dir=str(folder / "outputs"),
        prompt=PROMPT,
        pixel_height=HEIGHT,
        pixel_width=WIDTH,
        **changes,
    )


def _noise(config):
    """The one draw of the runner, from the seed of the config."""
    key = jax.random.fold_in(jax.random.key(config.pipeline.diffusion_model.seed), 0)
    shape = (LEN_T * (HEIGHT // 16) * (WIDTH // 16), 64)
    return np.asarray(jax.random.normal(jax.random.split(key)[0], (1, 1, *shape)))[0]


def _reference(config, folder):
    """The package's pipeline on the same files."""
    ours = config.pipeline.diffusion_model.transformer
    vae = {
        "checkpoint_path": str(folder / "vae.pth"),
        "base_dim": published_files.VAE["widths"][0],
        "dtype": torch.float32,
        "use_cuda_graph": False,
    }
    with_image = ours.conditional_frame_timestep is not None
    config = reference_pipeline.CosmosInferencePipelineConfig(
        name=config.runner_name,
        diffusion_model=reference_model.DiffusionModelConfig(
            transformer=reference_cosmos.CosmosTransformerConfig(
                network=reference_network.CosmosDiTNetworkConfig(
                    model_channels=NETWORK.dim,
                    num_blocks=NETWORK.num_layers,
                    num_heads=NETWORK.num_heads,
                    mlp_ratio=NETWORK.ffn_dim / NETWORK.dim,
                    adaln_lora_dim=NETWORK.lora_dim,
                    crossattn_proj_in_channels=NETWORK.text_dim,
                    crossattn_emb_channels=NETWORK.context_dim,
                ),
                checkpoint_path=str(folder / "cosmos.safetensors"),
                state_dict_transform=reference_network.state_dict_transform,
                batch_shape=(1,),
                len_t=LEN_T,
                window_size_t=LEN_T,
                guidance_scale=ours.guidance_scale,
                conditional_frame_timestep=ours.conditional_frame_timestep,
                **flashdreams_cpu.EAGER,
            ),
            scheduler=reference_unipc.FlowMatchUniPCSchedulerConfig(
                num_inference_steps=NUM_STEPS, shift=5.0, use_kerras_sigma=True
            ),
        ),
        text_encoder=reason1_files.encoder_config(folder / "reason1", TEXT_LEN),
        image_encoder=(
            reference_vae.WanVAEEncoderConfig(**vae) if with_image else None
        ),
        decoder=reference_vae.WanVAEDecoderConfig(**vae),
    )
    with reason1_files.readable():
        return config.setup()


@imports.inference_mode
def _reference_video(config, folder, image):
    """[T, H, W, 3]."""
    pipeline = _reference(config, folder)
    cache = pipeline.initialize_cache(
        [PROMPT], image, height=HEIGHT // 8, width=WIDTH // 8
    )
    with flashdreams_cpu.draws([_noise(config)]):
        video = pipeline.generate(0, cache)
    return video[0].movedim(1, -1).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every file of both methods; in one place, so that the codec is compiled once."""
    path = tmp_path_factory.mktemp("cosmos")
    (path / "reason1").mkdir()
    reason1_files.write(path / "reason1")
    published_files.write_vae(path / "vae.pth")
    tensors = tiny.checkpoint(NETWORK)
    named = {f"net.{key}": value for key, value in tensors.items()}
    save_file(named, path / "cosmos.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(path / "frame.png")
    return path


@pytest.mark.parametrize("slug", [T2V, I2V])
def test_runner(slug, folder, monkeypatch, chunks):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(folder / "cache"))
    image = None
    if slug == I2V:
        pixels = np.asarray(Image.open(folder / "frame.png"))
        # [H, W, 3] -> [B, 1, 3, H, W]
        image = torch.from_numpy(pixels / np.float32(127.5) - 1)
        image = image.movedim(-1, 0)[None, None]
    config = _runner_config(slug, folder)

    config.setup().run()
    [ours] = chunks
    theirs = _reference_video(config, folder, image)
    assert ours.shape == theirs.shape == (9, HEIGHT, WIDTH, 3)
    assert np.mean(np.abs(theirs) == 1) < 0.5, "most of the video is clamped"
    assert_close(ours, theirs, TOLERANCE)
