"""What a solver does, as one table: for comparisons with other implementations."""

from typing import NamedTuple

import numpy as np

from fdjax.contract.scheduler import Scheduler, SchedulerConfig


class ScheduleTable(NamedTuple):
    """One row per step, and a last one for where the solver ends; prints as a table.

    Attributes:
        timesteps: What the network is told at each step, then the end.
            float32[K + 1].
        sigmas: Noise level of the latent that the network sees at each step, then the
            final one.  In [0, 1], float32[K + 1].
        needs_draw: Whether the step ends with fresh noise; the last row is False.
            bool[K + 1].
    """

    timesteps: np.ndarray
    sigmas: np.ndarray
    needs_draw: np.ndarray

    def __str__(self) -> str:
        lines = ["step    timestep       sigma  draw"]
        for index, row in enumerate(zip(*self, strict=True)):
            timestep, sigma, draw = row
            step = "end" if index == len(self.timesteps) - 1 else str(index)
            mark = "yes" if draw else "no"
            lines.append(f"{step:>4}{timestep:12.4f}{sigma:12.8f}{mark:>6}")
        return "\n".join(lines)


def schedule_table(scheduler: Scheduler | SchedulerConfig) -> ScheduleTable:
    """The timesteps and noise levels of a solver, in one form for all of them.

    print(fdjax.schedule_table(config.pipeline.diffusion_model.scheduler))

    Args:
        scheduler: A solver, or its config.
    """
    if isinstance(scheduler, SchedulerConfig):
        scheduler = scheduler.setup()
    return ScheduleTable(
        timesteps=np.asarray(scheduler.timesteps, np.float32),
        sigmas=np.asarray(scheduler.sigmas, np.float32),
        # The end is no step.  [K] -> [K + 1]
        needs_draw=np.append(np.asarray(scheduler.steps.needs_draw, bool), False),
    )
