"""Solvers against flashdreams 0.1.0 and diffusers 0.42 (torch, on the CPU).

The levels of diffusers' solvers are spaced from 1, ours (and the official Wan's) from
0.999: those tests hand diffusers our spacing, which it then warps by itself.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.engine.diffusion import sample
from fdjax.schedulers import (
    EulerSchedulerConfig,
    FlowMatchSchedulerConfig,
    UniPCSchedulerConfig,
)
from tests.parity import imports
from tests.parity.comparison import assert_allclose

torch = imports.lazy("torch")
diffusers = imports.lazy("diffusers")
flashdreams_cpu = imports.lazy("tests.parity.flashdreams_cpu")
fm = imports.lazy("flashdreams.infra.diffusion.scheduler.fm")
fm_euler = imports.lazy("flashdreams.infra.diffusion.scheduler.fm_euler")
fm_unipc = imports.lazy("flashdreams.infra.diffusion.scheduler.fm_unipc")

pytestmark = imports.requires("torch", "diffusers", "flashdreams")

SHAPE = (2, 3)
ROUND_OFF = 2.4e-7  # two units in the last place of a float32


def rng_noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def flow(x, timestep):
    """A curved flow, written so that jax and torch both take it."""
    return 0.3 * x + 0.1 * x**2 + 0.001 * timestep


def our_sample(config, draws):
    scheduler = config.setup()
    solve = jax.jit(lambda noise, rest: sample(scheduler, noise, flow, draws=rest))
    return np.asarray(solve(draws[0], draws[1:]))


FLOW_MATCH = (
    {},
    {"shift": 5.0},
    {"shift": 10.0, "sigma_max": 0.999, "timestep_dtype": "int64"}
    | {"denoising_timesteps": (1000, 821, 642, 321)},
    {"num_inference_steps": 3, "denoising_timesteps": (1000, 400, 0)},
    {"warp_denoising_step": False},
    {"warp_denoising_step": False, "timestep_dtype": "int64", "shift": 3.0},
    {"extra_one_step": False, "sigma_min": 0.003, "sigma_max": 0.999},
    {"num_inference_steps": 1, "denoising_timesteps": (1000,)},
    {"num_train_timesteps": 100, "denoising_timesteps": (100, 75, 50, 25)},
)


def reference(config):
    """The scheduler of flashdreams with the same fields."""
    fields = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("_target", "level_dtype")
    }
    if isinstance(config, FlowMatchSchedulerConfig):
        fields["denoising_timesteps"] = list(config.denoising_timesteps)
        fields["timestep_dtype"] = getattr(torch, config.timestep_dtype)
        return fm.FlowMatchSchedulerConfig(**fields).setup()
    if isinstance(config, EulerSchedulerConfig):
        return fm_euler.FlowMatchEulerDiscreteSchedulerConfig(**fields).setup()
    return fm_unipc.FlowMatchUniPCSchedulerConfig(**fields).setup()


def assert_same_sample(config, expected_scheduler, atol):
    draws = rng_noise(config.setup().num_draws, *SHAPE)
    with flashdreams_cpu.draws(draws[1:]):
        expected = expected_scheduler.sample(torch.from_numpy(draws[0]), flow)
    assert_allclose(our_sample(config, draws), expected, atol=atol)


def assert_same_noise(config, expected_scheduler, timesteps):
    clean, noise = rng_noise(2, *SHAPE)
    add_noise = jax.jit(config.setup().add_noise)
    for timestep in timesteps:
        with flashdreams_cpu.draws([noise]):
            expected = expected_scheduler.add_noise(
                torch.from_numpy(clean), torch.tensor(float(timestep))
            )
        actual = add_noise(clean, jnp.float32(timestep), noise)
        assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("fields", FLOW_MATCH)
def test_flow_match_of_flashdreams(fields):
    config = FlowMatchSchedulerConfig(**fields)
    expected, steps = reference(config), config.setup().steps
    assert_allclose(steps.timestep, expected.denoising_step_list, rtol=ROUND_OFF)
    assert_allclose(steps.sigma, expected.denoising_sigmas, rtol=ROUND_OFF)
    assert_same_sample(config, expected, atol=1e-6)
    # Not halfway between two entries, where round-off decides.
    timesteps = (0, 0.3, 128, 500.2, 999.9)
    assert_same_noise(config, expected, timesteps)


@pytest.mark.parametrize("level_dtype", ["bfloat16", "float32"])
def test_flow_match_of_flashdreams_on_bfloat16(level_dtype):
    """With rounded levels a single product is that of the reference, bit for bit."""
    config = FlowMatchSchedulerConfig(
        num_inference_steps=1,
        denoising_timesteps=(450,),
        shift=5.0,
        level_dtype=level_dtype,
    )
    theirs, scheduler = reference(config), config.setup()
    # What bfloat16 holds, so that all that is rounded is the levels and the product.
    numbers = np.asarray(jnp.bfloat16(rng_noise(1, *SHAPE)[0]), np.float32)
    zeros, given = np.zeros_like(numbers), torch.from_numpy(numbers).bfloat16()
    add_noise, alike = jax.jit(scheduler.add_noise), []
    for clean, noise in ((numbers, zeros), (zeros, numbers)):
        with flashdreams_cpu.draws([noise]):
            expected = theirs.add_noise(
                torch.from_numpy(clean).bfloat16(), torch.tensor(128.0)
            )
        actual = jnp.bfloat16(add_noise(clean, 128.0, noise))
        alike.append(np.array_equal(np.float32(actual), expected.float().numpy()))
    expected = theirs.sample(torch.zeros_like(given), lambda x, t: given)
    record = jax.tree.map(lambda column: column[0], scheduler.steps)
    state = scheduler.update(scheduler.init(zeros), record, numbers, zeros)
    actual = np.float32(jnp.bfloat16(scheduler.result(state)))
    alike.append(np.array_equal(actual, expected.float().numpy()))
    assert all(alike) is (level_dtype == "bfloat16")


@pytest.mark.parametrize(("shift", "sigma_max"), [(8.0, 1.0), (10.0, 0.999)])
def test_training_table_of_flashdreams(shift, sigma_max):
    config = FlowMatchSchedulerConfig(shift=shift, sigma_max=sigma_max)
    expected, scheduler = reference(config), config.setup()
    # Towards 0 torch's linspace loses relative precision; absolute holds.
    for actual, table, scale in (
        (scheduler.training_sigmas, expected._full_sigmas, 1),
        (scheduler.training_timesteps, expected._full_timesteps, 1000),
    ):
        assert_allclose(actual, table, rtol=ROUND_OFF, atol=scale * 1.2e-7)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"fixed_timesteps": (1000.0, 960.0, 888.8889, 727.2728, 0.0)},
        {"num_inference_steps": 30, "shift": 3.0},
        {"num_inference_steps": 1},
        {"num_train_timesteps": 100},
    ],
)
def test_euler_of_flashdreams(fields):
    config = EulerSchedulerConfig(**fields)
    expected, scheduler = reference(config), config.setup()
    np.testing.assert_array_equal(scheduler.timesteps, expected.timesteps)
    np.testing.assert_array_equal(scheduler.sigmas, expected.sigmas)
    assert_same_sample(config, expected, atol=1e-6)
    timesteps = (0, 128, 500.2, 999.9)
    assert_same_noise(config, expected, timesteps)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"shift": 8.0},
        {"num_inference_steps": 40, "shift": 3.0},
        {"num_inference_steps": 2},
        {"num_inference_steps": 3},
        {"num_inference_steps": 35, "use_kerras_sigma": True},
        {"num_inference_steps": 10, "num_train_timesteps": 100},
    ],
)
def test_unipc_of_flashdreams(fields):
    config = UniPCSchedulerConfig(**fields)
    expected, steps = reference(config), config.setup().steps
    np.testing.assert_array_equal(steps.timestep, expected.timesteps)
    np.testing.assert_array_equal(steps.sigma, expected.sigmas)
    names = {
        "predict_sample": expected.a_pred,
        "predict_current": expected.b_pred_m0,
        "predict_previous": expected.b_pred_dprev,
        "correct_last": expected.a_corr,
        "correct_previous": expected.b_corr_m0,
        "correct_older": expected.b_corr_dprev,
        "correct_current": expected.b_corr_dt,
    }
    for name, table in names.items():
        # Our first step "corrects" the noise into itself instead of skipping.
        assert_allclose(
            getattr(steps, name)[1:], table[1:], rtol=ROUND_OFF, err_msg=name
        )
    # Up to 50 steps of float32, in another order of additions.
    assert_same_sample(config, expected, atol=2e-6)
    timesteps = (0, 128, 500.2, 999.9)
    assert_same_noise(config, expected, timesteps)


def diffusers_sample(scheduler, noise):
    """A loop over `scheduler.step`, as diffusers' pipelines write it."""
    scheduler.set_begin_index(0)
    sample = torch.from_numpy(noise)
    for timestep in scheduler.timesteps:
        output = flow(sample, timestep.to(torch.float32))
        sample = scheduler.step(output, timestep, sample).prev_sample
    return sample


@pytest.mark.parametrize("solver_order", [1, 2])
@pytest.mark.parametrize(("num_steps", "shift"), [(50, 8.0), (40, 3.0), (3, 5.0)])
@pytest.mark.parametrize("karras", [False, True])
def test_unipc_of_diffusers(solver_order, num_steps, shift, karras):
    config = UniPCSchedulerConfig(
        num_inference_steps=num_steps,
        shift=shift,
        solver_order=solver_order,
        use_kerras_sigma=karras,
    )
    reference = diffusers.schedulers.UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        use_karras_sigmas=karras,
        flow_shift=shift,
        solver_order=solver_order,
        solver_type="bh2",
    )
    reference.set_timesteps(
        sigmas=np.geomspace(0.01, 200.0, num_steps + 1)
        if karras
        else np.linspace(0.999, 0, num_steps + 1)[:-1]
    )
    steps = config.setup().steps
    np.testing.assert_array_equal(steps.timestep, reference.timesteps)
    assert_allclose(steps.sigma, reference.sigmas[:-1], rtol=ROUND_OFF)
    noise = rng_noise(1, *SHAPE)
    expected = diffusers_sample(reference, noise[0])
    # diffusers computes the coefficients in float32.
    assert_allclose(our_sample(config, noise), expected, atol=4e-6)


def test_diffusers_unipc_on_its_own_levels_is_another_schedule():
    reference = diffusers.schedulers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    reference.set_timesteps(40)
    sigma = UniPCSchedulerConfig(num_inference_steps=40).setup().steps.sigma
    difference = np.abs(reference.sigmas[:-1].numpy() - sigma).max()
    assert 1e-3 < difference < 5e-3


@pytest.mark.parametrize(("num_steps", "shift"), [(4, 5.0), (30, 3.0)])
def test_euler_of_diffusers(num_steps, shift):
    config = EulerSchedulerConfig(num_inference_steps=num_steps, shift=shift)
    reference = diffusers.schedulers.FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(sigmas=np.linspace(0.999, 0, num_steps + 1)[:-1])
    scheduler = config.setup()
    assert_allclose(scheduler.sigmas, reference.sigmas, rtol=ROUND_OFF)
    assert_allclose(scheduler.timesteps[:-1], reference.timesteps, rtol=ROUND_OFF)
    noise = rng_noise(1, *SHAPE)
    expected = diffusers_sample(reference, noise[0])
    assert_allclose(our_sample(config, noise), expected, atol=1e-6)


def test_diffusers_euler_with_the_distilled_timesteps():
    timesteps = (1000.0, 960.0, 888.8889, 727.2728)
    config = EulerSchedulerConfig(fixed_timesteps=(*timesteps, 0.0))
    reference = diffusers.schedulers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    reference.set_timesteps(sigmas=[timestep / 1000 for timestep in timesteps])
    noise = rng_noise(1, *SHAPE)
    expected = diffusers_sample(reference, noise[0])
    assert_allclose(our_sample(config, noise), expected, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 5.0, 8.0])
def test_training_table_of_diffusers(shift):
    """Ours is the table that diffusers' Euler scheduler is built with."""
    reference = diffusers.schedulers.FlowMatchEulerDiscreteScheduler(shift=shift)
    table = FlowMatchSchedulerConfig(shift=shift).setup()
    for actual, expected, scale in (
        (table.training_sigmas, reference.sigmas, 1),
        (table.training_timesteps, reference.timesteps, 1000),
    ):
        assert_allclose(actual, expected, rtol=ROUND_OFF, atol=scale * 1.2e-7)


def test_the_grid_covers_every_option():
    """A new field of the config must be compared with the reference, too."""
    options = set(itertools.chain.from_iterable(FLOW_MATCH))
    fields = {field.name for field in dataclasses.fields(FlowMatchSchedulerConfig)}
    # `level_dtype`, which the reference has of its latents, has a test of its own.
    assert fields - {"_target", "level_dtype"} == options
