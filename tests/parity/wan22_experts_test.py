"""The two experts of Wan 2.2 against the reference, over a stream that drops chunks."""

import jax
import numpy as np
import pytest

from fdjax import checkpoint
from fdjax.contract.conditioner import Conditions
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.schedulers import FlowMatchSchedulerConfig
from fdjax_models.networks.wan_dit.experts import WanExpertsConfig
from tests import golden
from tests.networks.wan_dit import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
reference_model = imports.lazy("flashdreams.infra.diffusion.model")
reference_fm = imports.lazy("flashdreams.infra.diffusion.scheduler.fm")
reference_network = imports.lazy("flashdreams.recipes.wan.transformer.impl.network")
reference_wan21 = imports.lazy("flashdreams.recipes.wan.transformer.wan21")
reference_wan22 = imports.lazy("flashdreams.recipes.wan.transformer.wan22")

pytestmark = imports.requires("torch", "flashdreams")

HEIGHT, WIDTH, LEN_T, NUM_CHUNKS = 4, 6, 2, 6
STEPS = (1000, 850, 700, 550, 350, 275, 200, 125)
TEXT = golden.fill_input("text", (1, 8, 16))


def _write(folder):
    """An official checkpoint per expert, of different weights."""
    paths = []
    for name in ("high", "low"):
        tensors = tiny.checkpoint(tiny.CONFIG, prefix=name)
        paths.append(folder / f"{name}_noise_model.pt")
        torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, paths[-1])
    return paths


def _draws():
    tokens = LEN_T * (HEIGHT // 2) * (WIDTH // 2)
    shape = (NUM_CHUNKS, len(STEPS), 1, tokens, 64)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _ours(paths, sink, boundary, draws):
    high, low = map(str, paths)
    config = DiffusionModelConfig(
        transformer=WanExpertsConfig(
            network=tiny.CONFIG,
            checkpoint_path=high,
            low_noise_checkpoint_path=low,
            len_t=LEN_T,
            window_size_t=4,
            sink_size_t=sink,
            boundary=boundary,
        ),
        scheduler=FlowMatchSchedulerConfig(
            num_inference_steps=8, denoising_timesteps=STEPS, shift=5.0
        ),
    )
    model = config.setup()
    params = checkpoint.load_params(model.transformer)
    assert set(params) == {"high_noise", "low_noise"}
    conditions = Conditions(text=jax.numpy.asarray(TEXT))
    cache = model.transformer.initialize_cache(params, conditions, HEIGHT, WIDTH)
    generate, finalize = jax.jit(model.generate), jax.jit(model.finalize)
    for noise in draws:
        cache, state = generate(params, cache, None, noise)
        cache = finalize(params, cache, state)
        yield tiny.published(model.transformer.unpatchify(state.clean, cache))


@imports.inference_mode
def _theirs(paths, sink, boundary, draws):
    sizes = ("dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "text_len")
    network = reference_network.WanDiTNetworkConfig(
        **{name: getattr(tiny.CONFIG, name) for name in sizes},
        in_dim=16,
        out_dim=16,
        freq_dim=256,
        cross_attn_enable_img=False,
        apply_rope_before_kvcache=True,
    )
    experts = [
        reference_wan21.Wan21TransformerConfig(
            network=network,
            checkpoint_path=str(path),
            batch_shape=(),
            len_t=LEN_T,
            window_size_t=4,
            sink_size_t=sink,
            **flashdreams_cpu.EAGER,
        )
        for path in paths
    ]
    model = reference_model.DiffusionModelConfig(
        transformer=reference_wan22.Wan22TransformerConfig(
            transformer_high_noise=experts[0],
            transformer_low_noise=experts[1],
            boundary_ratio=boundary / 1000,
        ),
        scheduler=reference_fm.FlowMatchSchedulerConfig(
            num_inference_steps=8, denoising_timesteps=list(STEPS), shift=5.0
        ),
    ).setup()
    cache = model.transformer.initialize_autoregressive_cache(
        height=HEIGHT, width=WIDTH, text_embeddings=torch.from_numpy(TEXT)
    )
    latents = []
    for index, noise in enumerate(draws):
        with flashdreams_cpu.draws(list(noise[:, 0])):
            latent, state = model.generate(index, cache, None)
            model.finalize(state)
        latents.append(latent.numpy())
    return latents


@pytest.mark.parametrize(("sink", "boundary"), [(0, 875.0), (2, 600.0), (0, 1000.0)])
def test_stream(tmp_path, sink, boundary):
    paths, draws = _write(tmp_path), _draws()
    theirs = _theirs(paths, sink, boundary, draws)
    for ours, expected in zip(_ours(paths, sink, boundary, draws), theirs, strict=True):
        assert_close(ours, expected)
