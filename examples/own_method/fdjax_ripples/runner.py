"""Runs the ripples on a list of levels."""

import dataclasses

import jax.numpy as jnp

from fdjax import Conditions, Runner, RunnerConfig
from fdjax.run.runner import RunnerInputs


class RippleRunner(Runner):
    """Reads a list of levels, one for each chunk."""

    def read_inputs(self):
        self.read_text()
        for level in self.config.levels:
            if not -1 <= level <= 1:
                raise ValueError(f"levels must be in [-1, 1], got {level}.")
        return RunnerInputs(controls=[jnp.array([x]) for x in self.config.levels])

    def encode_conditions(self, params, inputs):
        return Conditions()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RippleRunnerConfig(RunnerConfig):
    """Config of `RippleRunner`."""

    _target: type = RippleRunner

    levels: tuple[float, ...] = (-0.5, 0.0, 0.5)
    """Brightness of each chunk, in [-1, 1]."""

    fps: int = 8
    """Frames per second of the video file."""

    pixel_height: int = 32
    """Rows of the video."""

    pixel_width: int = 64
    """Columns of the video."""
