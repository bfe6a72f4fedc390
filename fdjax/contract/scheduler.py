"""The contract of a solver: from noise to a clean latent in one `lax.scan`.

All solvers here speak rectified flow (arXiv:2209.03003, equation 1). At the noise level
sigma, from 1 (noise) to 0 (clean),

    x_sigma = (1 - sigma) x_0 + sigma noise        flow = noise - x_0

so that `x_0 = x_sigma - sigma * flow`. A network is told the level as a timestep, about
`1000 * sigma`.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdjax.axes import Array, PyTree
from fdjax.config import Component, InstantiateConfig

PredictFlow = Callable[[PyTree, Array, Array], tuple[PyTree, Array]]
"""`(carry, x_t, timestep) -> (carry, noise - x_0)`; timestep is float32[]."""


class Scheduler(Component, abc.ABC):
    """Few-step or many-step solver; its tables are numpy constants made at setup.

    The loop is one `lax.scan` over precomputed step records.
    """

    @property
    @abc.abstractmethod
    def num_draws(self) -> int:
        """Noise tensors that one chunk needs, the initial latent included."""

    @abc.abstractmethod
    def scan(
        self,
        carry: PyTree,
        noise: Array,
        predict_flow: PredictFlow,
        step_noise: Array,
    ) -> tuple[PyTree, Array]:
        """Solves from pure noise to a clean latent, threading a carry through.

        The arithmetic is float32, with sigma and timestep exact in float32.

        Args:
            carry: State of `predict_flow`, e.g. a cache with a scratch slot.
            noise: Standard normal.  float32[...].
            predict_flow: The network.
            step_noise: Renoising draws in order of use.
                float32[num_draws - 1, ...].

        Returns:
            The carry, and the clean latent, float32[...].
        """

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

    def sample(
        self,
        noise: Array,
        predict_flow: Callable[[Array, Array], Array],
        key: jax.Array | None = None,
        *,
        step_noise: Array | None = None,
    ) -> Array:
        """`scan` for a network without state.

        Args:
            noise: Standard normal.  float32[...].
            predict_flow: `(x_t, timestep) -> noise - x_0`.
            key: Draws the renoising noise if `step_noise` is not given.
            step_noise: float32[num_draws - 1, ...].

        Raises:
            ValueError: Renoising noise is needed and neither argument gives it.
        """
        shape = (self.num_draws - 1, *noise.shape)
        if step_noise is None and self.num_draws == 1:
            step_noise = jnp.zeros(shape, jnp.float32)
        elif step_noise is None and key is not None:
            step_noise = jax.random.normal(key, shape, jnp.float32)
        elif step_noise is None:
            raise ValueError(
                f"This scheduler draws noise {self.num_draws - 1} times after the "
                f"first; give key=, or step_noise= of shape {shape}."
            )
        if step_noise.shape != shape:
            raise ValueError(
                f"step_noise must have shape {shape}, got {step_noise.shape}."
            )

        def predict(carry, x_t, timestep):
            return carry, predict_flow(x_t, timestep)

        return self.scan((), noise, predict, step_noise)[1]


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
        require(self, "num_inference_steps", self.num_inference_steps >= 1, ">= 1")
        require(self, "shift", self.shift > 0, "> 0; 1 leaves the levels as they are")
        require(self, "num_train_timesteps", self.num_train_timesteps >= 2, ">= 2")


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


def warp(sigma: Any, shift: float) -> Any:
    """The level that replaces `sigma`: shift s / (1 + (shift - 1) s).

    The timestep shifting of arXiv:2403.03206, equation 23.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def inference_sigmas(config: SchedulerConfig) -> np.ndarray:
    """The levels that the many-step solvers visit, before the final 0.

    Evenly spaced from 1 - 1 / num_train_timesteps (0.999), not from 1, then warped: the
    schedule of the official solvers (Wan-Video/Wan2.1, wan/utils/fm_solvers_unipc.py).

    Returns:
        float64[K].
    """
    first = 1.0 - 1.0 / config.num_train_timesteps
    return warp(
        np.linspace(first, 0.0, config.num_inference_steps + 1)[:-1], config.shift
    )


def add_noise_of_nearest(
    clean: Array,
    timestep: ArrayLike,
    noise: Array,
    *,
    timesteps: np.ndarray,
    sigmas: np.ndarray,
) -> Array:
    """`Scheduler.add_noise` by a table of timesteps and their levels, float32[...]."""
    clean, noise = jnp.asarray(clean, jnp.float32), jnp.asarray(noise, jnp.float32)
    distance = jnp.abs(timesteps - jnp.asarray(timestep, jnp.float32))
    sigma = jnp.asarray(sigmas)[jnp.argmin(distance)]
    return (1 - sigma) * clean + sigma * noise
