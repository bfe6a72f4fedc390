"""Views, what skips the last pass, and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax.streaming.patches import join_views, patchify, split_views
from fdjax_models.networks.cosmos_dit.control import CosmosControl
from fdjax_models.networks.cosmos_dit.transformer import CosmosTransformerConfig
from tests.networks.cosmos_dit import tiny
from tests.networks.cosmos_dit.tiny import wave

VIEWS = dataclasses.replace(tiny.CONFIG, control_dim=192, num_cameras=7)


def test_views_are_parted_as_pictures_are_cut():
    latent = jnp.asarray(wave((2, 3, 4, 3 * 6, 5), 0))
    parted = split_views(patchify(latent, (1, 2, 2)), 3, 3)
    for view, part in enumerate(jnp.split(latent, 3, axis=3)):
        np.testing.assert_array_equal(parted[:, view], patchify(part, (1, 2, 2)))
    whole = patchify(latent, (1, 2, 2))
    np.testing.assert_array_equal(join_views(parted, 3), whole)


@pytest.mark.parametrize("relative", [False, True])
def test_without_a_last_pass_the_last_step_stays_in_the_cache(relative):
    options = {
        "network": VIEWS,
        "len_t": 2,
        "window_size_t": 4,
        "cameras": (5, 0),
        "apply_rope_before_kvcache": not relative,
    }
    full, short = (
        CosmosTransformerConfig(**options, skip_finalize_kv_cache=skip).setup()
        for skip in (False, True)
    )
    params = tiny.params(VIEWS)
    conditions = Conditions(text=jnp.asarray(wave((1, 5, 20), 1)))
    hdmap = tiny.side_by_side(wave((1, 2, 2, 192, 4, 6), 2))
    control = CosmosControl(hdmap=hdmap)
    cache = full.initialize_cache(params, conditions, 4, 12)
    start = cache
    for chunk in range(3):
        latent = full.patchify(tiny.side_by_side(wave((1, 2, 2, 16, 4, 6), chunk)))
        timestep = jnp.float32(804)
        workspace = short.start(params, start, control)
        workspace, _ = short.predict_flow(params, workspace, latent, timestep)
        _, residue = short.release(workspace)
        # The clean latent and its timestep are not looked at.
        kept = short.commit(params, start, residue, latent * 0, timestep * 0)
        workspace = full.start(params, cache, control)
        _, residue = full.release(workspace)
        cache = full.commit(params, cache, residue, latent, timestep)
        jax.tree.map(np.testing.assert_array_equal, kept.kv.num_chunks, [chunk + 1])
        for ours, theirs in zip(
            kept.kv.keys + kept.kv.values, cache.kv.keys + cache.kv.values, strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        assert np.any(kept.kv.keys[0] != start.kv.keys[0])
        start = kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": (0, 1)}, "num_cameras"),
        ({"network": VIEWS, "cameras": (7,)}, "below 7"),
        ({"cameras": ()}, "num_views"),
        ({"conditional_frame_timestep": -1.0}, "conditional_frame_timestep"),
    ],
)
def test_configs_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CosmosTransformerConfig(**{"network": tiny.CONFIG, **changes})


def test_inputs_that_do_not_fit_are_refused():
    transformer = CosmosTransformerConfig(network=VIEWS, cameras=(5, 0)).setup()
    params = tiny.params(VIEWS)
    good = Conditions(text=jnp.zeros((1, 5, 20)))
    with pytest.raises(ValueError, match=r"conditions\.text"):
        transformer.initialize_cache(params, Conditions(), 4, 12)
    bad = Conditions(text=jnp.zeros((1, 3, 5, 20)))
    with pytest.raises(ValueError, match="a prompt per view"):
        transformer.initialize_cache(params, bad, 4, 12)
    with pytest.raises(ValueError, match="2 views"):
        transformer.initialize_cache(params, good, 4, 6)
    cache = transformer.initialize_cache(params, good, 4, 12)
    for control, message in ((None, "hdmap"), (3, "CosmosControl")):
        with pytest.raises(ValueError, match=message):
            transformer.start(params, cache, control)
