import numpy as np
import pytest

import fdjax
from fdjax import schedulers
from fdjax.schedulers.table import schedule_table

CONFIGS = [
    schedulers.FlowMatchSchedulerConfig(),
    schedulers.EulerSchedulerConfig(num_inference_steps=3),
    schedulers.EulerSchedulerConfig(
        num_inference_steps=2, fixed_timesteps=(999.0, 500.0, 10.0)
    ),
    schedulers.UniPCSchedulerConfig(num_inference_steps=5),
    schedulers.UniPCSchedulerConfig(num_inference_steps=5, use_kerras_sigma=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda each: type(each).__name__)
def test_one_table_of_named_arrays_for_every_solver(config):
    table, scheduler = schedule_table(config), config.setup()
    num_steps = len(scheduler.steps.timestep)
    assert table._fields == ("timesteps", "sigmas", "needs_draw")
    for column, dtype in zip(table, (np.float32, np.float32, bool), strict=True):
        assert column.shape == (num_steps + 1,)
        assert column.dtype == dtype
    np.testing.assert_array_equal(table.timesteps[:-1], scheduler.steps.timestep)
    np.testing.assert_array_equal(table.needs_draw[:-1], scheduler.steps.needs_draw)
    assert 1 + table.needs_draw.sum() == scheduler.num_draws
    assert (np.diff(table.sigmas) < 0).all()
    assert (np.diff(table.timesteps) < 0).all()
    for field, again in zip(table, schedule_table(scheduler), strict=True):
        np.testing.assert_array_equal(field, again)


def test_the_levels_are_those_at_which_the_solver_works():
    """A network that knows x_0 is led from the noise to x_0 through these levels."""
    rng = np.random.default_rng(0)
    noise, clean = rng.normal(size=(2, 5)).astype(np.float32)
    for config in CONFIGS:
        scheduler, table = config.setup(), schedule_table(config)
        if np.any(table.needs_draw) or table.sigmas[0] != table.sigmas.max():
            continue
        start = (1 - table.sigmas[0]) * clean + table.sigmas[0] * noise
        state = scheduler.init(start)
        for index, sigma in enumerate(table.sigmas[:-1]):
            record = type(scheduler.steps)(*(row[index] for row in scheduler.steps))
            expected = (1 - sigma) * clean + sigma * noise
            np.testing.assert_allclose(state.latent, expected, atol=1e-5)
            state = scheduler.update(state, record, noise - clean, 0 * noise)
        last = table.sigmas[-1]
        expected = (1 - last) * clean + last * noise
        np.testing.assert_allclose(scheduler.result(state), expected, atol=1e-5)


def test_it_prints_a_row_per_step():
    text = str(fdjax.schedule_table(schedulers.FlowMatchSchedulerConfig()))
    lines = text.splitlines()
    assert lines[0].split() == ["step", "timestep", "sigma", "draw"]
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2", "3", "end"]
    assert lines[1].split() == ["0", "1000.0000", "1.00000000", "yes"]
    assert lines[-2].split()[-1] == lines[-1].split()[-1] == "no"
    assert lines[-1].split()[1:3] == ["0.0000", "0.00000000"]
