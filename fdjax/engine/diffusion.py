"""One chunk of diffusion: denoise it against the cache, then commit it."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array, Params, PyTree
from fdjax.config import Component, InstantiateConfig, Seed
from fdjax.contract.scheduler import Scheduler, SchedulerConfig
from fdjax.contract.transformer import FlowNetwork, Transformer, TransformerConfig
from fdjax.sharding import gathered

PredictFlow = Callable[[PyTree, Array, Array], tuple[PyTree, Array]]
"""`(carry, x_t, timestep) -> (carry, noise - x_0)`; timestep is float32[]."""

BeginSegment = Callable[[Array], PredictFlow]
"""What predicts some of the steps, given the latent that the first of them sees."""


@flax.struct.dataclass(kw_only=True)
class FinalState:
    """What `finalize` needs of the chunk that `generate` made.

    Attributes:
        clean: Patchified clean latent.  float32[B, L, C].
        residue: What the transformer keeps of the chunk; see `Transformer.release`.
    """

    clean: Array
    residue: PyTree


def denoise(
    scheduler: Scheduler,
    carry: PyTree,
    noise: Array,
    draws: Array,
    predict_flow: PredictFlow | Sequence[tuple[int, BeginSegment]],
) -> tuple[PyTree, Array]:
    """Solves from pure noise to a clean latent, threading a carry through.

    One `lax.scan` over the solver's records, or one per segment.

    Args:
        scheduler: The solver.
        carry: State of `predict_flow`, e.g. a workspace with a scratch slot.
        noise: Standard normal.  float32[...].
        draws: Further draws in order of use.  float32[num_draws - 1, ...].
        predict_flow: The network; or the first step of each segment, ascending from 0,
            and what gives its network.

    Returns:
        The carry, and the clean latent, float32[...].

    Raises:
        ValueError: The segments do not begin at ascending steps of the solver, or
            `draws` are of another number.
    """
    steps = scheduler.steps
    num_steps = len(scheduler.steps.needs_draw)
    segments = predict_flow
    if not isinstance(segments, Sequence):
        whole = segments
        segments = [(0, lambda latent: whole)]
    bounds = [*(first for first, _ in segments), num_steps]
    if bounds[0] != 0 or any(a >= b for a, b in itertools.pairwise(bounds)):
        raise ValueError(
            f"Segments must begin at step 0 and ascend within the solver's {num_steps} "
            f"steps, got {bounds[:-1]}."
        )
    draws = _by_step(scheduler, draws)
    state = carry, _gathered(scheduler.init(noise))
    for (first, begin), last in zip(segments, bounds[1:], strict=True):
        # Outside of the scan: what it brings is brought once.
        predict = begin(state[1].latent)

        def step(
            state: tuple[PyTree, Any], inputs: tuple[Any, Array], predict: Any = predict
        ) -> tuple[tuple[PyTree, Any], None]:
            (carry, solver), (record, draw) = state, inputs
            carry, flow = predict(carry, solver.latent, record.timestep)
            # A flow that broadcasts would give a latent, and a wrong one.
            chex.assert_equal_shape([flow, solver.latent])
            solver = scheduler.update(solver, record, flow, draw)
            return (carry, _gathered(solver)), None

        # [K, ...] -> the steps of this segment
        records = jax.tree.map(lambda column: column[first:last], steps)  # noqa: B023
        state, _ = jax.lax.scan(step, state, (records, draws[first:last]))
    carry, solver = state
    return carry, scheduler.result(solver)


def _gathered(solver: PyTree) -> PyTree:
    """A solver's state with the latent, which is small, on every device of a mesh."""
    return jax.tree.map(lambda x: gathered(x) if x is solver.latent else x, solver)


def sample(
    scheduler: Scheduler,
    noise: Array,
    predict_flow: Callable[[Array, Array], Array],
    key: jax.Array | None = None,
    *,
    draws: Array | None = None,
) -> Array:
    """`denoise` for a network without state.

    Args:
        scheduler: The solver.
        noise: Standard normal.  float32[...].
        predict_flow: `(x_t, timestep) -> noise - x_0`.
        key: Makes the further draws if they are not given.
        draws: float32[num_draws - 1, ...].

    Raises:
        ValueError: Further draws are needed and neither argument gives them.
    """
    shape = (scheduler.num_draws - 1, *noise.shape)
    if draws is None and shape[0] == 0:
        draws = jnp.zeros(shape, jnp.float32)
    elif draws is None and key is not None:
        draws = jax.random.normal(key, shape, jnp.float32)
    elif draws is None:
        raise ValueError(
            f"This scheduler draws noise {shape[0]} times after the first; give key=, "
            f"or draws= of shape {shape}."
        )

    def predict(carry: PyTree, x_t: Array, timestep: Array) -> tuple[PyTree, Array]:
        return carry, predict_flow(x_t, timestep)

    return denoise(scheduler, (), noise, draws, predict)[1]


def _by_step(scheduler: Scheduler, draws: Array) -> Array:
    """The draws by step, zeros where a step needs none.  float32[K, ...].

    Raises:
        ValueError: They are of another number.
    """
    needs = np.asarray(scheduler.steps.needs_draw)
    if draws.shape[0] != needs.sum():
        raise ValueError(
            f"draws must have shape {(int(needs.sum()), *draws.shape[1:])}, one for "
            f"each step that needs one, got {draws.shape}."
        )
    # A scan reads a draw at every step; who needs none gets zeros and ignores them.
    by_step = jnp.zeros((len(needs), *draws.shape[1:]), jnp.float32)
    return by_step.at[np.flatnonzero(needs)].set(draws.astype(jnp.float32))


def _begin(network: FlowNetwork, params: Params, latent: Array) -> PredictFlow:
    """A network with its weights, as `denoise` takes it."""
    return functools.partial(network.predict_flow, network.weights(params, latent))


class DiffusionModel(Component):
    """A transformer and a scheduler."""

    config: "DiffusionModelConfig"

    @functools.cached_property
    def transformer(self) -> Transformer:
        """The denoising network."""
        transformer: Transformer = self.config.transformer.setup()
        return transformer

    @functools.cached_property
    def scheduler(self) -> Scheduler:
        """The solver."""
        scheduler: Scheduler = self.config.scheduler.setup()
        return scheduler

    @functools.cached_property
    def first(self) -> "DiffusionModel":
        """What generates a session's first chunk, by the same weights and caches."""
        scheduler = self.config.first_scheduler
        if scheduler is None:
            return self
        own = dataclasses.replace(
            self.config, scheduler=scheduler, first_scheduler=None
        )
        model: DiffusionModel = own.setup()
        return model

    def generate(
        self,
        params: Params,
        cache: PyTree,
        control: PyTree,
        noise: Array | None = None,
        *,
        key: jax.Array | None = None,
    ) -> tuple[PyTree, FinalState]:
        """Denoises one chunk.

        Args:
            params: The transformer's weights.
            cache: The transformer's cache.
            control: What the encoder gave for this chunk, or None.
            noise: Standard normal noise: the initial latent, `latent_shape`, or every
                draw of the chunk in the order of use, `(num_draws, *latent_shape)`, or
                also that of `finalize` behind them, `num_draws + 1`. Instead of tokens
                [B, L, C] it may hold latents [B, T, H, W, C].
            key: One per session; draw what `noise` leaves out.  key[B].

        Returns:
            The cache, its visible contents unchanged (keep either one, but only one of
            them after donation), and the state that `finalize` takes.

        Raises:
            ValueError: The noise has another shape, or neither noise nor key is given.
        """
        transformer, scheduler = self.transformer, self.scheduler
        shape, num_draws = transformer.latent_shape(cache), scheduler.num_draws
        noise = self._tokens(noise, cache)
        if noise is not None and noise.shape == (num_draws + 1, *shape):
            # [draw, B, L, C]; the last one is that of `finalize`.
            noise = noise[:-1]
        initial, draws = split_noise(noise, shape, num_draws, key)
        segments = [
            (first, functools.partial(_begin, network, params))
            for first, network in transformer.segments(scheduler.steps.timestep)
        ]
        workspace = transformer.start(params, cache, control)
        workspace, latent = denoise(scheduler, workspace, initial, draws, segments)
        cache, residue = transformer.release(workspace)
        clean = gathered(transformer.postprocess(residue, latent))
        chex.assert_shape(clean, latent.shape)
        return cache, FinalState(clean=clean, residue=residue)

    def finalize(
        self,
        params: Params,
        cache: PyTree,
        final_state: FinalState,
        noise: Array | None = None,
        *,
        key: jax.Array | None = None,
    ) -> PyTree:
        """Commits the chunk that `generate` made; returns the new cache.

        With `context_noise` above 0 the latent is noised to that timestep first, as
        NVIDIA/flashdreams does in its `DiffusionModel.finalize`.

        Args:
            params: The transformer's weights.
            cache: The transformer's cache.
            final_state: From `generate`.
            noise: Standard normal, `latent_shape` or a latent [B, T, H, W, C]; or all
                noise of the chunk, `num_draws + 1`, of which the last is taken. Used
                with `context_noise` only.
            key: One per session; draw the noise if it is not given.  key[B].
        """
        latent = final_state.clean
        timestep = jnp.float32(self.config.context_noise)
        if self.config.context_noise > 0:
            noise = self._tokens(noise, cache)
            every = (self.scheduler.num_draws + 1, *latent.shape)
            if noise is not None and noise.shape == every:
                # [draw, B, L, C] -> [B, L, C]
                noise = noise[-1]
            initial, _ = split_noise(noise, latent.shape, 1, key)
            latent = self.scheduler.add_noise(latent, timestep, initial)
        return self.transformer.commit(
            params, cache, final_state.residue, latent, timestep
        )

    def _tokens(self, noise: Array | None, cache: PyTree) -> Array | None:
        """Noise as tokens: [..., B, T, H, W, C] to [..., B, L, C], others as they are.

        Raises:
            ValueError: The latents are of another size.
        """
        if noise is None or noise.ndim < 5:
            return noise
        transformer = self.transformer
        tokens = jnp.zeros(transformer.latent_shape(cache))
        # The shape [B, T, H, W, C] alone; nothing is computed.
        size = jax.eval_shape(lambda: transformer.unpatchify(tokens, cache)).shape
        if noise.shape[-5:] != size or noise.ndim > 6:
            raise ValueError(
                f"noise must have shape {size} as a latent [B, T, H, W, C], and may "
                f"have the draws in front, got {noise.shape}."
            )
        if noise.ndim == 5:
            return transformer.patchify(noise)
        # [draw, B, T, H, W, C] -> [draw, B, L, C]
        return jax.vmap(transformer.patchify)(noise)


def split_noise(
    noise: Array | None,
    shape: tuple[int, ...],
    num_draws: int,
    key: jax.Array | None,
) -> tuple[Array, Array]:
    """Initial noise, and the further draws of a chunk.

    A session's noise depends on its own key alone, whoever shares its batch.

    Args:
        noise: None, one draw of `shape`, or `(num_draws, *shape)`.
        shape: Shape of one draw, B first.
        num_draws: Draws that a chunk needs.
        key: One per session; draw what `noise` leaves out.  key[B].

    Returns:
        float32[*shape] and float32[num_draws - 1, *shape].

    Raises:
        ValueError: The shape fits neither form, or draws are missing without a key.
    """
    every = (num_draws, *shape)
    if noise is not None and noise.shape not in (shape, every):
        raise ValueError(
            f"noise must have shape {shape} (the initial latent) or {every} (every "
            f"draw of the chunk), got {noise.shape}."
        )
    if noise is not None and noise.shape == every:
        return noise[0].astype(jnp.float32), noise[1:].astype(jnp.float32)
    if key is None:
        if noise is not None and num_draws == 1:
            return noise.astype(jnp.float32), jnp.zeros((0, *shape), jnp.float32)
        raise ValueError(
            f"A chunk needs {num_draws} draws of noise; give key=, or noise= of shape "
            f"{every}."
        )
    if key.shape != shape[:1]:
        raise ValueError(
            f"key must hold one key per session, shape {shape[:1]}, got {key.shape}."
        )

    def draw(key: jax.Array) -> Array:
        return jax.random.normal(key, (num_draws, *shape[1:]), jnp.float32)

    # [B, draw, L, C]; the same on every device of a mesh, to the bit.
    drawn = gathered(jax.vmap(draw)(key))
    initial = drawn[:, 0] if noise is None else noise.astype(jnp.float32)
    return initial, drawn[:, 1:].swapaxes(0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionModelConfig(InstantiateConfig[DiffusionModel]):
    """Config of `DiffusionModel`."""

    _target: type = DiffusionModel

    transformer: TransformerConfig
    """Config of the denoising network."""

    scheduler: SchedulerConfig
    """Config of the solver."""

    first_scheduler: SchedulerConfig | None = None
    """Config of the solver of a session's first chunk, which has nothing to go on;
    None: that of every chunk."""

    context_noise: float = 0.0
    """Timestep, in [0, 1000], at which finished chunks are committed to the cache."""

    seed: Seed | None = None
    """Seed of a rollout for which no key is given; None is 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.context_noise <= 1000:
            raise ValueError(
                f"context_noise is a timestep in [0, 1000], got {self.context_noise}."
            )
