"""One chunk of diffusion: denoise it against the cache, then commit it."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.config import Component, InstantiateConfig
from fdjax.contract.scheduler import Scheduler, SchedulerConfig
from fdjax.contract.transformer import Transformer, TransformerConfig


@flax.struct.dataclass(kw_only=True)
class FinalState:
    """What `finalize` needs of the chunk that `generate` made.

    Attributes:
        clean_latent: Patchified clean latent.  float32[B, L, C].
        control: The chunk's control, as the encoder gave it.
    """

    clean_latent: Array
    control: PyTree


class DiffusionModel(Component):
    """A transformer and a scheduler."""

    config: "DiffusionModelConfig"

    @functools.cached_property
    def transformer(self) -> Transformer:
        """The denoising network."""
        return self.config.transformer.setup()

    @functools.cached_property
    def scheduler(self) -> Scheduler:
        """The solver."""
        return self.config.scheduler.setup()

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
                draw of the chunk in the order of use, `(num_draws, *latent_shape)`.
            key: Draws what `noise` leaves out.

        Returns:
            The cache, its visible contents unchanged (keep either one, but only one of
            them after donation), and the state that `finalize` takes.

        Raises:
            ValueError: The noise has another shape, or neither noise nor key is given.
        """
        transformer, scheduler = self.transformer, self.scheduler
        initial, step_noise = split_noise(
            noise, transformer.latent_shape(cache), scheduler.num_draws, key
        )

        def predict_flow(workspace, latent, timestep):
            return transformer.predict_flow(
                params, latent, timestep, workspace, control
            )

        workspace = transformer.start(params, cache, control)
        workspace, latent = scheduler.scan(workspace, initial, predict_flow, step_noise)
        latent = transformer.postprocess(latent, control)
        state = FinalState(clean_latent=latent, control=control)
        return transformer.stop(workspace), state

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
            noise: Standard normal, `latent_shape`; used with `context_noise` only.
            key: Draws the noise if it is not given.
        """
        latent = final_state.clean_latent
        timestep = jnp.float32(self.config.context_noise)
        if self.config.context_noise > 0:
            initial, _ = split_noise(noise, latent.shape, 1, key)
            latent = self.scheduler.add_noise(latent, timestep, initial)
        return self.transformer.append(
            params, latent, timestep, cache, final_state.control
        )


def split_noise(
    noise: Array | None,
    shape: tuple[int, ...],
    num_draws: int,
    key: jax.Array | None,
) -> tuple[Array, Array]:
    """Initial noise, and one further draw per renoising step.

    Args:
        noise: None, one draw of `shape`, or `(num_draws, *shape)`.
        shape: Shape of one draw.
        num_draws: Draws that a chunk needs.
        key: Draws what `noise` leaves out.

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
    drawn = jax.random.normal(key, every, jnp.float32)
    initial = drawn[0] if noise is None else noise.astype(jnp.float32)
    return initial, drawn[1:]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionModelConfig(InstantiateConfig[DiffusionModel]):
    """Config of `DiffusionModel`."""

    _target: type = DiffusionModel

    transformer: TransformerConfig
    """Config of the denoising network."""

    scheduler: SchedulerConfig
    """Config of the solver."""

    context_noise: float = 0.0
    """Timestep, in [0, 1000], at which finished chunks are committed to the cache."""

    seed: int | None = None
    """Seed of a rollout for which no key is given; None is 0."""

    def __post_init__(self):
        if not 0 <= self.context_noise <= 1000:
            raise ValueError(
                f"context_noise is a timestep in [0, 1000], got {self.context_noise}."
            )
