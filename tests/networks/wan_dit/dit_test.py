"""The network: recorded outputs of the reference, published sizes, timesteps."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax_models.networks.wan_dit import dit
from fdjax_models.networks.wan_dit.config import (
    LINGBOT_WORLD_14B,
    WAN_1_3B,
    WAN_14B_I2V,
    WAN_14B_T2V,
    WAN_TI2V_5B,
)
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl
from fdjax_models.networks.wan_dit.image_conditioning import Concatenate
from fdjax_models.networks.wan_dit.time_embedding import sinusoid
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig
from tests import golden
from tests.networks.wan_dit import tiny

GOLDENS = {
    ("window", 0, 500): (
        "182.025546 758.648962 0.343219 -1.293636 -0.529727 0.662653 -0.037772 "
        "-1.199756 1.691007 -0.740819"
    ),
    ("window", 0, 0): (
        "142.560797 774.122107 0.519306 -1.541827 -0.323490 0.155767 -0.000238 "
        "-0.067408 1.631911 -0.454221"
    ),
    ("window", 3, 500): (
        "100.445791 727.182648 -0.004300 -0.773053 0.613126 0.566881 2.489146 "
        "-1.117415 2.626457 0.616745"
    ),
    ("window", 3, 0): (
        "53.691553 719.485724 -0.069876 -1.716939 0.825872 -0.294324 2.863656 "
        "0.379513 1.690573 1.267792"
    ),
    ("sink", 4, 500): (
        "84.981814 684.180466 -0.201167 0.433687 -1.573175 1.128872 0.502909 "
        "-1.786387 -0.260326 0.724238"
    ),
    ("sink", 4, 0): (
        "60.635996 710.356462 -0.158548 -0.290902 -1.661427 0.685963 1.359385 "
        "-1.391072 -0.535850 0.704175"
    ),
    ("relative", 4, 500): (
        "82.077963 679.760234 -0.156781 0.414367 -1.534129 1.182023 0.467511 "
        "-1.803350 -0.239376 0.733736"
    ),
    ("relative", 4, 0): (
        "52.607095 709.312967 -0.142403 -0.289118 -1.719432 0.741037 1.221281 "
        "-1.365938 -0.571855 0.807816"
    ),
    ("image", 0, 500): (
        "123.276778 721.229939 0.664136 -0.206188 0.974151 0.372844 0.024285 "
        "-0.602363 1.661145 0.164186"
    ),
    ("image", 0, 0): (
        "84.227362 668.938904 1.131065 -1.414271 0.537051 -0.086216 -0.168411 "
        "-0.087118 1.471641 0.430490"
    ),
    ("lingbot", 0, 500): (
        "101.447819 789.321015 -1.679428 -0.227680 0.218561 0.579082 0.204641 "
        "-1.049797 0.551788 1.171633"
    ),
}
"""Sum, sum of absolutes, first five, last three; by case, chunk and timestep.

From NVIDIA/flashdreams at float32 on a CPU, on weights and inputs of `tests.golden`.
"""

WINDOW = WanTransformerConfig(network=tiny.CONFIG, len_t=2, window_size_t=4)
CASES = {
    "window": WINDOW,
    "sink": dataclasses.replace(WINDOW, sink_size_t=2),
    "relative": dataclasses.replace(
        WINDOW, window_size_t=3, sink_size_t=3, apply_rope_before_kvcache=False
    ),
    "image": dataclasses.replace(
        WINDOW,
        network=tiny.IMAGE_CONFIG,
        window_size_t=2,
        image_conditioning=(Concatenate(),),
    ),
    "lingbot": dataclasses.replace(
        WINDOW,
        network=tiny.LINGBOT_CONFIG,
        window_size_t=2,
        image_conditioning=(Concatenate(),),
    ),
}


def _control(config: WanTransformerConfig, x: jax.Array) -> WanControl | None:
    """The 20 channels after the latent's, taken apart again; camera rays."""
    if not config.image_conditioning:
        return None
    mask = jnp.pad(x[..., 16:20], [(0, 0)] * 4 + [(0, 12)])
    rays = None
    if config.network.control_dim:
        rays = tiny.video(golden.fill_input("plucker", (2, 384, 4, 6)))
    return WanControl(image=ImageControl(latent=x[..., 20:], mask=mask), rays=rays)


@pytest.mark.isa
@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    config = CASES[case]
    transformer = config.setup()
    params = tiny.params(config.network)
    image = golden.fill_input("img", (1, 257, 1280))
    conditions = Conditions(
        text=jnp.asarray(golden.fill_input("text", (1, 8, 16))),
        image_embedding=jnp.asarray(image) if config.network.image_dim else None,
    )
    cache = transformer.initialize_cache(params, conditions, 4, 6)
    predict = jax.jit(transformer.predict_flow)
    commit = jax.jit(functools.partial(tiny.commit, transformer))
    for chunk in range(1 + max(key[1] for key in GOLDENS if key[0] == case)):
        shape = (config.len_t, config.network.in_dim, 4, 6)
        x = tiny.video(golden.fill_input(f"x{chunk}", shape))
        control = _control(config, x)
        latent = transformer.patchify(x[..., :16])
        workspace = transformer.start(params, cache, control)
        for timestep in (500, 0):
            workspace, flow = predict(params, workspace, latent, jnp.float32(timestep))
            expected = GOLDENS.get((case, chunk, timestep))
            if expected is None:
                continue
            result = tiny.published(transformer.unpatchify(flow, cache))
            # The first two are sums over hundreds of values.
            np.testing.assert_allclose(
                golden.summary(result),
                [float(number) for number in expected.split()],
                rtol=2e-6,
                atol=1e-4,
            )
        cache = commit(params, cache, latent, control)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (WAN_1_3B, 1_418_996_800),
        (WAN_14B_T2V, 14_288_491_584),
        (WAN_14B_I2V, 16_394_878_784),
        (WAN_TI2V_5B, 4_999_787_712),
        (LINGBOT_WORLD_14B, 18_544_332_864),
    ],
)
def test_published_parameter_count(config, count):
    shapes = jax.eval_shape(
        functools.partial(dit.init_params, config), jax.random.key(0)
    )
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}


def test_random_weights_keep_unit_scale():
    params = dit.init_params(tiny.CONFIG, jax.random.key(0))
    transformer = WINDOW.setup()
    text = jax.random.normal(jax.random.key(1), (1, 8, 16))
    cache = transformer.initialize_cache(params, Conditions(text=text), 4, 6)
    latent = jax.random.normal(jax.random.key(2), transformer.latent_shape(cache))
    workspace = transformer.start(params, cache, None)
    _, flow = transformer.predict_flow(params, workspace, latent, jnp.float32(700))
    assert 0.3 < jnp.std(flow) < 3


def test_timestep_features_are_exact():
    timesteps = np.linspace(0, 1000, 4001).astype(np.float32)
    frequencies = 10000.0 ** (-np.arange(128) / 128)
    angles = timesteps.astype(np.float64)[:, None] * frequencies
    exact = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    features = jax.jit(sinusoid, static_argnums=1)(timesteps, 256)
    np.testing.assert_allclose(features, exact, atol=6e-7, rtol=0)
    # A float32 product would not do.
    naive = np.cos(timesteps[:, None] * frequencies.astype(np.float32))
    assert np.abs(naive - exact[:, :128]).max() > 2e-5


def test_bfloat16_network_is_close_to_float32():
    config = dataclasses.replace(tiny.CONFIG, dtype="bfloat16", param_dtype="bfloat16")
    flows = []
    for network in (tiny.CONFIG, config):
        transformer = dataclasses.replace(WINDOW, network=network).setup()
        dtype = network.param_dtype
        params = jax.tree.map(lambda x, d=dtype: x.astype(d), tiny.params(tiny.CONFIG))
        text = jnp.asarray(golden.fill_input("text", (1, 8, 16)))
        cache = transformer.initialize_cache(params, Conditions(text=text), 4, 6)
        assert {x.dtype for x in cache.kv.keys} == {jnp.dtype(network.dtype)}
        x = tiny.video(golden.fill_input("x0", (2, 16, 4, 6)))
        workspace = transformer.start(params, cache, None)
        latent = transformer.patchify(x)
        _, flow = transformer.predict_flow(params, workspace, latent, jnp.float32(500))
        assert flow.dtype == jnp.float32
        flows.append(np.asarray(flow))
    error = np.linalg.norm(flows[0] - flows[1]) / np.linalg.norm(flows[0])
    assert 1e-4 < error < 2e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "dim must be num_heads times"),
        ({"dim": 46, "num_heads": 2}, "even head width"),
        ({"dim": 8, "num_heads": 2}, "at least 6"),
        ({"freq_dim": 7}, "freq_dim must be even"),
        ({"text_dim": 0, "image_dim": 1280}, "set text_dim"),
    ],
)
def test_sizes_that_cannot_work(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny.CONFIG, **change)
