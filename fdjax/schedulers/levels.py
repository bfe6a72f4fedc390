"""Grids of noise levels, and the table look-up that adding noise needs."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from fdjax.axes import Array
from fdjax.contract.scheduler import SchedulerConfig


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
    levels: np.ndarray = warp(
        np.linspace(first, 0.0, config.num_inference_steps + 1)[:-1], config.shift
    )
    return levels


def add_noise_of_nearest(
    clean: Array,
    timestep: ArrayLike,
    noise: Array,
    *,
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """`Scheduler.add_noise` by a table of timesteps and their levels, float32[...].

    The level and its complement are rounded to `dtype`, each by itself.
    """
    clean, noise = jnp.asarray(clean, jnp.float32), jnp.asarray(noise, jnp.float32)
    # The table's levels, not timestep / 1000: the reference snaps to the nearest
    # entry, while the network is told the timestep itself.
    distance = jnp.abs(timesteps - jnp.asarray(timestep, jnp.float32))
    nearest = jnp.argmin(distance)
    # Rounded in numpy: a compiler may leave out a conversion there and back.
    keep, renoise = (
        jnp.asarray(rounded(weights, dtype))[nearest]
        for weights in (np.float32(1) - sigmas, sigmas)
    )
    return keep * clean + renoise * noise


def rounded(weights: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Numbers as a dtype holds them.  float32[...]."""
    return weights.astype(jnp.dtype(dtype)).astype(np.float32)
