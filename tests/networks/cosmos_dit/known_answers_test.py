"""Rollouts on weights and inputs made of sines, against recorded numbers.

The numbers come from the PyTorch network of OmniDreams, and agree with a second
implementation in float64 to 2e-6. They are given to six decimals.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax.schedulers.unipc import UniPCSchedulerConfig
from fdjax_models.networks.cosmos_dit.control import CosmosControl
from fdjax_models.networks.cosmos_dit.transformer import CosmosTransformerConfig
from fdjax_models.networks.wan_dit.control import ImageControl
from tests.networks.cosmos_dit import tiny
from tests.networks.cosmos_dit.tiny import wave

TOLERANCE = 5e-6  # half of the last decimal, and float32 over three passes a chunk

ONE_VIEW = CosmosTransformerConfig(
    network=dataclasses.replace(tiny.CONFIG, control_dim=16),
    len_t=2,
    window_size_t=6,
)
TWO_VIEWS = CosmosTransformerConfig(
    network=dataclasses.replace(tiny.CONFIG, control_dim=192, num_cameras=7),
    len_t=4,
    window_size_t=8,
    cameras=(5, 0),
)
# Mean, unbiased deviation, first three and three of the last numbers, chunk by chunk.
RECORDED = {
    "one view": (
        ONE_VIEW,
        50,
        [
            (
                -0.008694,
                0.79153,
                0.826329,
                0.269195,
                -0.414545,
                -0.81899,
                0.285234,
                0.158117,
            ),
            (
                -0.003564,
                0.832119,
                -0.254074,
                -0.010041,
                1.331646,
                -0.192015,
                0.363407,
                0.598742,
            ),
            (
                -0.005015,
                0.826424,
                1.119505,
                1.188587,
                1.095689,
                0.526969,
                0.305566,
                0.45531,
            ),
            (
                -0.010946,
                0.840501,
                1.337432,
                0.934963,
                -0.406779,
                0.508309,
                -0.170205,
                -0.326867,
            ),
            (
                -0.015873,
                0.855658,
                0.313935,
                -0.285373,
                -1.485862,
                0.040777,
                -0.266956,
                -0.862283,
            ),
        ],
    ),
    "two views": (
        TWO_VIEWS,
        69,
        [
            (
                -0.010102,
                0.845282,
                0.826329,
                0.269195,
                -0.414545,
                -1.331178,
                -1.209566,
                -1.527201,
            ),
            (
                -0.011239,
                0.871496,
                -0.205431,
                0.10622,
                0.89669,
                -1.661971,
                -0.877606,
                -0.700128,
            ),
            (
                -0.010536,
                0.864815,
                0.684268,
                0.77596,
                0.882424,
                -1.044949,
                0.049438,
                0.309877,
            ),
            (
                -0.010384,
                0.863247,
                1.018844,
                0.505957,
                0.071295,
                -0.024073,
                0.564526,
                0.485917,
            ),
            (
                -0.010994,
                0.865516,
                0.420305,
                -0.57336,
                -0.722482,
                0.562642,
                0.461439,
                -0.375951,
            ),
        ],
    ),
}


def _statistics(latent: np.ndarray) -> np.ndarray:
    """The recorded numbers of [V, T, C, H, W]."""
    first, last = latent[0, 0, 0, 0, :3], latent[-1, -1, 3, 2, :3]
    return np.array([latent.mean(), latent.std(ddof=1), *first, *last])


def _image(config, chunk: int) -> ImageControl:
    """The first frame, behind it zeros."""
    views = len(config.cameras)
    latent = np.zeros((1, views, config.len_t, 16, 4, 6), np.float32)
    latent[:, :, 0] = wave((1, views, 1, 16, 4, 6), 102)[:, :, 0]
    mask = np.zeros_like(latent)
    mask[:, :, 0] = chunk == 0
    return ImageControl(latent=tiny.side_by_side(latent), mask=tiny.side_by_side(mask))


@pytest.mark.parametrize("name", RECORDED)
def test_rollout_gives_the_recorded_numbers(name):
    config, num_keys, recorded = RECORDED[name]
    assert len(tiny.published_shapes(config.network)) == num_keys
    scheduler = FlowMatchSchedulerConfig(
        num_inference_steps=2, denoising_timesteps=(1000, 450), shift=5.0
    )
    model = DiffusionModelConfig(
        transformer=config, scheduler=scheduler, context_noise=128.0
    ).setup()
    params, views = tiny.params(config.network), len(config.cameras)
    conditions = Conditions(text=jnp.asarray(wave((1, views, 5, 20), 101)))
    cache = model.transformer.initialize_cache(params, conditions, 4, 6 * views)
    shape = 1, views, config.len_t, 16, 4, 6
    hdmap_shape = *shape[:3], config.network.control_dim, 4, 6
    for chunk, expected in enumerate(recorded):
        draws = [wave(shape, start + chunk) for start in (300, 400, 500)]
        noise = jnp.stack([tiny.side_by_side(draw) for draw in draws])
        hdmap = tiny.side_by_side(wave(hdmap_shape, 200 + chunk))
        control = CosmosControl(image=_image(config, chunk), hdmap=hdmap)
        cache, final = model.generate(params, cache, control, noise)
        latent = model.transformer.unpatchify(final.clean, cache)
        actual = _statistics(tiny.by_view(latent, views)[0])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)
        cache = model.finalize(params, cache, final, noise)


@pytest.mark.parametrize(
    ("with_image", "expected"),
    [
        (
            False,
            (
                0.000955,
                0.745267,
                -0.378386,
                0.026337,
                0.712705,
                -1.396869,
                -1.019901,
                -0.524555,
            ),
        ),
        (
            True,
            (
                -0.002028,
                0.736712,
                0.826329,
                0.269195,
                -0.414545,
                -1.397174,
                -1.02028,
                -0.524597,
            ),
        ),
    ],
)
def test_guided_generation_of_one_chunk_gives_the_recorded_numbers(
    with_image, expected
):
    config = CosmosTransformerConfig(
        network=tiny.CONFIG,
        len_t=3,
        window_size_t=3,
        guidance_scale=8.0,
        conditional_frame_timestep=0.1,
    )
    scheduler = UniPCSchedulerConfig(num_inference_steps=4, use_kerras_sigma=True)
    model = DiffusionModelConfig(transformer=config, scheduler=scheduler).setup()
    assert model.scheduler.steps.timestep.tolist() == [995, 978, 877, 360, 9]
    params = tiny.params(config.network)
    text, negative = (jnp.asarray(wave((1, 5, 20), k)) for k in (101, 103))
    conditions = Conditions(text=text, negative_text=negative)
    cache = model.transformer.initialize_cache(params, conditions, 4, 6)
    noise = tiny.side_by_side(wave((1, 1, 3, 16, 4, 6), 300))
    control = CosmosControl(image=_image(config, 0)) if with_image else None
    cache, final = model.generate(params, cache, control, noise)
    latent = tiny.by_view(model.transformer.unpatchify(final.clean, cache), 1)[0]
    # Guidance of 8 over five steps multiplies rounding.
    tolerance = 8 * TOLERANCE
    np.testing.assert_allclose(_statistics(latent), expected, rtol=0, atol=tolerance)
