import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.engine.diffusion import denoise, sample
from fdjax.schedulers import FlowMatchScheduler, FlowMatchSchedulerConfig
from tests.golden import fill_input

WAN22_LIST = (1000, 850, 700, 550, 350, 275, 200, 125)
PUBLISHED = {
    "self-forcing": FlowMatchSchedulerConfig(),
    "causal-forcing": FlowMatchSchedulerConfig(shift=5.0),
    "fastvideo": FlowMatchSchedulerConfig(
        num_inference_steps=8, shift=5.0, denoising_timesteps=WAN22_LIST
    ),
    "lingbot": FlowMatchSchedulerConfig(
        shift=10.0,
        sigma_max=0.999,
        denoising_timesteps=(1000, 821, 642, 321),
        timestep_dtype="int64",
    ),
    "omnidreams": FlowMatchSchedulerConfig(
        num_inference_steps=2, shift=5.0, denoising_timesteps=(1000, 450)
    ),
}


def predict_flow(x, timestep):
    return 0.3 * x + 0.001 * timestep


def renoising_draws(count):
    return np.stack([fill_input(f"eps{k}", (4,)) for k in range(1, count + 1)])


@pytest.mark.parametrize(
    ("name", "timesteps", "sigmas"),
    [
        (
            "self-forcing",
            "1000 960 888.8889160 727.2727661",
            "1 0.9599999785 0.8888888955 0.7272727489",
        ),
        (
            "causal-forcing",
            "1000 937.5 833.3333130 625",
            "1 0.9375 0.8333333135 0.625",
        ),
        (
            "fastvideo",
            "1000 965.9091797 921.0526123 859.375 729.1666870 654.7619019 555.5556030 "
            "416.6666565",
            "1 0.965909183 0.921052635 0.859375 0.729166687 0.654761910 0.555555582 "
            "0.416666657",
        ),
        (
            "lingbot",
            "999 978 947 825",
            "0.999899864 0.978545785 0.947042167 0.825192571",
        ),
        ("omnidreams", "1000 803.5714111", "1 0.803571403"),
    ],
)
def test_published_schedules(name, timesteps, sigmas):
    """The tables of the fact sheets (wan-family 4.1, omnidreams 5.1)."""
    timesteps, sigmas = np.float64(timesteps.split()), np.float64(sigmas.split())
    steps = PUBLISHED[name].setup().steps
    assert steps.timestep.dtype == steps.sigma.dtype == np.float32
    # Two units in the last place: the printed tables were computed in float32 by torch,
    # whose linspace rounds as the vector width of the CPU has it. Ours rounds once.
    np.testing.assert_allclose(steps.timestep, timesteps, rtol=2.4e-7)
    np.testing.assert_allclose(steps.sigma, sigmas, rtol=2.4e-7)


@pytest.mark.isa
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("self-forcing", [-0.5351657, -1.0458436, -0.4045298, -1.2016995]),
        ("causal-forcing", [-0.5043863, -0.8910747, -0.2638565, -0.9801121]),
        ("fastvideo", [-1.2900486, -0.6274172, -0.7506955, -0.9684898]),
        ("lingbot", [-0.5830008, -1.2050915, -0.5607796, -1.4253150]),
    ],
)
def test_golden_samples(name, expected):
    """Wan-family fact sheet, section 14.5."""
    scheduler = PUBLISHED[name].setup()
    step_noise = renoising_draws(scheduler.num_draws - 1)
    noise = jnp.asarray(fill_input("noise", (4,)))
    clean = sample(scheduler, noise, predict_flow, draws=step_noise)
    testing.assert_close(
        clean, expected, testing.tolerance(np.float32, scheduler.num_draws)
    )


def python_loop(scheduler, noise, step_noise):
    """The rule, one step after the other, in float64."""
    clean, noisy = None, np.float64(noise)
    for index, (timestep, sigma) in enumerate(
        zip(scheduler.steps.timestep, np.float64(scheduler.steps.sigma), strict=True)
    ):
        if index:
            noisy = (1 - sigma) * clean + sigma * np.float64(step_noise[index - 1])
        clean = noisy - sigma * predict_flow(noisy, np.float64(timestep))
    return clean


@pytest.mark.isa
@pytest.mark.parametrize("name", PUBLISHED)
def test_scan_equals_a_python_loop(name):
    scheduler = PUBLISHED[name].setup()
    noise, *step_noise = np.random.default_rng(0).normal(
        size=(scheduler.num_draws, 2, 5)
    )
    step_noise = jnp.asarray(step_noise, jnp.float32)
    expected = python_loop(scheduler, noise, step_noise)
    solve = jax.jit(
        lambda *draws: sample(scheduler, draws[0], predict_flow, draws=draws[1])
    )
    clean = solve(jnp.asarray(noise, jnp.float32), step_noise)
    num_steps = scheduler.num_draws
    testing.assert_close(clean, expected, testing.tolerance(np.float32, num_steps))


def test_the_first_step_sees_the_noise_itself_whatever_its_sigma():
    scheduler = PUBLISHED["lingbot"].setup()
    assert scheduler.steps.sigma[0] < 1
    seen = []

    def record(carry, x, timestep):
        del timestep
        jax.debug.callback(seen.append, x)
        return carry, jnp.zeros_like(x)

    noise = jnp.asarray(fill_input("noise", (4,)))
    jax.block_until_ready(denoise(scheduler, (), noise, renoising_draws(3), record))
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[0], noise)
    assert len(seen) == 4


def test_scan_threads_the_carry_and_the_exact_timesteps():
    scheduler = PUBLISHED["lingbot"].setup()

    def count(carry, x, timestep):
        calls, timesteps = carry
        return (calls + 1, timesteps.at[calls].set(timestep)), jnp.zeros_like(x)

    carry = jnp.int32(0), jnp.zeros(4)
    (calls, timesteps), clean = denoise(
        scheduler, carry, jnp.ones(3), jnp.zeros((3, 3)), count
    )
    assert calls == 4
    np.testing.assert_array_equal(timesteps, [999, 978, 947, 825])
    assert clean.dtype == jnp.float32


def test_a_linear_flow_returns_its_target():
    """noise - target is the flow of a straight path: one step is exact."""
    target = jnp.array([0.5, -2.0, 3.0])
    config = FlowMatchSchedulerConfig(
        num_inference_steps=1, denoising_timesteps=(1000,)
    )
    noise = jnp.array([1.0, 2.0, 3.0])
    clean = sample(config.setup(), noise, lambda x, timestep: x - target)
    testing.assert_close(clean, target, testing.tolerance(np.float32, 1))


def test_raw_timestep_0_has_the_smallest_sigma():
    config = FlowMatchSchedulerConfig(
        num_inference_steps=2, denoising_timesteps=(1000, 0)
    )
    scheduler = config.setup()
    assert scheduler.steps.timestep[1] == 0
    assert scheduler.steps.sigma[1] == scheduler.training_sigmas[999] > 0


def test_without_warping_the_timestep_stays_and_sigma_snaps_to_the_nearest():
    steps = FlowMatchSchedulerConfig(warp_denoising_step=False).setup().steps
    np.testing.assert_array_equal(steps.timestep, [1000, 750, 500, 250])
    np.testing.assert_allclose(steps.sigma[1], 0.7502577, rtol=1e-7)
    table = FlowMatchSchedulerConfig().setup().training_sigmas
    for raw, sigma in zip((1000, 750, 500, 250), steps.sigma, strict=True):
        assert abs(sigma - raw / 1000) == np.abs(table - np.float32(raw / 1000)).min()


def test_ends_of_the_training_table():
    table = FlowMatchSchedulerConfig(shift=1.0).setup().training_sigmas
    np.testing.assert_allclose(table[[0, 1, 999]], [1, 0.999, 0.001], rtol=1e-6)
    closed = FlowMatchSchedulerConfig(
        shift=1.0, extra_one_step=False, sigma_max=0.9, sigma_min=0.1
    )
    table = closed.setup().training_sigmas
    assert table.shape == (1000,)
    np.testing.assert_allclose(table[[0, 999]], [0.9, 0.1], rtol=1e-6)
    np.testing.assert_allclose(np.diff(table), -0.8 / 999, rtol=1e-3)


def test_num_train_timesteps_scales_the_table():
    config = FlowMatchSchedulerConfig(
        num_train_timesteps=100,
        shift=1.0,
        num_inference_steps=2,
        denoising_timesteps=(100, 40),
    )
    np.testing.assert_allclose(config.setup().steps.timestep, [100, 40], rtol=1e-6)
    np.testing.assert_allclose(config.setup().steps.sigma, [1, 0.4], rtol=1e-6)


def test_add_noise_snaps_to_the_training_table():
    scheduler = FlowMatchSchedulerConfig().setup()
    clean, noise = (jnp.asarray(fill_input(key, (4,))) for key in ("noise", "eps1"))
    add_noise = jax.jit(scheduler.add_noise)
    expected = [-0.7156027, -0.7891045, -1.4614160, -1.0304966]
    noisy = add_noise(clean, 128, noise)
    testing.assert_close(noisy, expected, testing.tolerance(np.float32, 1))
    sigma = scheduler.training_sigmas[982]
    np.testing.assert_allclose(sigma, 0.1278863, rtol=1e-6)
    np.testing.assert_allclose(scheduler.training_timesteps[982], 127.886322, rtol=1e-7)
    # Not the level of the timestep itself, which would be 0.128.
    exact = 0.872 * clean + 0.128 * noise
    assert np.abs(add_noise(clean, 128, noise) - exact).max() > 1e-5


def test_draws_come_from_the_key_or_from_the_caller():
    scheduler = FlowMatchSchedulerConfig().setup()
    noise = jnp.ones((3, 2))
    key = jax.random.key(7)
    drawn = sample(scheduler, noise, predict_flow, key)
    step_noise = jax.random.normal(key, (3, 3, 2))
    given = sample(scheduler, noise, predict_flow, draws=step_noise)
    np.testing.assert_array_equal(drawn, given)
    assert (
        np.abs(drawn - sample(scheduler, noise, predict_flow, jax.random.key(8))).max()
        > 0
    )
    with pytest.raises(ValueError, match=r"draws noise 3 times .* shape \(3, 3, 2\)"):
        sample(scheduler, noise, predict_flow)
    with pytest.raises(
        ValueError, match=r"must have shape \(3, 3, 2\), .* got \(2, 3, 2\)"
    ):
        sample(scheduler, noise, predict_flow, draws=step_noise[:2])


def test_equal_configs_give_equal_schedulers():
    config = FlowMatchSchedulerConfig(denoising_timesteps=[1000, 750, 500, 250])
    assert config.setup() == FlowMatchScheduler(FlowMatchSchedulerConfig())
    assert hash(config.setup()) == hash(FlowMatchSchedulerConfig().setup())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inference_steps": 3}, r"num_inference_steps must be 4, the number of"),
        ({"num_inference_steps": 0, "denoising_timesteps": ()}, r"must be >= 1, got 0"),
        ({"shift": 0.0}, r"shift must be > 0; .*, got 0\.0"),
        (
            {"num_train_timesteps": 500},
            r"integers from 0 to num_train_timesteps \(500\)",
        ),
        (
            {"denoising_timesteps": (1000, 750.5, 500, 250)},
            r"denoising_timesteps must be integers .*, got \(1000, 750\.5, 500, 250\)",
        ),
        *(
            ({"denoising_timesteps": wrong}, "must be decreasing from above 0")
            for wrong in (
                (250, 500, 750, 1000),
                (1000, 500, 750, 250),
                (1000, 500, 500, 250),
                (0, 0, 0, 0),
            )
        ),
        ({"shift": float("inf")}, "shift must be finite"),
        ({"shift": float("nan")}, "shift must be > 0"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps must be <= 100000"),
        ({"sigma_max": 1.5}, r"sigma_max must be in \(0, 1\], got 1\.5"),
        ({"sigma_min": 1.0}, r"sigma_min must be in \[0, sigma_max\)"),
        (
            {"timestep_dtype": "bfloat16"},
            "must be one of float32, int64, got 'bfloat16'",
        ),
    ],
)
def test_configs_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FlowMatchSchedulerConfig(**fields)


def test_levels_that_coincide_are_refused_at_setup():
    config = FlowMatchSchedulerConfig(shift=1e9)
    with pytest.raises(ValueError, match=r"levels that decrease within \[0, 1\]"):
        config.setup()


def test_levels_as_bfloat16_holds_them():
    config = dataclasses.replace(PUBLISHED["omnidreams"], level_dtype="bfloat16")
    scheduler, exact = config.setup(), PUBLISHED["omnidreams"].setup()
    np.testing.assert_array_equal(scheduler.sigmas, [1, 0.8046875, 0])
    np.testing.assert_array_equal(scheduler.steps.keep, [0.1962890625, 1])
    np.testing.assert_array_equal(scheduler.steps.renoise, [0.8046875, 0])
    # What the network is told is its own business.
    np.testing.assert_array_equal(scheduler.timesteps, exact.timesteps)
    add = jax.jit(scheduler.add_noise)
    kept, added = (add(x, 128.0, 1 - x) for x in (jnp.ones(1), jnp.zeros(1)))
    assert (float(kept[0]), float(added[0])) == (0.87109375, 0.1298828125)
