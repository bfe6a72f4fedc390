"""Few-step distillation on the model's own rollouts, by distribution matching.

The base model needs many solver steps for a sharp picture, and sees only perfect or
mildly wrong history in its training: few steps blur, and over hundreds of chunks the
blur feeds on itself. Here a few-step generator, which starts as a copy of the base
model, is trained on histories that it made itself, by streaming with its cache
(Self-Forcing, arXiv:2506.08009). Its chunks are drawn towards what the base model holds
probable after the same history, with the gradient of the reverse KL divergence as the
difference of two denoisers, the frozen base model and a critic that follows the
generator (DMD, arXiv:2311.18828; DMD2, arXiv:2405.14867). No ground truth is needed
after the first frame, so rollouts can be long.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.engine.diffusion import DiffusionModel
from fdjax.schedulers.flow_match import FlowMatchScheduler
from fdjax_models.methods.maze_world.encoder import control_features
from fdjax_models.methods.maze_world.training.data import Clip
from fdjax_models.methods.maze_world.training.denoiser import Denoiser
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl

_CHUNKS_OF_HISTORY = 4
"""Chunks at the start of a piece cut out of a rollout that are context only."""
_NORM_FLOOR = 0.1
"""Smallest divisor of the generator's gradient; latents have unit variance."""


@flax.struct.dataclass(kw_only=True)
class Pieces:
    """Pieces of rollouts, to train on.

    Attributes:
        latent: Patchified.  [B, T L, C].
        controls: float32[B, T, 4, 2].
        tokens: Tokens of the prompts.  int32[B, P].
        is_first: Which chunk began its rollout.  bool[B, T].
        weight: Weight of each chunk's loss; 0 for given images, and for the first
            chunks of a piece from the middle, whose history is cut off.  float32[B, T].
    """

    latent: Array
    controls: Array
    tokens: Array
    is_first: Array
    weight: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distiller:
    """What is trained, and how.

    Attributes:
        denoiser: The network, all chunks of a piece in one pass.
        model: The same network streaming, with the few-step solver that ships.
        first_chunk_weight: Weight of a first chunk made from the prompt alone.
        shift: Skews the noise levels of the critic's inputs upwards.
    """

    denoiser: Denoiser
    model: DiffusionModel
    first_chunk_weight: float = 3.0
    shift: float = 3.0

    def rollout(
        self, params: Params, starts: Clip, has_image: Array, key: jax.Array
    ) -> Array:
        """Streams whole rollouts, with the cache, as they are at inference.

        Args:
            params: Holds "transformer" and "text_encoder".
            starts: The first latent frame in `video`, [B, 1, H, W, C], and the controls
                of all chunks, [B, T, 4, 2].
            has_image: Whether the first frame is given.  bool[B].
            key: A PRNG key.

        Returns:
            Patchified latents.  float32[B, T L, C].
        """
        model, weights = self.model, params["transformer"]
        prompt = params["text_encoder"]["table"][starts.tokens]
        cache = model.transformer.initialize_cache(
            weights,
            Conditions(text=prompt),
            self.denoiser.height,
            self.denoiser.width,
        )
        image = starts.video.astype(jnp.float32)
        num_chunks = starts.controls.shape[1]

        def step(cache: PyTree, inputs: Any) -> tuple[PyTree, Array]:
            controls, index, key = inputs
            is_first = index == 0
            # bool[B, 1, 1, 1, 1] over [B, 1, H, W, C]
            mask = (is_first & has_image)[:, None, None, None, None]
            control = WanControl(
                image=ImageControl(
                    latent=image,
                    mask=jnp.broadcast_to(mask, image.shape).astype(jnp.float32),
                ),
                vector_features=control_features(controls, is_first),
            )
            cache, state = model.generate(
                weights, cache, control, key=jax.random.split(key, len(image))
            )
            cache = model.finalize(weights, cache, state)
            return cache, state.clean

        keys = jax.random.split(key, num_chunks)
        # [B, T, 4, 2] -> [T, B, 4, 2]
        inputs = starts.controls.swapaxes(0, 1), jnp.arange(num_chunks), keys
        _, latents = jax.lax.scan(step, cache, inputs)  # [T, B, L, C]
        # [B, T, L, C] -> [B, T L, C]
        chunks = latents.swapaxes(0, 1)
        return chunks.reshape(len(image), -1, chunks.shape[-1])

    def cut(
        self,
        rollouts: Array,
        starts: Clip,
        has_image: Array,
        key: jax.Array,
        count: int,
        num_chunks: int,
    ) -> Pieces:
        """Cuts random pieces out of rollouts; every third one is a beginning.

        Args:
            rollouts: From `rollout`.  [R, S L, C].
            starts: What they were made from.
            has_image: bool[R].
            key: A PRNG key.
            count: Pieces B.
            num_chunks: Chunks T of a piece.
        """
        length = self.denoiser.tokens_per_chunk
        keys = jax.random.split(key, 3)
        # Pieces overlap and repeat: any row, any start.  int32[B] each
        which = jax.random.randint(keys[0], (count,), 0, len(rollouts))
        last = starts.controls.shape[1] - num_chunks
        begin = jax.random.randint(keys[1], (count,), 0, last + 1)
        begin = jnp.where(jax.random.bernoulli(keys[2], 1 / 3, (count,)), 0, begin)

        def slices(array: Array, unit: int) -> Array:
            # [R, S unit, ...] -> [B, T unit, ...], each row from a chunk of its own on
            return jax.vmap(
                lambda row, at: jax.lax.dynamic_slice_in_dim(
                    row, at * unit, num_chunks * unit
                )
            )(array[which], begin)

        position = jnp.arange(num_chunks)
        # bool[B, 1], then bool[B, T]
        is_start = (begin == 0)[:, None]
        is_first = is_start & (position == 0)
        # float32[B, T]
        of_start = jnp.where(
            is_first,
            jnp.where(has_image[which], 0.0, self.first_chunk_weight)[:, None],
            1.0,
        )
        return Pieces(
            latent=slices(rollouts, length),
            controls=slices(starts.controls, 1),
            tokens=starts.tokens[which],
            is_first=is_first,
            weight=jnp.where(is_start, of_start, position >= _CHUNKS_OF_HISTORY),
        )

    def inputs(
        self, params: Params, pieces: Pieces, key: jax.Array
    ) -> tuple[Array, Array]:
        """The generator's inputs at a random solver step of each chunk.

        All steps before it are taken by the generator itself, each chunk after the
        history of its piece.

        Returns:
            Noisy latents, [B, T L, C], and their levels, float32[B, T].
        """
        scheduler = self.model.scheduler
        assert isinstance(scheduler, FlowMatchScheduler)  # whose steps renoise
        sigma = jnp.asarray(scheduler.steps.sigma)
        keys = jax.random.split(key, len(sigma) + 1)
        shape = pieces.weight.shape
        first = jax.random.normal(keys[0], pieces.latent.shape)

        def step(noisy: Array, inputs: Any) -> tuple[Array, Array]:
            level, next_level, key = inputs
            levels = jnp.full(shape, level)
            clean = self._estimate(params, pieces, noisy, levels)
            noise = jax.random.normal(key, noisy.shape)
            # A step of `FlowMatchScheduler`.
            return (1 - next_level) * clean + next_level * noise, noisy

        inputs = sigma[:-1], sigma[1:], keys[1:-1]
        last, before = jax.lax.scan(step, first, inputs)
        every = jnp.concatenate([before, last[None]])  # [K, B, T L, C]
        index = jax.random.randint(keys[-1], shape, 0, len(sigma))
        # int32[1, B, T L, 1]: the step that each token's chunk is taken at
        chosen = self.denoiser.per_token(index)[None].astype(jnp.int32)
        # [K, B, T L, C] -> [B, T L, C]
        noisy = jnp.take_along_axis(every, chosen, axis=0)[0]
        return jax.lax.stop_gradient((noisy, sigma[index]))

    def _estimate(
        self, params: Params, pieces: Pieces, noisy: Array, level: Array
    ) -> Array:
        """The clean latents that the generator sees in noisy ones."""
        return self._denoise(
            params, pieces, pieces.latent, jnp.zeros_like(level), noisy, level
        )

    def _denoise(
        self,
        params: Params,
        pieces: Pieces,
        context: Array,
        context_level: Array,
        noisy: Array,
        level: Array,
    ) -> Array:
        flow = self.denoiser.forward(
            params,
            context,
            context_level,
            noisy,
            level,
            pieces.controls,
            pieces.tokens,
            pieces.is_first,
        )
        return noisy - self.denoiser.per_token(level) * flow

    def generator_loss(
        self,
        params: Params,
        critic: Params,
        base: Params,
        pieces: Pieces,
        key: jax.Array,
    ) -> tuple[Array, Array]:
        """A loss whose gradient is that of distribution matching.

        DMD, equations 7 and 8: at a noised version of the generator's chunk, the
        critic's estimate less the base model's, over the mean distance of the latter.
        Both see the same history, noised as in the base model's training, so that they
        judge the chunk and not the flaws of what came before.

        Returns:
            The loss, and the generator's chunks without gradient, [B, T L, C].
        """
        keys = jax.random.split(key, 4)
        noisy, level = self.inputs(params, pieces, keys[0])
        made = self._estimate(params, pieces, noisy, level)
        fixed = jax.lax.stop_gradient(made)
        context = self.denoiser.noised_context(keys[1], pieces.latent, len(fixed))
        seen_level = self._critic_levels(keys[2], level.shape)
        seen = self.denoiser.mix(
            fixed, jax.random.normal(keys[3], fixed.shape), seen_level
        )
        of_critic, of_base = (
            self._denoise(each, pieces, *context, seen, seen_level)
            for each in (critic, base)
        )
        # [B, T L, C] -> [B, T, L C]; means over its last axis are [B, T].
        per_chunk = (*level.shape, -1)
        # float32[B, T]
        distance = jnp.abs(fixed - of_base).reshape(per_chunk).mean(-1)
        scale = self.denoiser.per_token(1 / jnp.maximum(distance, _NORM_FLOOR))
        # The error's gradient by `made` is then the scaled difference of the judges.
        target = jax.lax.stop_gradient(fixed - scale * (of_critic - of_base))
        error = jnp.square(made - target).reshape(per_chunk).mean(-1)
        return 0.5 * (error * pieces.weight).mean(), fixed

    def critic_loss(
        self, params: Params, pieces: Pieces, made: Array, key: jax.Array
    ) -> Array:
        """The flow-matching loss of the critic, on the generator's chunks.

        Args:
            params: The critic's.
            pieces: What the chunks follow.
            made: From `generator_loss`.
            key: A PRNG key.
        """
        keys = jax.random.split(key, 3)
        level = self._critic_levels(keys[0], pieces.weight.shape)
        noise = jax.random.normal(keys[1], made.shape)
        noisy = self.denoiser.mix(made, noise, level)
        context = self.denoiser.noised_context(keys[2], pieces.latent, len(made))
        clean = self._denoise(params, pieces, *context, noisy, level)
        # The error of the flow, which is that of the estimate over the level.
        error = jnp.square((clean - made) / self.denoiser.per_token(level))
        # [B, T L, C] -> [B, T, L C] -> [B, T]
        error = error.reshape(*level.shape, -1).mean(-1)
        return (error * pieces.weight).mean()

    def _critic_levels(self, key: jax.Array, shape: tuple[int, ...]) -> Array:
        # The range of DMD's timesteps, 0.02 to 0.98: at the ends there is no judging.
        level = jax.random.uniform(key, shape, minval=0.02, maxval=0.98)
        return self.shift * level / (1 + (self.shift - 1) * level)


def variance_by_quarter(rollouts: Array) -> Array:
    """Returns the latents' variance in each quarter of rollouts: 1 without blur.

    Args:
        rollouts: From `Distiller.rollout`.  [R, S L, C].
    """
    # [4, R, S L / 4, C]
    quarters = jnp.stack(jnp.split(rollouts, 4, axis=1))
    return jnp.square(quarters - quarters.mean((1, 2), keepdims=True)).mean((1, 2, 3))
