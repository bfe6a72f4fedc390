"""The contract suite over the method: `pip install .`, then `pytest` in this folder."""

import jax.numpy as jnp
import pytest
from fdjax_ripples.config import PIPELINE

from fdjax import Conditions, testing

CASE = testing.PipelineCase(
    config=PIPELINE,
    # Latents of 2 x 4: not square, so that a transposed picture is noticed.
    initialize=lambda pipeline, params, key: pipeline.initialize_cache(
        params, conditions=Conditions(), pixel_height=8, pixel_width=16, key=key
    ),
    # One level per session, [B].
    make_input=lambda index: jnp.array([0.1 * index]),
)


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(CASE)
