"""Few-step flow matching with renoising, as Self-Forcing trains it (arXiv:2506.08009).

    x_0 estimate ──(renoise at sigma_k)──> x ──(network at t_k)──> x_0 estimate

Each step predicts the clean latent in full, then noises it afresh at the next level.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdjax.axes import Array
from fdjax.config import DTypeName
from fdjax.contract.scheduler import (
    LatentState,
    Scheduler,
    SchedulerConfig,
    require,
)
from fdjax.schedulers.levels import add_noise_of_nearest, rounded, warp

_TIMESTEP_DTYPES = ("float32", "int64")


class FlowMatchStep(NamedTuple):
    """What one step needs; scanned over the leading axis.

    Attributes:
        timestep: What the network is told.  float32[K].
        needs_draw: After every step but the last.  bool[K].
        sigma: Noise level of the step.  float32[K].
        keep: Weight of the estimate in what the next step sees: 1 - sigma of that
            step; 1 after the last.  float32[K].
        renoise: Weight of the fresh noise in it: sigma of the next step; 0 after the
            last.  float32[K].
    """

    timestep: np.ndarray
    needs_draw: np.ndarray
    sigma: np.ndarray
    keep: np.ndarray
    renoise: np.ndarray


class FlowMatchScheduler(Scheduler):
    """Predict x_0, renoise, repeat; the last x_0 is the result."""

    config: "FlowMatchSchedulerConfig"

    @property
    def sigmas(self) -> np.ndarray:
        """Noise levels of the steps, then 0.  float32[K + 1].

        The first latent is pure noise, whatever the first level.
        """
        return np.append(self.steps.sigma, np.float32(0))

    @functools.cached_property
    def training_sigmas(self) -> np.ndarray:
        """The warped noise levels of training, highest first, float32[1000]."""
        config = self.config
        # With one point more the last one, `sigma_min` itself, is cut off below.
        num_points = config.num_train_timesteps + config.extra_one_step
        sigmas = np.linspace(config.sigma_max, config.sigma_min, num_points)
        return warp(sigmas[: config.num_train_timesteps], config.shift).astype(
            np.float32
        )

    @functools.cached_property
    def training_timesteps(self) -> np.ndarray:
        """Timesteps of the training levels, float32[1000]."""
        return self.training_sigmas * np.float32(self.config.num_train_timesteps)

    @functools.cached_property
    def steps(self) -> FlowMatchStep:
        """The step records.

        With warping, raw timestep t names entry `num_train_timesteps - t` of the
        training table. Its end, t = 0, has the timestep 0 and the smallest level of the
        table, as in NVIDIA/flashdreams (infra/diffusion/scheduler/fm.py).
        """
        config = self.config
        raw = np.array(config.denoising_timesteps)
        if config.warp_denoising_step:
            index = config.num_train_timesteps - raw
            timestep = np.append(self.training_timesteps, np.float32(0))[index]
            # t = 0 is one past the table: it takes the last level.
            index = np.minimum(index, config.num_train_timesteps - 1)
        else:
            timestep = raw.astype(np.float32)
            # [K, 1] against [1000] -> [K, 1000]
            distance = np.abs(self.training_timesteps - timestep[:, None])
            index = distance.argmin(axis=1)
        if config.timestep_dtype == "int64":
            # Still float32: what an integer type loses is the fraction.
            timestep = np.trunc(timestep)
        sigma = self.training_sigmas[index]
        # The level that the next step sees; after the last one nothing is noised.
        following = np.append(sigma[1:], np.float32(0))
        return FlowMatchStep(
            timestep=timestep,
            needs_draw=np.arange(len(raw)) < len(raw) - 1,
            sigma=self._rounded(sigma),
            keep=self._rounded(np.float32(1) - following),
            renoise=self._rounded(following),
        )

    def _rounded(self, weights: np.ndarray) -> np.ndarray:
        return rounded(weights, self.config.level_dtype)

    def init(self, noise: Array) -> LatentState:
        """The noise itself; see `Scheduler.init`."""
        return LatentState(noise.astype(jnp.float32))

    def update(
        self, state: LatentState, record: FlowMatchStep, flow: Array, draw: Array
    ) -> LatentState:
        """See `Scheduler.update`."""
        # x_0 = x_sigma - sigma flow, then noised afresh at the next level.
        clean = state.latent - record.sigma * flow.astype(jnp.float32)
        return LatentState(record.keep * clean + record.renoise * draw)

    def add_noise(self, clean: Array, timestep: ArrayLike, noise: Array) -> Array:
        """See `Scheduler.add_noise`; the table is that of training."""
        return add_noise_of_nearest(
            clean,
            timestep,
            noise,
            timesteps=self.training_timesteps,
            sigmas=self.training_sigmas,
            dtype=self.config.level_dtype,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatchSchedulerConfig(SchedulerConfig):
    """Config of the few-step solver that renoises, as Self-Forcing uses it."""

    _target: type = FlowMatchScheduler

    num_inference_steps: int = 4
    """Solver steps; as many as `denoising_timesteps` has entries."""

    # As NVIDIA/flashdreams ships Self-Forcing; its authors' own config says 5.
    shift: float = 8.0
    """Warp of the noise levels; above 1, more steps are spent where noise is high."""

    denoising_timesteps: tuple[int, ...] = (1000, 750, 500, 250)
    """Timestep of each step before warping, decreasing, in [0, num_train_timesteps]."""

    warp_denoising_step: bool = True
    """Whether `shift` moves the denoising timesteps; if not, they are used as given,
    with the noise level of the nearest warped timestep of training."""

    sigma_max: float = 1.0
    """Highest noise level of the training table before warping, in (0, 1]."""

    sigma_min: float = 0.0
    """Lowest noise level of the training table before warping, in [0, sigma_max)."""

    extra_one_step: bool = True
    """Whether the training table stops one point before `sigma_min`, as Wan's does."""

    level_dtype: DTypeName = "float32"
    """float32, or bfloat16: weights of latents are rounded, as they are where latents
    are bfloat16 in NVIDIA/flashdreams (infra/diffusion/scheduler/fm.py): the level
    0.8036 and its complement become 0.8047 and 0.1963. Sums are float32 still."""

    timestep_dtype: str = "float32"
    """float32, or int64: the network is told the timestep without its fraction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # A config is hashable, and a list, as JSON gives one, is not.
        object.__setattr__(self, "denoising_timesteps", tuple(self.denoising_timesteps))
        raw, last = self.denoising_timesteps, self.num_train_timesteps
        require(
            self,
            "num_inference_steps",
            self.num_inference_steps == len(raw),
            f"{len(raw)}, the number of denoising_timesteps {raw}",
        )
        require(
            self,
            "denoising_timesteps",
            all(int(t) == t and 0 <= t <= last for t in raw),
            f"integers from 0 to num_train_timesteps ({last})",
        )
        require(
            self,
            "denoising_timesteps",
            raw[0] > 0 and all(a > b for a, b in itertools.pairwise(raw)),
            "decreasing from above 0: each step has less noise than the one before",
        )
        require(self, "sigma_max", 0 < self.sigma_max <= 1, "in (0, 1]")
        require(
            self,
            "sigma_min",
            0 <= self.sigma_min < self.sigma_max,
            f"in [0, sigma_max), sigma_max being {self.sigma_max}",
        )
        require(
            self,
            "timestep_dtype",
            self.timestep_dtype in _TIMESTEP_DTYPES,
            f"one of {', '.join(_TIMESTEP_DTYPES)}",
        )
