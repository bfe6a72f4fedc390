"""The third stage of a training run: the few-step model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fdjax.axes import Params
from fdjax_models.methods.maze_world.training import autoencoder, data, parallel
from fdjax_models.methods.maze_world.training.data import Clip
from fdjax_models.methods.maze_world.training.distillation import variance_by_quarter
from fdjax_models.methods.maze_world.training.journal import learning_rate
from fdjax_models.methods.maze_world.training.optimizer import apply, make_optimizer
from fdjax_models.methods.maze_world.training.settings import Settings
from fdjax_models.methods.maze_world.training.stages import (
    MODEL,
    SCALAR,
    Run,
    abstract,
    everywhere,
    initial_params,
)

_CRITIC_LEAD = 64
"""Steps in which only the critic learns, to know what the model makes."""


def beginnings(
    settings: Settings, encoder_params: Params, key: jax.Array
) -> tuple[Clip, jax.Array]:
    """Returns first latent frames with the controls of long walks, and which are given.

    Only the first frame of a walk is drawn: what follows is for the model to make.
    """
    keys = jax.random.split(key)
    count, chunks = settings.rollouts, settings.rollout_chunks
    clips = data.make_clips(keys[0], count, chunks, num_frames=1)
    # [B, 1, H, W, 3] -> [B, 1, H, W, C], rows and columns of the latent
    latent = autoencoder.encode_raw(settings.encoder(), encoder_params, clips.video)
    has_image = jax.random.bernoulli(keys[1], 0.5, (count,))
    return dataclasses.replace(clips, video=latent), has_image


def _update(
    loss: Callable[..., Any],
    params: Params,
    opt_state: Any,
    rate: jax.Array,
    *arguments: Any,
) -> Any:
    """One optimizer step on (loss, aux); returns params, state, loss and aux."""
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, *arguments)
    grads = parallel.mean(grads)
    updates, opt_state = make_optimizer().update(grads, opt_state, params)
    return apply(params, updates, rate), opt_state, value, aux


def make_steps(settings: Settings) -> Any:
    """Returns a jitted function that makes rollouts and trains on pieces of them.

    Its arguments are a state (the model's params and optimizer state, the critic's, and
    the model's averaged params), the base model's params, the encoder's, a key and the
    two learning rates; its results the new state, and the mean losses of the model and
    the critic, and the latents' variance by quarter of the rollouts.
    """
    distiller = settings.distiller()

    def critic_loss(params: Params, *arguments: Any) -> tuple[Any, None]:
        return distiller.critic_loss(params, *arguments), None

    def step(
        carry: Any,
        key: jax.Array,
        cut: Callable[[jax.Array], Any],
        base: Params,
        rate: jax.Array,
        critic_rate: jax.Array,
    ) -> tuple[Any, Any]:
        params, opt_state, critic, critic_state, average = carry
        keys = jax.random.split(key, 3)
        pieces = cut(keys[0])
        judges = critic, base, pieces, keys[1]
        params, opt_state, loss, made = _update(
            distiller.generator_loss, params, opt_state, rate, *judges
        )

        def follow(carry: Any, key: jax.Array) -> tuple[Any, Any]:
            *carry, loss, _ = _update(
                critic_loss, *carry, critic_rate, pieces, made, key
            )
            return tuple(carry), loss

        critic_keys = jax.random.split(keys[2], settings.critic_updates)
        (critic, critic_state), critic_losses = jax.lax.scan(
            follow, (critic, critic_state), critic_keys
        )
        # Over the last 200 steps or so.
        average = optax.incremental_update(params, average, 0.005)
        carry = params, opt_state, critic, critic_state, average
        return carry, (loss, critic_losses.mean())

    def run(
        carry: Any,
        base: Params,
        encoder_params: Params,
        key: jax.Array,
        rate: jax.Array,
        critic_rate: jax.Array,
    ) -> tuple[Any, Any]:
        keys = jax.random.split(parallel.own_key(key), 3)
        starts, has_image = beginnings(settings, encoder_params, keys[0])
        rollouts = distiller.rollout(carry[0], starts, has_image, keys[1])

        def cut(key: jax.Array) -> Any:
            batch, chunks = settings.distillation_batch, settings.denoiser_chunks
            return distiller.cut(rollouts, starts, has_image, key, batch, chunks)

        carry, logs = jax.lax.scan(
            lambda c, k: step(c, k, cut, base, rate, critic_rate),
            carry,
            jax.random.split(keys[2], settings.distillation_steps),
        )
        logs = *jax.tree.map(jnp.mean, logs), variance_by_quarter(rollouts)
        return carry, parallel.mean(logs)

    same = parallel.SAME
    run = parallel.per_device(run, in_specs=(same,) * 6, out_specs=same)
    return jax.jit(run, donate_argnums=0)


def initial_state(params: Params, critic: Params) -> Any:
    """Returns what `make_steps` carries, at the start."""
    moments = make_optimizer().init
    return params, moments(params), critic, moments(critic), params


def compile_steps(settings: Settings) -> Callable[..., Any]:
    """Compiles the steps of the third stage."""

    def arguments() -> Any:
        # Shapes alone: nothing is computed in `eval_shape`.
        params = initial_params(settings)
        model = {name: params[name] for name in MODEL}
        return initial_state(model, model), model, params["encoder"]

    key = jax.eval_shape(jax.random.key, 0)
    shapes = *jax.eval_shape(arguments), key, SCALAR, SCALAR
    return make_steps(settings).lower(*abstract(shapes)).compile()


def train(program: Callable[..., Any], run: Run) -> None:
    """Trains the few-step model until its time, or the run's, is over.

    Args:
        program: From `compile_steps`.
        run: "codec", the base model's "average", and "few_step" and "critic" of an
            earlier run, or none of both, are used.
    """
    settings, trees, stage = run.settings, run.trees, "distillation"
    # Apart from the keys of the other stages, and of an earlier run of this one.
    key = jax.random.fold_in(jax.random.key(settings.seed + 11), int(run.spent[stage]))
    base, encoder = everywhere((trees["average"], trees["codec"]["encoder"]))
    model, critic = (trees.get(name, base) for name in ("few_step", "critic"))
    carry = everywhere(initial_state(model, critic))
    saved = run.clock.seconds()
    for steps in run.steps(stage, settings.distillation_steps):
        critic_rate = learning_rate(settings.critic_rate, 0.0, steps)
        rate = learning_rate(settings.distillation_rate, 0.0, steps)
        rate = rate if steps >= _CRITIC_LEAD else 0.0
        rates = jnp.float32(rate), jnp.float32(critic_rate)
        numbers = everywhere((jax.random.fold_in(key, steps), *rates))
        carry, logs = jax.block_until_ready(program(carry, base, encoder, *numbers))
        record = dict(zip(("loss", "critic", "variance"), logs, strict=True))
        run.journal.write(stage=stage, step=steps, lr=rate, **record)
        if run.clock.seconds() - saved > 100:
            run.keep(few_step=carry[-1], critic=carry[2])
            saved = run.clock.seconds()
    run.keep(few_step=carry[-1], critic=carry[2])
