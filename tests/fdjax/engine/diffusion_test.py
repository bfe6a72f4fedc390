"""The solver's loop in segments, one network after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.engine.diffusion import denoise
from fdjax.schedulers import EulerSchedulerConfig

SCHEDULER = EulerSchedulerConfig(num_inference_steps=5).setup()
NOISE = jax.random.normal(jax.random.key(0), (3,))


def _network(factor):
    def predict(carry, x, timestep):
        return carry + factor, factor * x + timestep / 1000

    return predict


def _solve(predict_flow):
    return denoise(SCHEDULER, jnp.float32(0), NOISE, jnp.zeros((0, 3)), predict_flow)


def test_segments_are_the_loop_step_by_step():
    """And each begins with the latent that the one before it leaves."""
    began = {}

    def segment(first, factor):
        def begin(latent):
            began[first] = np.asarray(latent)
            return _network(factor)

        return first, begin

    carry, clean = _solve([segment(0, 0.5), segment(2, 2.0)])
    assert carry == 2 * 0.5 + 3 * 2.0
    x = np.float64(NOISE)
    sigmas = np.float64(SCHEDULER.sigmas)
    for step, timestep in enumerate(np.float64(SCHEDULER.timesteps[:5])):
        if step in (0, 2):
            np.testing.assert_allclose(began[step], x, rtol=1e-5)
        flow = _network(0.5 if step < 2 else 2.0)(0, x, timestep)[1]
        x = x + (sigmas[step + 1] - sigmas[step]) * flow
    np.testing.assert_allclose(clean, x, rtol=1e-5)


@pytest.mark.parametrize("firsts", [(), (1,), (0, 0), (0, 3, 2), (0, 5)])
def test_segments_that_are_no_steps_of_the_solver(firsts):
    segments = [(first, lambda latent: _network(1.0)) for first in firsts]
    with pytest.raises(ValueError, match=r"begin at step 0 and ascend .* 5 steps, got"):
        _solve(segments)
