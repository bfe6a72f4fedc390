"""LingBot-World against the `flashdreams` package, noise injected.

The package has the Wan network; the camera branch is put on it here from its published
description (other modules of NVIDIA/flashdreams, which the package lacks): between
self-attention and cross-attention, x = (1 + scale) x + shift.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax_models.methods.lingbot_world.config import RUNNER_CONFIGS
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl
from tests import golden
from tests.networks.camera.poses_test import random_poses
from tests.networks.wan_dit import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
published_files = imports.lazy("tests.parity.published_files")
reference_model = imports.lazy("flashdreams.infra.diffusion.model")
reference_fm = imports.lazy("flashdreams.infra.diffusion.scheduler.fm")
reference_i2v = imports.lazy("flashdreams.recipes.wan.autoencoder.i2v")
reference_modules = imports.lazy("flashdreams.recipes.wan.transformer.impl.modules")
reference_network = imports.lazy("flashdreams.recipes.wan.transformer.impl.network")
reference_wan21 = imports.lazy("flashdreams.recipes.wan.transformer.wan21")

pytestmark = imports.requires("torch", "transformers", "flashdreams")

SHORT = "lingbot-world-fast-taehv-window15-sink3"
SMALL = "lingbot-world-v2-1.3b-causal-fast"
TIMESTEPS = {
    SHORT: {"denoising_timesteps": [1000, 821, 642, 321], "shift": 10.0},
    SMALL: {"denoising_timesteps": [1000, 750, 500, 250], "shift": 5.0},
}


class ChronologicalCache:
    """Keys and values of all chunks in order, of which sink and window are shown.

    The package's own cache holds whole chunks only. That of later versions drops as
    many tokens as overflow, and so shows these (core/attention/kvcache.py).
    """

    def __init__(self, window_size, sink_size):
        self.window_size, self.sink_size = window_size, sink_size
        self.index, self.chunks = None, []

    def before_update(self, chunk_idx):
        self.index = chunk_idx

    def update(self, k, v):
        # Once in every step of the solver, which overwrites the one before.
        self.chunks[self.index :] = [(k.clone(), v.clone())]

    def after_update(self, chunk_idx):
        assert len(self.chunks) == chunk_idx + 1

    def cached_k(self):
        return self._shown(0)

    def cached_v(self):
        return self._shown(1)

    def _shown(self, part):
        # [B, chunk, N, D] each -> [B, all, N, D]
        tokens = torch.cat([chunk[part] for chunk in self.chunks], dim=1)
        newest = max(self.sink_size, tokens.shape[1] - self.window_size)
        return torch.cat([tokens[:, : self.sink_size], tokens[:, newest:]], dim=1)


@functools.cache
def _classes():
    """The package's network and transformer with a camera branch."""
    nn, silu = torch.nn, torch.nn.functional.silu

    class Block(reference_modules.Block):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for name in ("injector_layer1", "injector_layer2", "scale_layer"):
                self.add_module(f"cam_{name}", nn.Linear(self.dim, self.dim))
            self.cam_shift_layer = nn.Linear(self.dim, self.dim)

        def forward(self, x, e, cache, rope_freqs, rays):
            # Shift, scale and gate of attention, then those of the MLP.
            parts = (self.modulation + e).unbind(-2)
            parts = [part.unsqueeze(-2) for part in parts]
            hidden = self.norm1(x) * (1 + parts[1]) + parts[0]
            hidden = self.self_attn(
                hidden, rope_freqs=rope_freqs, kv_cache=cache.self_attn
            )
            x = x + hidden * parts[2]
            inner = self.cam_injector_layer2(silu(self.cam_injector_layer1(rays)))
            inner = inner + rays
            x = (1 + self.cam_scale_layer(inner)) * x + self.cam_shift_layer(inner)
            x = x + self.cross_attn(self.norm3(x), kv_cache=cache.cross_attn)
            hidden = self.ffn(self.norm2(x) * (1 + parts[4]) + parts[3])
            return x + hidden * parts[5]

    class Network(reference_network.WanDiTNetwork):
        def __init__(self, config):
            super().__init__(config)
            self.patch_embedding_wancamctrl = nn.Linear(4 * 384, self.dim)
            self.c2ws_hidden_states_layer1 = nn.Linear(self.dim, self.dim)
            self.c2ws_hidden_states_layer2 = nn.Linear(self.dim, self.dim)

        def _build_block(self, layer_idx):
            return Block(
                dim=self.dim,
                ffn_dim=self.ffn_dim,
                num_heads=self.num_heads,
                cross_attn_norm=self.cross_attn_norm,
                eps=self.eps,
            )

        def forward(self, *args, rays, **kwargs):
            rays = self.patch_embedding_wancamctrl(rays)
            inner = silu(self.c2ws_hidden_states_layer1(rays))
            rays = rays + self.c2ws_hidden_states_layer2(inner)
            return super().forward(*args, block_extra_kwargs={"rays": rays}, **kwargs)

        def swap_text(self, cache, text):
            text = self.text_embedding(text)
            for block, kv in zip(self.blocks, cache.block_caches, strict=True):
                kv.cross_attn.text = block.cross_attn.compute_kv(text)

    class Transformer(reference_wan21.Wan21Transformer):
        def predict_flow(self, noisy_latent, timestep, cache, input):
            image, rays = input
            return super().predict_flow(
                noisy_latent, timestep, cache, image, {"rays": rays}
            )

        def patchify_and_maybe_split_cp(self, x):
            if isinstance(x, tuple):
                return tuple(super(Transformer, self).patchify_and_maybe_split_cp(y)
                             for y in x)  # fmt: skip
            if isinstance(x, list):  # is patchified already
                return tuple(x)
            return super().patchify_and_maybe_split_cp(x)

    return Network, Transformer


def _of_any_sizes(transformer, window_size_t):
    """The window that the package's transformer refuses, by the cache above."""
    transformer.config.window_size_t = window_size_t

    def initialize_cache(batch_size, chunk_size, window_size, sink_size, **_):
        return ChronologicalCache(window_size, sink_size)

    for block in transformer.network.blocks:
        block.self_attn.initialize_cache = initialize_cache


def _reference(slug, network, path, **fields):
    make_network, make_transformer = _classes()
    sizes = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")
    sizes += ("text_dim", "text_len", "freq_dim")
    config = reference_network.WanDiTNetworkConfig(
        _target=make_network,
        **{name: getattr(network, name) for name in sizes},
    )
    window = fields["window_size_t"]
    excess = (fields["sink_size_t"] + window) % fields["len_t"]
    model = reference_model.DiffusionModelConfig(
        transformer=reference_wan21.Wan21TransformerConfig(
            _target=make_transformer,
            network=config,
            checkpoint_path=path,
            batch_shape=(),
            concat_image_mask_to_latent=True,
            **flashdreams_cpu.EAGER,
            **(fields | {"window_size_t": window - excess}),
        ),
        scheduler=reference_fm.FlowMatchSchedulerConfig(
            **TIMESTEPS[slug], sigma_max=0.999, timestep_dtype=torch.int64
        ),
    ).setup()
    if excess:
        _of_any_sizes(model.transformer, window)
    return model


CASES = {
    "window and sink": (
        SHORT,
        {"len_t": 3, "window_size_t": 6, "sink_size_t": 3},
        tiny.LINGBOT_CONFIG,
        (4, 6),
    ),
    "straddling sink, other sizes": (
        SHORT,
        {"len_t": 2, "window_size_t": 5, "sink_size_t": 3},
        dataclasses.replace(
            tiny.LINGBOT_CONFIG, dim=60, num_heads=3, num_layers=3, text_len=5
        ),
        (6, 4),
    ),
    "no multiple of the chunk": (
        SMALL,
        {"len_t": 4, "window_size_t": 12, "sink_size_t": 6},
        dataclasses.replace(tiny.LINGBOT_CONFIG, dim=36, num_heads=3),
        (4, 6),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rollout_with_a_text_swap(name, tmp_path):
    slug, fields, network, (height, width) = CASES[name]
    tensors = tiny.checkpoint(network, prefix=name)
    save_file(tensors, tmp_path / "wan.safetensors")
    reference = _reference(slug, network, str(tmp_path / "wan.safetensors"), **fields)
    published = RUNNER_CONFIGS[slug].pipeline.diffusion_model
    model = DiffusionModelConfig(
        transformer=derive_config(published.transformer, **fields, network=network),
        scheduler=published.scheduler,
    ).setup()
    params = tiny.params(network, tensors)

    shape = (1, network.text_len, network.text_dim)
    texts = [golden.fill_input(f"{name}{i}", shape) for i in range(2)]
    theirs = reference.transformer.initialize_autoregressive_cache(
        height=height, width=width, text_embeddings=torch.from_numpy(texts[0])
    )
    ours = model.transformer.initialize_cache(
        params, Conditions(text=jnp.asarray(texts[0])), height, width
    )
    generate, finalize = jax.jit(model.generate), jax.jit(model.finalize)
    latent_shape = model.transformer.latent_shape(ours)
    size = (fields["len_t"], network.out_dim, height, width)
    for chunk in range(7):
        if chunk == 4:
            ours = model.transformer.update_conditions(
                params, ours, Conditions(text=jnp.asarray(texts[1]))
            )
            with torch.no_grad():
                reference.transformer.network.swap_text(
                    theirs.network_cache, torch.from_numpy(texts[1])
                )
        prefix = f"{name}{chunk}"
        noise = golden.fill_input(prefix, (model.scheduler.num_draws, *latent_shape))
        latent = golden.fill_input(prefix + "latent", size)
        rays = golden.fill_input(prefix + "rays", (size[0], 384, height, width))
        mask = np.zeros(size, np.float32)
        mask[0] = chunk == 0
        image = reference_i2v.I2VCtrl(
            latent=torch.from_numpy(latent), mask=torch.from_numpy(mask)
        )
        with torch.no_grad(), flashdreams_cpu.draws(list(noise[:, 0])):
            expected, state = reference.generate(
                chunk, theirs, (image, torch.from_numpy(rays))
            )
            reference.finalize(state)
        control = WanControl(
            image=ImageControl(latent=tiny.video(latent), mask=tiny.video(mask)),
            rays=tiny.video(rays),
        )
        ours, made = generate(params, ours, control, noise)
        assert_close(
            tiny.published(model.transformer.unpatchify(made.clean, ours)),
            expected.numpy(),
        )
        ours = finalize(params, ours, made, None)


# The whole runner

HEIGHT, WIDTH, NUM_CHUNKS, PROMPT = 32, 48, 6, "the red sea"
SIZES = {
    name: getattr(tiny.CONFIG, name)
    for name in ("dim", "ffn_dim", "num_heads", "num_layers")
} | {"text_dim": 32, "text_len": 512}


def _write_transformer(network, folder):
    """Two shards and their index, as the published files are."""
    tensors = tiny.checkpoint(network, prefix="lingbot")
    names = sorted(tensors)
    files = {}
    for number, keys in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in keys}, folder / file)
        files |= dict.fromkeys(keys, file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    save_file(tensors, folder / "all.safetensors")
    return index


def _runner_config(folder):
    vae = published_files.VAE | {"checkpoint_path": str(folder / "vae.pth")}
    network = SIZES | {"dtype": "float32", "param_dtype": "float32"}
    transformer = {"network": network, "window_size_t": 6, "sink_size_t": 3}
    text_encoder = published_files.UMT5 | {
        "checkpoint_path": str(folder / "text_encoder"),
        "tokenizer_path": str(folder / "tokenizer"),
    }
    return derive_config(
        RUNNER_CONFIGS["lingbot-world-fast"],
        pipeline={
            "diffusion_model": {"transformer": transformer},
            "encoder": {"encoder": vae},
            "decoder": vae,
            "conditioner": {"text_encoder": text_encoder},
        },
        output_dir=str(folder / "outputs"),
        image=str(folder / "frame.png"),
        poses=str(folder / "poses.npy"),
        intrinsics=str(folder / "intrinsics.npy"),
        prompt=PROMPT,
        pixel_height=HEIGHT,
        pixel_width=WIDTH,
    )


def _reference_rays(poses, intrinsics):
    """Per latent frame [T, 384, H, W], in torch float32, rounded to bfloat16.

    Poses are those of latent frames; intrinsics for the size of the video.
    """
    poses = torch.from_numpy(poses.astype(np.float32))
    steps = torch.linalg.inv(torch.cat([poses[:1], poses[:-1]])) @ poses
    scale = steps[:, :3, 3].norm(dim=-1).max()
    y, x = torch.meshgrid(
        torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij"
    )
    frames = []
    for step, (fx, fy, cx, cy) in zip(steps, intrinsics.tolist(), strict=True):
        ray = torch.stack([(x - cx) / fx, (y - cy) / fy, torch.ones_like(x)])
        ray = torch.einsum("ij,jhw->ihw", step[:3, :3], ray / ray.norm(dim=0))
        origin = (step[:3, 3] / scale)[:, None, None].expand_as(ray)
        frames.append(torch.cat([origin, ray]).bfloat16().float())
    return torch.nn.functional.pixel_unshuffle(torch.stack(frames), 8)


@imports.inference_mode
def _reference_video(config, folder, text_encoder, vae, pixels, rays):
    ours = config.pipeline.diffusion_model
    model = _reference(
        SHORT,
        ours.transformer.network,
        str(folder / "all.safetensors"),
        len_t=3,
        window_size_t=6,
        sink_size_t=3,
    )
    cache = model.transformer.initialize_autoregressive_cache(
        height=HEIGHT // 8, width=WIDTH // 8, text_embeddings=text_encoder([PROMPT])
    )
    encoder, decoder, chunks = vae.prepare_cache(), vae.prepare_cache(), []
    tokens, key = 3 * (HEIGHT // 16) * (WIDTH // 16), jax.random.key(ours.seed)
    latent = None
    for index in range(NUM_CHUNKS):
        frames = torch.zeros(1, 3, 12 if index else 9, HEIGHT, WIDTH)
        if index == 0:
            frames[0, :, 0] = pixels
        if index < 5:  # the reference encodes five chunks, then repeats the last
            latent = vae.encode(frames, encoder)[0].movedim(0, 1)
        mask = torch.zeros_like(latent)
        mask[0] = index == 0
        image = reference_i2v.I2VCtrl(latent=latent, mask=mask)
        noise_key, _ = jax.random.split(jax.random.fold_in(key, index))
        noise = np.asarray(jax.random.normal(noise_key, (4, 1, tokens, 64)))[:, 0]
        with flashdreams_cpu.draws(list(noise)):
            made, state = model.generate(
                index, cache, (image, rays[3 * index : 3 * index + 3])
            )
            model.finalize(state)
        video = vae.decode(made.movedim(0, 1)[None].contiguous(), decoder)
        chunks.append(video[0].movedim(0, -1).numpy())
    return np.concatenate(chunks)


def test_runner(tmp_path, monkeypatch, chunks):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    text_encoder = published_files.write_text_encoder(tmp_path)
    vae = published_files.write_vae(tmp_path / "vae.pth")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    # As many poses as six chunks have frames: each latent frame keeps its own.
    num_latents = 3 * NUM_CHUNKS
    poses = random_poses(1 + 4 * (num_latents - 1))
    lens = np.tile([500.0, 510, 416, 240], (len(poses), 1))
    lens[:, 0] += rng.uniform(-20, 20, len(poses))
    np.save(tmp_path / "poses.npy", poses)
    np.save(tmp_path / "intrinsics.npy", lens)
    config = _runner_config(tmp_path)
    network = config.pipeline.diffusion_model.transformer.network
    config = dataclasses.replace(
        config, checkpoint_path=str(_write_transformer(network, tmp_path))
    )

    result = config.setup().run()
    ours = np.concatenate(chunks)
    assert result.num_frames == len(ours) == 9 + 12 * (NUM_CHUNKS - 1)
    assert [path.suffixes[-2:] for path in result.files].count([".camera", ".png"]) == 1

    scaled = lens * [WIDTH / 832, HEIGHT / 480, WIDTH / 832, HEIGHT / 480]
    rays = _reference_rays(poses[::4], scaled[::4])
    first = torch.from_numpy(pixels / np.float32(127.5) - 1).movedim(-1, 0)
    theirs = _reference_video(config, tmp_path, text_encoder, vae, first, rays)
    assert np.mean(np.abs(theirs) == 1) < 0.5, "most of the video is clamped"
    assert_close(ours, theirs)
