import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.engine.diffusion import denoise, sample
from fdjax.schedulers import EulerSchedulerConfig
from tests.golden import fill_input

DISTILLED = EulerSchedulerConfig(fixed_timesteps=(1000, 960, 888.8889, 727.2728, 0))
DERIVED = EulerSchedulerConfig()


def predict_flow(x, timestep):
    return 0.3 * x + 0.001 * timestep


@pytest.mark.isa
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DISTILLED, [-1.3272653, -1.4140482, -1.8730171, -1.5555391]),
        (DERIVED, [-1.2620229, -1.3493888, -1.8114411, -1.4918303]),
    ],
)
def test_golden_samples(config, expected):
    """Wan-family fact sheet, section 14.5."""
    scheduler = config.setup()
    assert scheduler.num_draws == 1
    noise = jnp.asarray(fill_input("noise", (4,)))
    clean = sample(scheduler, noise, predict_flow)
    testing.assert_close(
        clean, expected, testing.tolerance(np.float32, len(scheduler.sigmas))
    )


def test_published_schedules():
    """Wan-family fact sheet, section 4.2."""
    scheduler = DERIVED.setup()
    expected = [0.99979985, 0.93726546, 0.83305538, 0.62468731, 0]
    np.testing.assert_allclose(scheduler.sigmas, expected, atol=1e-8, rtol=1.2e-7)
    np.testing.assert_allclose(
        scheduler.timesteps, 1000 * scheduler.sigmas, rtol=1.2e-7
    )
    fixed = DISTILLED.setup()
    np.testing.assert_array_equal(
        fixed.timesteps, np.float32([1000, 960, 888.8889, 727.2728, 0])
    )
    np.testing.assert_allclose(fixed.sigmas, fixed.timesteps / 1000, rtol=1.2e-7)


@pytest.mark.parametrize(
    "config",
    [DISTILLED, DERIVED, EulerSchedulerConfig(num_inference_steps=30, shift=3.0)],
)
def test_scan_equals_a_python_loop(config):
    scheduler = config.setup()
    noise = jnp.asarray(fill_input("x", (2, 3)))
    sigmas, expected = np.float64(scheduler.sigmas), np.float64(noise)
    for timestep, sigma, following in zip(
        scheduler.timesteps, sigmas, sigmas[1:], strict=False
    ):
        expected = expected + (following - sigma) * predict_flow(
            expected, np.float64(timestep)
        )
    actual = jax.jit(lambda noise: sample(scheduler, noise, predict_flow))(noise)
    testing.assert_close(actual, expected, testing.tolerance(np.float32, len(sigmas)))


def test_scan_threads_the_carry():
    def count(carry, x, timestep):
        return carry.at[0].add(1).at[1].set(timestep), jnp.zeros_like(x)

    noise = jnp.arange(3.0)
    carry, clean = denoise(
        DISTILLED.setup(), jnp.zeros(2), noise, jnp.zeros((0, 3)), count
    )
    np.testing.assert_allclose(carry, [4, 727.2728], rtol=1e-7)
    np.testing.assert_array_equal(clean, noise)


@pytest.mark.isa
def test_add_noise_snaps_to_the_visited_timesteps():
    scheduler = DISTILLED.setup()
    clean, noise = (jnp.asarray(fill_input(key, (4,))) for key in ("noise", "eps1"))
    for timestep, sigma in ((1000, 1), (930, 0.96), (700, 0.7272728), (128, 0)):
        testing.assert_close(
            scheduler.add_noise(clean, timestep, noise),
            (1 - sigma) * clean + sigma * noise,
            testing.tolerance(np.float32, 1),
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inference_steps": 0}, r"num_inference_steps must be >= 1, got 0"),
        ({"fixed_timesteps": (1000, 0)}, r"num_inference_steps \+ 1 = 5 values, got"),
        (
            {"num_inference_steps": 2, "fixed_timesteps": (1000, 1000, 0)},
            r"decreasing, within \[0, num_train_timesteps\] \(1000\), got",
        ),
        (
            {"num_inference_steps": 1, "fixed_timesteps": (1200, 0)},
            r"decreasing, within",
        ),
        ({"shift": -1.0}, r"shift must be > 0"),
    ],
)
def test_configs_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EulerSchedulerConfig(**fields)
