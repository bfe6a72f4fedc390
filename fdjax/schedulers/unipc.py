"""UniPC: a multistep solver that corrects each step after the fact (arXiv:2302.04867).

    network at (x_k, t_k) -> x_0 estimate m_k
    corrector: redo the step k-1 -> k, now that m_k is known
    predictor: step k -> k+1 from m_k and m_{k-1}

The variant of Wan 2.1 (wan/utils/fm_solvers_unipc.py): data prediction, B(h) = expm1(h)
("bh2"), order 1 or 2, order 1 in the first and in the last predictor step.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdjax.axes import Array
from fdjax.contract.scheduler import Scheduler, SchedulerConfig, require
from fdjax.schedulers.levels import add_noise_of_nearest, inference_sigmas

# Noise scales of Cosmos-Predict2.5's solver, and the rho of arXiv:2206.00364.
_KARRAS_SIGMA_MAX, _KARRAS_SIGMA_MIN, _KARRAS_RHO = 200.0, 0.01, 7.0


class UniPCStep(NamedTuple):
    """What one step needs; scanned over the leading axis.

    With the estimates m_k (current), m_{k-1} (previous) and m_{k-2} (older):

        corrected = correct_last x_{k-1} + correct_previous m_{k-1}
                  + correct_older (m_{k-2} - m_{k-1})
                  + correct_current (m_k - m_{k-1})
        x_{k+1}   = predict_sample corrected + predict_current m_k
                  + predict_previous (m_{k-1} - m_k)

    The first step has nothing to correct: `correct_last` is 1 and x_{-1} the noise.

    Attributes:
        timestep: What the network is told, an integer.  float32[K].
        needs_draw: Nowhere.  bool[K].
        sigma: Noise level of the step.  float32[K].
        correct_last: float32[K].
        correct_previous: float32[K].
        correct_older: float32[K].
        correct_current: float32[K].
        predict_sample: float32[K].
        predict_current: float32[K].
        predict_previous: float32[K].
    """

    timestep: np.ndarray
    needs_draw: np.ndarray
    sigma: np.ndarray
    correct_last: np.ndarray
    correct_previous: np.ndarray
    correct_older: np.ndarray
    correct_current: np.ndarray
    predict_sample: np.ndarray
    predict_current: np.ndarray
    predict_previous: np.ndarray


class UniPCState(NamedTuple):
    """x before step k, and the memory of the multistep method.  float32[...] each.

    Attributes:
        latent: What the network sees next, x_k.
        last: The corrected x_{k-1}.
        previous: The estimate m_{k-1}.
        older: The estimate m_{k-2}.
    """

    latent: Array
    last: Array
    previous: Array
    older: Array


class UniPCScheduler(Scheduler):
    """Predictor-corrector of order 1 or 2; deterministic."""

    config: "UniPCSchedulerConfig"

    @property
    def sigmas(self) -> np.ndarray:
        """Noise levels of the steps, then 0.  float32[K + 1]."""
        return np.append(self.steps.sigma, np.float32(0))

    @functools.cached_property
    def steps(self) -> UniPCStep:
        """The step records, computed in float64 from float32 noise levels."""
        exact = _sigmas(self.config)
        sigmas = np.append(exact, 0.0).astype(np.float32)
        coefficients = _coefficients(sigmas, self.config.solver_order)
        # From the float64 levels: float32 ones truncate to a neighbour here and there.
        timesteps = np.trunc(exact * self.config.num_train_timesteps)
        # [K, 8] -> eight of float32[K]
        columns = np.column_stack([sigmas[:-1], coefficients]).astype(np.float32).T
        needs_draw = np.zeros(len(timesteps), bool)
        return UniPCStep(timesteps.astype(np.float32), needs_draw, *columns)

    def init(self, noise: Array) -> UniPCState:
        """The noise, and no memory; see `Scheduler.init`."""
        noise = noise.astype(jnp.float32)
        zeros = jnp.zeros_like(noise)
        return UniPCState(noise, noise, zeros, zeros)

    def update(
        self, state: UniPCState, record: UniPCStep, flow: Array, draw: Array
    ) -> UniPCState:
        """See `Scheduler.update`; reads no draw."""
        del draw
        # m_k, an estimate of x_0.
        current = state.latent - record.sigma * flow.astype(jnp.float32)
        # The corrector: x_k once more, now that m_k is known.
        corrected = (
            record.correct_last * state.last
            + record.correct_previous * state.previous
            + record.correct_older * (state.older - state.previous)
            + record.correct_current * (current - state.previous)
        )
        # The predictor: x_{k+1}.
        latent = (
            record.predict_sample * corrected
            + record.predict_current * current
            + record.predict_previous * (state.previous - current)
        )
        return UniPCState(latent, corrected, current, state.previous)

    def add_noise(self, clean: Array, timestep: ArrayLike, noise: Array) -> Array:
        """See `Scheduler.add_noise`; the fraction of the timestep is dropped first."""
        return add_noise_of_nearest(
            clean,
            jnp.trunc(timestep),
            noise,
            timesteps=self.steps.timestep,
            sigmas=self.steps.sigma,
        )


def _sigmas(config: "UniPCSchedulerConfig") -> np.ndarray:
    """Noise levels of the steps, highest first, float64[K]."""
    if not config.use_kerras_sigma:
        return inference_sigmas(config)
    # arXiv:2206.00364, equation 5, then from its noise scale to that of the flow.
    ramp = np.arange(config.num_inference_steps + 1) / config.num_inference_steps
    low, high = (s ** (1 / _KARRAS_RHO) for s in (_KARRAS_SIGMA_MIN, _KARRAS_SIGMA_MAX))
    karras = (high + ramp * (low - high)) ** _KARRAS_RHO
    return karras / (1 + karras)


def _coefficients(sigmas: np.ndarray, solver_order: int) -> np.ndarray:
    """Corrector and predictor coefficients of every step, float64[K, 7]."""
    num_steps = len(sigmas) - 1
    levels = [float(sigma) for sigma in sigmas]
    # No more than the memory there is, k + 1, and the steps that are left.
    order = [min(solver_order, k + 1, num_steps - k) for k in range(num_steps)]
    rows = []
    for k in range(num_steps):
        # The corrector redoes the step before, at the order that step had.
        correct = _corrector(levels, k, order[k - 1]) if k else (1.0, 0.0, 0.0, 0.0)
        rows.append((*correct, *_predictor(levels, k, order[k])))
    return np.array(rows)


def _predictor(sigmas: list[float], k: int, order: int) -> tuple[float, float, float]:
    """UniP from level k to k + 1: `multistep_uni_p_bh_update` of the Wan solver."""
    # h, which is infinite in the last step: expm1(-h) = -1 gives m_k itself.
    step = _log_snr(sigmas[k + 1]) - _log_snr(sigmas[k])
    current = -(1 - sigmas[k + 1]) * math.expm1(-step)
    previous = 0.0
    if order == 2:
        ratio = (_log_snr(sigmas[k - 1]) - _log_snr(sigmas[k])) / step
        # rho is 1/2 at order 2, as the Wan solver sets it without solving for it.
        previous = current * 0.5 / ratio
    return sigmas[k + 1] / sigmas[k], current, previous


def _corrector(
    sigmas: list[float], k: int, order: int
) -> tuple[float, float, float, float]:
    """UniC from level k - 1 to k: `multistep_uni_c_bh_update` of the Wan solver.

    At order 2 its weights rho solve [[1, 1], [ratio, 1]] rho = [u0, u1].
    """
    step = _log_snr(sigmas[k]) - _log_snr(sigmas[k - 1])
    phi = math.expm1(-step)
    previous = -(1 - sigmas[k]) * phi
    # rho is 1/2 at order 1.
    older, current = 0.0, previous * 0.5
    if order == 2:
        ratio = (_log_snr(sigmas[k - 2]) - _log_snr(sigmas[k - 1])) / step
        # h_phi_k of the Wan solver, and its right sides h_phi_k k! / B(h).
        k0 = phi / -step - 1
        k1 = k0 / -step - 0.5
        u0, u1 = k0 / phi, 2 * k1 / phi
        older = previous * (u0 - u1) / (1 - ratio) / ratio
        current = previous * (u1 - ratio * u0) / (1 - ratio)
    return sigmas[k] / sigmas[k - 1], previous, older, current


def _log_snr(sigma: float) -> float:
    """Half the log signal-to-noise ratio, ln((1 - sigma) / sigma); infinite at 0."""
    return math.inf if sigma == 0 else math.log(1 - sigma) - math.log(sigma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPCSchedulerConfig(SchedulerConfig):
    """Config of the UniPC predictor-corrector, the solver of Wan 2.1."""

    _target: type = UniPCScheduler

    # 50 steps and shift 5: defaults of Wan 2.1 for text to video (generate.py).
    num_inference_steps: int = 50
    """Solver steps, at least 2; one more with `use_kerras_sigma`."""

    shift: float = 5.0
    """Warp of the noise levels; of no effect with `use_kerras_sigma`."""

    solver_order: int = 2
    """Order of predictor and corrector, 1 or 2."""

    use_kerras_sigma: bool = False
    """Whether the noise levels are those of Karras et al. (EDM), from 200 to 0.01 with
    rho 7: num_inference_steps + 1 of them. Spelt as in the reference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            "num_inference_steps",
            self.num_inference_steps >= 2,
            ">= 2, as the corrector needs two steps",
        )
        require(self, "solver_order", self.solver_order in (1, 2), "1 or 2")
        levels = np.append(_sigmas(self), 0.0).astype(np.float32)
        if levels[0] >= 1 or np.any(np.diff(levels) >= 0):
            raise ValueError(
                "The noise levels must decrease from below 1, and some coincide in "
                f"float32 with num_inference_steps={self.num_inference_steps}, "
                f"shift={self.shift}, num_train_timesteps={self.num_train_timesteps}. "
                "Take fewer steps or a smaller shift."
            )
