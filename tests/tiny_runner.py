"""A method on the tiny pipeline, steered by one number per chunk."""

import dataclasses

import jax
import jax.numpy as jnp

from fdjax.contract.conditioner import Conditions
from fdjax.run.runner import Runner, RunnerConfig, RunnerInputs
from tests import tiny


class TinyRunner(Runner):
    def read_inputs(self):
        if self.config.control < 0:
            raise ValueError(f"control must be at least 0, got {self.config.control}.")
        controls = [jnp.full((1,), self.config.control)] * self.config.num_controls
        return RunnerInputs(controls=controls)

    def encode_conditions(self, params, inputs):
        assert params == {}
        return Conditions(text=jax.random.normal(jax.random.key(1), (1, 3, 4)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyRunnerConfig(RunnerConfig):
    """Runs the tiny pipeline."""

    _target: type = TinyRunner

    control: float = 0.1
    """What every chunk is steered by."""

    num_controls: int = 100
    """Controls before the run ends."""


CONFIG = TinyRunnerConfig(
    runner_name="tiny",
    description="A tiny pipeline.",
    pipeline=tiny.CONFIG,
    total_blocks=4,
    pixel_height=6,
    pixel_width=8,
    fps=12,
    random_weights=True,
)
RUNNER_CONFIGS = {"tiny": CONFIG}
