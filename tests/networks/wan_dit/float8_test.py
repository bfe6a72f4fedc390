"""Rollouts of the Wan DiT over keys and values in 8 bits, beside those in full."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig
from tests import golden
from tests.networks.wan_dit import tiny

CAUSAL = WanTransformerConfig(network=tiny.CONFIG, len_t=1, window_size_t=3)
GUIDED = dataclasses.replace(CAUSAL, guidance_scale=3.0, sink_size_t=1)


def rollout(config, chunks=6):
    """Clean latents of a rollout that drops chunks from its window."""
    scheduler = FlowMatchSchedulerConfig()
    model = DiffusionModelConfig(transformer=config, scheduler=scheduler).setup()
    params = tiny.params(config.network)
    conditions = Conditions(
        text=jnp.asarray(golden.fill_input("text", (1, 8, 16))),
        negative_text=jnp.asarray(golden.fill_input("negtext", (1, 8, 16))),
    )
    cache = model.transformer.initialize_cache(params, conditions, 4, 6)
    generate, finalize = jax.jit(model.generate), jax.jit(model.finalize)
    latents = []
    for chunk in range(chunks):
        shape = (model.scheduler.num_draws, *model.transformer.latent_shape(cache))
        noise = jax.random.normal(jax.random.key(chunk), shape)
        cache, state = generate(params, cache, None, noise)
        latents.append(state.clean)
        cache = finalize(params, cache, state)
    return cache, np.stack(latents)


@pytest.mark.parametrize("config", [CAUSAL, GUIDED], ids=["window", "guided, sink"])
def test_it_is_the_rollout_but_for_rounding(config):
    _, full = rollout(config)
    small = dataclasses.replace(config, kv_dtype="float8_e4m3fn")
    cache, eight = rollout(small)
    branches = (2,) if config.guidance_scale > 1 else ()
    heads, dim = tiny.CONFIG.num_heads, tiny.CONFIG.head_dim
    for keys, values in zip(cache.kv.keys, cache.kv.values, strict=True):
        assert keys.dtype == values.dtype == jnp.float8_e4m3fn
        assert keys.shape == (1, *branches, 128, heads, dim)
        assert values.shape == (1, *branches, heads, dim, 128)
    errors = [
        np.linalg.norm(a - b) / np.linalg.norm(b)
        for a, b in zip(eight, full, strict=True)
    ]
    # 2**-4 is half a unit in the last place, of the contribution of attention alone.
    assert min(errors) > 1e-4, errors
    assert max(errors) < 2.0**-4, errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_dtype": "float16"}, "kv_dtype must be float8_e4m3fn, or None"),
        (
            {"kv_dtype": "float8_e4m3fn", "apply_rope_before_kvcache": False},
            "absolute time",
        ),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CAUSAL, **changes)
