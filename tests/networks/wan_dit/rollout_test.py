"""Whole rollouts, generate and finalize, against recorded ones of the reference."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax.schedulers.unipc import UniPCSchedulerConfig
from fdjax_models.networks.wan_dit.control import ImageControl
from fdjax_models.networks.wan_dit.image_conditioning import (
    Concatenate,
    FirstFrameTimestep,
    Stamp,
)
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig
from tests import golden
from tests.networks.wan_dit import tiny

CAUSAL = WanTransformerConfig(network=tiny.CONFIG, len_t=2, window_size_t=4)
BIDIRECTIONAL = WanTransformerConfig(network=tiny.CONFIG, len_t=3, window_size_t=3)
CASES = {
    "causal": (CAUSAL, FlowMatchSchedulerConfig()),
    "relative": (
        dataclasses.replace(
            CAUSAL, window_size_t=3, sink_size_t=3, apply_rope_before_kvcache=False
        ),
        FlowMatchSchedulerConfig(),
    ),
    "guidance": (
        dataclasses.replace(BIDIRECTIONAL, guidance_scale=6.0),
        UniPCSchedulerConfig(num_inference_steps=6, shift=8.0),
    ),
    "concatenated image": (
        dataclasses.replace(
            BIDIRECTIONAL,
            network=tiny.IMAGE_CONFIG,
            guidance_scale=5.0,
            image_conditioning=(Concatenate(),),
        ),
        UniPCSchedulerConfig(num_inference_steps=4, shift=3.0),
    ),
    "stamped image": (
        dataclasses.replace(CAUSAL, len_t=1, image_conditioning=(Stamp(),)),
        FlowMatchSchedulerConfig(shift=5.0),
    ),
    "per-token timestep": (
        dataclasses.replace(
            BIDIRECTIONAL,
            network=dataclasses.replace(tiny.CONFIG, in_dim=48, out_dim=48),
            guidance_scale=5.0,
            image_conditioning=(Stamp(), FirstFrameTimestep()),
        ),
        UniPCSchedulerConfig(num_inference_steps=4, shift=5.0),
    ),
}
GOLDENS = {
    ("causal", 0): (
        "-162.794112 779.605881 -1.681496 1.387385 0.719434 -2.097767 1.719895 "
        "1.126538 -1.124563 0.367060"
    ),
    ("causal", 3): (
        "-171.057286 731.941757 -0.101559 -1.124839 -0.659244 1.187931 0.227149 "
        "1.889623 -2.393215 -0.205733"
    ),
    ("relative", 4): (
        "-139.747462 764.734872 -0.768250 -1.042377 -2.173111 -0.603467 -1.117463 "
        "0.762029 -1.188770 -0.134440"
    ),
    ("guidance", 0): (
        "-231.104699 2662.968658 1.166761 -1.813341 -4.961111 -4.086629 3.190973 "
        "-1.263263 -2.015799 -0.049928"
    ),
    ("concatenated image", 0): (
        "-562.326326 2482.172790 -4.287637 -2.396397 -1.024320 -1.005780 0.951150 "
        "2.102322 -2.581497 1.018131"
    ),
    ("stamped image", 0): (
        "7.374727 333.175187 -0.628461 -0.799670 -0.487851 1.392883 1.271445 "
        "1.139073 -1.369697 0.686730"
    ),
    ("stamped image", 2): (
        "-54.695755 392.745632 -0.356265 -1.842851 0.263656 -1.251061 -1.113592 "
        "0.274042 -0.764257 0.885885"
    ),
    ("per-token timestep", 0): (
        "27.789226 5504.368656 -0.628461 -0.799670 -0.487851 1.392883 1.271445 "
        "1.510996 -1.765847 3.533804"
    ),
}
"""Clean latents [T, C, H, W]: sum, sum of absolutes, first five, last three.

From NVIDIA/flashdreams at float32 on a CPU; draw k of a rollout is "draw{k}".
"""


def _control(config: WanTransformerConfig, chunk: int) -> ImageControl | None:
    if not config.image_conditioning:
        return None
    shape = (config.len_t, config.network.out_dim, 4, 6)
    mask = np.zeros(shape, np.float32)
    mask[0] = chunk == 0
    latent = golden.fill_input(f"ctrl{chunk}", shape)
    return ImageControl(latent=tiny.video(latent), mask=tiny.video(mask))


@pytest.mark.parametrize("case", CASES)
def test_recorded_rollout(case):
    config, scheduler = CASES[case]
    model = DiffusionModelConfig(transformer=config, scheduler=scheduler).setup()
    params = tiny.params(config.network)
    image = golden.fill_input("img", (257, 1280))[None]
    conditions = Conditions(
        text=jnp.asarray(golden.fill_input("text", (1, 8, 16))),
        negative_text=jnp.asarray(golden.fill_input("negtext", (1, 8, 16))),
        image_embedding=jnp.asarray(image) if config.network.image_dim else None,
    )
    cache = model.transformer.initialize_cache(params, conditions, 4, 6)
    _, *shape = model.transformer.latent_shape(cache)
    draws = (golden.fill_input(f"draw{k}", tuple(shape)) for k in itertools.count(1))
    generate, finalize = jax.jit(model.generate), jax.jit(model.finalize)
    for chunk in range(1 + max(key[1] for key in GOLDENS if key[0] == case)):
        control = _control(config, chunk)
        noise = np.stack([next(draws) for _ in range(model.scheduler.num_draws)])
        cache, state = generate(params, cache, control, noise[:, None])
        if (case, chunk) in GOLDENS:
            latent = model.transformer.unpatchify(state.clean, cache)
            np.testing.assert_allclose(
                golden.summary(tiny.published(latent)),
                [float(number) for number in GOLDENS[case, chunk].split()],
                rtol=1e-5,
                atol=2e-4,
            )
        cache = finalize(params, cache, state)
