"""The contract of a solver: records of steps, and what one step does to a latent.

All solvers here speak rectified flow (arXiv:2209.03003, equation 1). At the noise level
sigma, from 1 (noise) to 0 (clean),

    x_sigma = (1 - sigma) x_0 + sigma noise        flow = noise - x_0

so that `x_0 = x_sigma - sigma * flow`. A network is told the level as a timestep, about
`1000 * sigma`.

The loop is not the solver's: whoever drives it (`fdjax.engine.diffusion.denoise`, a
training loop, a preview) calls

    state = init(noise)
    for record, draw in zip(steps, draws):      the network sees state.latent
        state = update(state, record, flow, draw)
    clean = result(state)
"""

import abc
import dataclasses
import math
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.typing import ArrayLike

from fdjax.axes import Array
from fdjax.config.base import Component, InstantiateConfig

_MOST_TIMESTEPS = 100_000  # of the table of a training


class StepRecord(Protocol):
    """What every solver's records hold besides its own; scanned over axis K."""

    @property
    def timestep(self) -> ArrayLike:
        """What the network is told, in [0, 1000].  float32[K]."""

    @property
    def needs_draw(self) -> ArrayLike:
        """Whether the step's update reads fresh noise.  bool[K]."""


class LatentState(NamedTuple):
    """The state of a solver that remembers nothing but the latent.

    Attributes:
        latent: What the network sees next.  float32[...].
    """

    latent: Array


class Scheduler(Component, abc.ABC):
    """Few-step or many-step solver; its tables are numpy constants made at setup."""

    @property
    @abc.abstractmethod
    def steps(self) -> Any:
        """The records of all steps, highest noise first: a `StepRecord` of arrays.

        A named tuple or struct whose leaves are numpy arrays with the leading axis K.
        """

    @property
    @abc.abstractmethod
    def sigmas(self) -> np.ndarray:
        """Noise levels of the steps, then the final one.  float32[K + 1]."""

    @property
    def timesteps(self) -> np.ndarray:
        """What the network is told at each step, then the end.  float32[K + 1]."""
        return np.append(self.steps.timestep, np.float32(0))

    @property
    def num_draws(self) -> int:
        """Noise tensors that one chunk needs, the initial latent included."""
        return 1 + int(np.sum(self.steps.needs_draw))

    @abc.abstractmethod
    def init(self, noise: Array) -> Any:
        """The state before the first step; its `latent` is what the network sees.

        Args:
            noise: Standard normal.  float32[...].
        """

    @abc.abstractmethod
    def update(self, state: Any, record: Any, flow: Array, draw: Array) -> Any:
        """The state after a step.

        The arithmetic is float32, with sigma and timestep exact in float32.

        Args:
            state: From `init`, or from the step before.
            record: One entry of `steps`, without the axis K.
            flow: What the network made of `state.latent`: noise - x_0.  [...].
            draw: Standard normal where `record.needs_draw`, else zeros.  float32[...].
        """

    def result(self, state: Any) -> Array:
        """The clean latent after the last step, float32[...]."""
        latent: Array = state.latent
        return latent

    @abc.abstractmethod
    def add_noise(self, clean: Array, timestep: ArrayLike, noise: Array) -> Array:
        """The clean latent at the noise level of `timestep`.

        The level is that of the nearest timestep in the solver's own table, as in
        NVIDIA/flashdreams (infra/diffusion/scheduler/).

        Args:
            clean: float32[...].
            timestep: In the units that the network is told.  float32[], traced or not.
            noise: Standard normal, shape of `clean`.

        Returns:
            float32[...].
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig(InstantiateConfig[Scheduler]):
    """Base of every scheduler's config: the warped grid of noise levels."""

    num_inference_steps: int
    """Solver steps K; the network runs once per step."""

    shift: float
    """Warp of the noise levels; above 1, more steps are spent where noise is high."""

    num_train_timesteps: int = 1000
    """Timestep of pure noise: timestep = num_train_timesteps * sigma."""

    def __post_init__(self) -> None:
        steps, last = self.num_inference_steps, self.num_train_timesteps
        most = f"<= {_MOST_TIMESTEPS}"
        require(self, "num_inference_steps", steps >= 1, ">= 1")
        require(self, "shift", self.shift > 0, "> 0; 1 leaves the levels as they are")
        require(self, "shift", self.shift < math.inf, "finite")
        require(self, "num_train_timesteps", last >= 2, ">= 2")
        require(self, "num_train_timesteps", last <= _MOST_TIMESTEPS, most)
        require(
            self,
            "num_inference_steps",
            steps <= last,
            f"<= num_train_timesteps ({last})",
        )

    def setup(self) -> Scheduler:
        """Builds the solver; refuses levels that do not lead from noise to a picture.

        Raises:
            TypeError: A field has another type than it declares.
            ValueError: The levels do not decrease within [0, 1], in float32.
        """
        scheduler = super().setup()
        sigmas = np.asarray(scheduler.sigmas, np.float32)
        inside = bool(sigmas[0] <= 1) and bool(sigmas[-1] >= 0)  # false of NaN
        steps = np.diff(sigmas)
        if not (inside and np.all(steps[:-1] < 0) and steps[-1] <= 0):
            shown = ", ".join(f"{sigma:g}" for sigma in sigmas[:8])
            raise ValueError(
                f"{type(self).__name__} must give noise levels that decrease within "
                f"[0, 1], in float32; its own are {shown}"
                f"{', ...' if len(sigmas) > 8 else ''}. Take another shift, or fewer "
                "or other timesteps."
            )
        return scheduler


def require(config: SchedulerConfig, field: str, holds: bool, requirement: str) -> None:
    """Refuses a config's value.

    Raises:
        ValueError: The condition does not hold; names class, field, requirement, value.
    """
    if not holds:
        raise ValueError(
            f"{type(config).__name__}.{field} must be {requirement}, got "
            f"{getattr(config, field)!r}."
        )
