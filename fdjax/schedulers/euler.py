"""The explicit Euler solver for the flow."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdjax.axes import Array
from fdjax.contract.scheduler import (
    LatentState,
    Scheduler,
    SchedulerConfig,
    require,
)
from fdjax.schedulers.levels import add_noise_of_nearest, inference_sigmas


class EulerStep(NamedTuple):
    """What one step needs; scanned over the leading axis.

    Attributes:
        timestep: What the network is told.  float32[K].
        needs_draw: Nowhere.  bool[K].
        sigma_change: Next noise level minus this one, negative.  float32[K].
    """

    timestep: np.ndarray
    needs_draw: np.ndarray
    sigma_change: np.ndarray


class EulerScheduler(Scheduler):
    """`x += (sigma_next - sigma) * flow`, from the highest level to 0."""

    config: "EulerSchedulerConfig"

    @property
    def timesteps(self) -> np.ndarray:
        """What the network is told, not truncated; then the end.  float32[K + 1]."""
        return self._grid[0]

    @property
    def sigmas(self) -> np.ndarray:
        """Noise levels of the steps, then the final one.  float32[K + 1]."""
        return self._grid[1]

    @functools.cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Timesteps, not truncated, and their levels; then the end.  float32[K + 1]."""
        config = self.config
        last = np.float32(config.num_train_timesteps)
        if config.fixed_timesteps is not None:
            timesteps = np.array(config.fixed_timesteps, np.float32)
            # A distilled schedule names its timesteps; they are not warped again.
            return timesteps, timesteps / last
        # float64 up to here, rounded once.
        sigmas = np.append(inference_sigmas(config), 0.0).astype(np.float32)
        return sigmas * last, sigmas

    @functools.cached_property
    def steps(self) -> EulerStep:
        """The step records."""
        timesteps = self._grid[0][:-1]
        return EulerStep(
            timestep=timesteps,
            needs_draw=np.zeros(len(timesteps), bool),
            # [K + 1] -> [K]
            sigma_change=np.diff(self.sigmas),
        )

    def init(self, noise: Array) -> LatentState:
        """The noise itself; see `Scheduler.init`."""
        return LatentState(noise.astype(jnp.float32))

    def update(
        self, state: LatentState, record: EulerStep, flow: Array, draw: Array
    ) -> LatentState:
        """See `Scheduler.update`; reads no draw."""
        del draw
        # dx / dsigma = noise - x_0 = flow, as x = (1 - sigma) x_0 + sigma noise.
        # float32, whatever the network's dtype: many small changes add up.
        return LatentState(
            state.latent + record.sigma_change * flow.astype(jnp.float32)
        )

    def add_noise(self, clean: Array, timestep: ArrayLike, noise: Array) -> Array:
        """See `Scheduler.add_noise`; the table has the final level too."""
        return add_noise_of_nearest(
            clean, timestep, noise, timesteps=self._grid[0], sigmas=self.sigmas
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerSchedulerConfig(SchedulerConfig):
    """Config of the explicit Euler solver."""

    _target: type = EulerScheduler

    num_inference_steps: int = 4
    """Euler steps; the network runs once per step."""

    shift: float = 5.0
    """Warp of the noise levels; of no effect with `fixed_timesteps`."""

    fixed_timesteps: tuple[float, ...] | None = None
    """Timesteps of a distilled schedule, num_inference_steps + 1 decreasing values of
    which the last is usually 0; None derives them from the warped grid."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fixed_timesteps is None:
            return
        # A config is hashable, and a list, as JSON gives one, is not.
        object.__setattr__(self, "fixed_timesteps", tuple(self.fixed_timesteps))
        timesteps, last = self.fixed_timesteps, self.num_train_timesteps
        require(
            self,
            "fixed_timesteps",
            len(timesteps) == self.num_inference_steps + 1,
            f"num_inference_steps + 1 = {self.num_inference_steps + 1} values",
        )
        require(
            self,
            "fixed_timesteps",
            all(last >= a > b >= 0 for a, b in itertools.pairwise(timesteps)),
            f"decreasing, within [0, num_train_timesteps] ({last})",
        )
