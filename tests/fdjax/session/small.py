"""A pipeline for the tests of sessions."""

import jax

from fdjax.config import derive_config
from fdjax_models.methods.template.config import AUTOREGRESSIVE

# Three chunks fill the window of the template; a sink makes chunks wrap.
PIPELINE = derive_config(
    AUTOREGRESSIVE,
    encoder={"dtype": "float32"},
    decoder={"dtype": "float32"},
    diffusion_model={
        "transformer": {
            "dtype": "float32",
            "model_dim": 32,
            "num_heads": 2,
            "sink_size_t": 2,
        }
    },
).setup()
PARAMS = PIPELINE.init_params(jax.random.key(7))
