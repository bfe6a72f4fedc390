"""Rollouts of the Cosmos DiT against the `flashdreams` package, noise injected.

Both sides load the same published tensors, and generate and finalize chunk by chunk.
The package has no HD map and no views; those are held by recorded numbers in
`tests/networks/cosmos_dit/known_answers_test.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from fdjax.contract.conditioner import Conditions
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax.schedulers.unipc import UniPCSchedulerConfig
from fdjax_models.networks.cosmos_dit.transformer import CosmosTransformerConfig
from fdjax_models.networks.wan_dit.control import ImageControl
from tests.networks.cosmos_dit import tiny
from tests.networks.cosmos_dit.tiny import wave
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
reference_model = imports.lazy("flashdreams.infra.diffusion.model")
fm = imports.lazy("flashdreams.infra.diffusion.scheduler.fm")
fm_unipc = imports.lazy("flashdreams.infra.diffusion.scheduler.fm_unipc")
reference_cosmos = imports.lazy("flashdreams.recipes.cosmos.transformer")
reference_network = imports.lazy("flashdreams.recipes.cosmos.transformer.impl.network")

pytestmark = imports.requires("torch", "flashdreams")


@dataclasses.dataclass(frozen=True)
class Case:
    """One rollout: fields that both wrappers have, chunks, image, solver."""

    transformer: dict
    num_chunks: int = 6
    image: bool = True
    size: tuple[int, int] = (4, 6)
    context_noise: int = 128
    unipc: bool = False


CASES = {
    "window": Case({"len_t": 2, "window_size_t": 6}),
    "sink, other size": Case(
        {"len_t": 1, "window_size_t": 3, "sink_size_t": 1}, size=(6, 4)
    ),
    "skip finalize": Case(
        {"len_t": 2, "window_size_t": 4, "skip_finalize_kv_cache": True}
    ),
    "guidance, timestep of the frame": Case(
        {
            "len_t": 2,
            "window_size_t": 4,
            "guidance_scale": 3.0,
            "conditional_frame_timestep": 0.1,
        },
    ),
    "text to video in one chunk": Case(
        {"len_t": 3, "window_size_t": 3, "guidance_scale": 8.0},
        num_chunks=1,
        image=False,
        context_noise=0,
        unipc=True,
    ),
}


def _reference(case: Case, path: str):
    cfg = tiny.CONFIG
    network = reference_network.CosmosDiTNetworkConfig(
        model_channels=cfg.dim,
        num_blocks=cfg.num_layers,
        num_heads=cfg.num_heads,
        adaln_lora_dim=cfg.lora_dim,
        crossattn_proj_in_channels=cfg.text_dim,
        crossattn_emb_channels=cfg.context_dim,
    )
    transformer = reference_cosmos.CosmosTransformerConfig(
        network=network,
        checkpoint_path=path,
        state_dict_transform=reference_network.state_dict_transform,
        **flashdreams_cpu.EAGER,
        **case.transformer,
    )
    if case.unipc:
        scheduler = fm_unipc.FlowMatchUniPCSchedulerConfig(
            num_inference_steps=4, use_kerras_sigma=True
        )
    else:
        scheduler = fm.FlowMatchSchedulerConfig(
            num_inference_steps=2, denoising_timesteps=[1000, 450], shift=5.0
        )
    return reference_model.DiffusionModelConfig(
        transformer=transformer, scheduler=scheduler, context_noise=case.context_noise
    ).setup()


def _ours(case: Case):
    if case.unipc:
        scheduler = UniPCSchedulerConfig(num_inference_steps=4, use_kerras_sigma=True)
    else:
        scheduler = FlowMatchSchedulerConfig(
            num_inference_steps=2, denoising_timesteps=(1000, 450), shift=5.0
        )
    return DiffusionModelConfig(
        transformer=CosmosTransformerConfig(network=tiny.CONFIG, **case.transformer),
        scheduler=scheduler,
        context_noise=case.context_noise,
    ).setup()


@pytest.mark.parametrize("name", CASES)
def test_rollout(name, tmp_path):
    case = CASES[name]
    tensors = tiny.checkpoint(tiny.CONFIG)
    path = tmp_path / "cosmos.safetensors"
    save_file({f"net.{key}": array for key, array in tensors.items()}, path)
    reference, model = _reference(case, str(path)), _ours(case)
    params = tiny.params(tiny.CONFIG, tensors)
    text, negative = wave((1, 5, 20), 101), wave((1, 5, 20), 103)
    shape = 1, case.transformer["len_t"], 16, *case.size
    image = np.zeros(shape, np.float32)
    image[:, :1] = wave((1, 1, 16, *case.size), 102)
    guided = case.transformer.get("guidance_scale", 1.0) > 1
    theirs = reference.transformer.initialize_autoregressive_cache(
        height=case.size[0],
        width=case.size[1],
        text_embeddings=torch.from_numpy(text),
        image_embeddings=torch.from_numpy(image[:, :1]) if case.image else None,
        negative_text_embeddings=torch.from_numpy(negative) if guided else None,
    )
    conditions = Conditions(text=jnp.asarray(text), negative_text=jnp.asarray(negative))
    cache = model.transformer.initialize_cache(params, conditions, *case.size)
    generate, finalize = jax.jit(model.generate), jax.jit(model.finalize)
    num_draws = model.scheduler.num_draws
    for chunk in range(case.num_chunks):
        draws = np.stack(
            [
                np.asarray(model.transformer.patchify(_video(wave(shape, k + chunk))))
                for k in (300, 400, 500)
            ]
        )
        used = list(draws[:num_draws]) + [draws[2]] * bool(case.context_noise)
        with torch.no_grad(), flashdreams_cpu.draws(used):
            expected, state = reference.generate(chunk, theirs, None)
            reference.finalize(state)
        control = None
        if case.image:
            mask = np.zeros_like(image)
            mask[:, 0] = chunk == 0
            control = ImageControl(latent=_video(image), mask=_video(mask))
        kept = cache
        _, final = generate(params, cache, control, draws[:num_draws])
        latent = model.transformer.unpatchify(final.clean, cache)
        # From the cache as it was: a pure generate need not hand on its scratch.
        cache = finalize(params, kept, final, draws[2])
        assert_close(np.moveaxis(latent, -1, 2), expected.numpy())


def _video(latent: np.ndarray) -> jax.Array:
    """[B, T, C, H, W] to [B, T, H, W, C]."""
    return jnp.asarray(np.moveaxis(latent, 2, -1))
