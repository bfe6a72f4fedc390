"""Schedules that no solver can walk, whoever makes them."""

import dataclasses

import numpy as np
import pytest

from fdjax.contract.scheduler import SchedulerConfig
from fdjax.schedulers import EulerSchedulerConfig, UniPCSchedulerConfig
from tests import tiny


def plugin(levels):
    class OwnScheduler(tiny.TwoStepScheduler):
        sigmas = np.array(levels, np.float32)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OwnConfig(SchedulerConfig):
        _target: type = OwnScheduler
        num_inference_steps: int = 2
        shift: float = 1.0

    return OwnConfig()


@pytest.mark.parametrize(
    "levels",
    [
        (0.5, 1.0, 0.0),
        (1.0, 1.0, 0.0),
        (2.0, 1.0, 0.0),
        (1.0, 0.5, -0.1),
        (np.nan, 0.5, 0.0),
        (1.0, np.nan, 0.0),
    ],
)
def test_levels_must_lead_from_noise_to_a_picture(levels):
    with pytest.raises(ValueError, match=r"OwnConfig must give noise levels that decr"):
        plugin(levels).setup()


@pytest.mark.parametrize("levels", [(1.0, 0.5, 0.0), (0.9, 0.1, 0.1)])
def test_others_are_taken(levels):
    plugin(levels).setup()


@pytest.mark.parametrize("kind", [EulerSchedulerConfig, UniPCSchedulerConfig])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_inference_steps": 1001},
            r"<= num_train_timesteps \(1000\), got",
        ),
        ({"num_inference_steps": 10**9}, "must be <= num_train_timesteps"),
        ({"num_inference_steps": -1}, "must be >= 1"),
        ({"shift": float("inf")}, "shift must be finite"),
        ({"num_train_timesteps": 2**31 - 1}, "must be <= 100000"),
    ],
)
def test_numbers_without_a_schedule_are_refused(kind, fields, message):
    with pytest.raises(ValueError, match=message):
        kind(**fields)
