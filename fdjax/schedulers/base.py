"""The contract of a solver: from noise to a clean latent in one `lax.scan`."""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fdjax.axes import Array, PyTree
from fdjax.config import Component

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
    def add_noise(self, clean: Array, timestep: Array, noise: Array) -> Array:
        """The clean latent at the noise level of `timestep`, float32[...]."""

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
        if step_noise is None:
            if key is None and self.num_draws > 1:
                raise ValueError(
                    f"This scheduler draws noise {self.num_draws - 1} times after the "
                    f"first; give key=, or step_noise= of shape {shape}."
                )
            key = jax.random.key(0) if key is None else key
            step_noise = jax.random.normal(key, shape, jnp.float32)
        if step_noise.shape != shape:
            raise ValueError(
                f"step_noise must have shape {shape}, got {step_noise.shape}."
            )

        def predict(carry, x_t, timestep):
            return carry, predict_flow(x_t, timestep)

        return self.scan((), noise, predict, step_noise)[1]
