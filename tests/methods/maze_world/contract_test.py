import jax.numpy as jnp
import pytest

from fdjax import testing
from fdjax.config import derive_config
from fdjax_models.methods.maze_world.config import PIPELINE

TINY = derive_config(
    PIPELINE,
    diffusion_model={
        "transformer": {
            "network": {"dim": 32, "ffn_dim": 32, "num_heads": 2, "num_layers": 1},
            "window_size_t": 3,
        }
    },
)


def encode(pipeline, params, prompt):
    image = jnp.linspace(-1, 1, 32 * 32 * 3).reshape(1, 32, 32, 3)
    return pipeline.encode_conditions(params, text=[prompt], image=image)


CASE = testing.PipelineCase(
    config=TINY,
    initialize=lambda pipeline, params, key: pipeline.initialize_cache(
        params, conditions=encode(pipeline, params, "red brick maze"), key=key
    ),
    make_input=lambda index: jnp.full((1, 4, 2), (-1.0) ** index),
    new_conditions=lambda pipeline, params: encode(
        pipeline, params, "foggy blue metal maze at night"
    ),
)


# Operation by operation is with the template and the Wan transformer: it takes long.
CHECKS = [check for check in testing.CHECKS if check.__name__ != "check_without_jit"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(CASE)
