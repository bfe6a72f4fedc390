"""The first two stages of a training run: the autoencoder, the base model.

Each has a function that compiles its program and one that runs it until its time, or
the run's, is over.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from fdjax.axes import Params
from fdjax_models.maze_world import sizes
from fdjax_models.maze_world.conditioner import WordConditionerConfig
from fdjax_models.maze_world.training import autoencoder, parallel
from fdjax_models.maze_world.training.denoiser import Denoiser
from fdjax_models.maze_world.training.journal import Clock, Journal, learning_rate
from fdjax_models.maze_world.training.optimizer import apply, make_optimizer
from fdjax_models.maze_world.training.pool import ClipPool, clip_shapes, encoded_clips
from fdjax_models.maze_world.training.settings import Settings

CODEC = ("encoder", "decoder")
MODEL = ("transformer", "text_encoder")
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


class Keep(Protocol):
    """Saves what a stage has come to."""

    def __call__(self, stage: str, seconds: float, **changed: Params) -> None:
        """Saves the trees that changed, and the seconds spent in the stage so far."""


def abstract(tree: Any, spec: Any = parallel.SAME) -> Any:
    """Returns the shapes of a tree of arrays that lie on all devices."""
    where = parallel.sharding(spec)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree
    )


def everywhere(tree: Any) -> Any:
    """Returns copies of arrays, or of numbers, that lie on all devices."""
    where = parallel.sharding(parallel.SAME)
    return jax.tree.map(lambda x: jax.device_put(jnp.array(x), where), tree)


def initial_params(settings: Settings) -> dict[str, Params]:
    """Returns random weights of all components, float32; the head begins at zero."""
    keys = jax.random.split(jax.random.key(settings.seed), 4)
    network = settings.denoiser().config
    transformer = jax.jit(network.init_params)(keys[0])
    head = transformer["head"]["proj"]
    transformer["head"]["proj"] = {**head, "kernel": jnp.zeros_like(head["kernel"])}
    words = WordConditionerConfig(width=network.text_dim).setup()
    params = {
        "transformer": transformer,
        "text_encoder": words.init_params(keys[1]),
        "encoder": settings.encoder().init_params(keys[2]),
        "decoder": settings.decoder().init_params(keys[3]),
    }
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)


def autoencoder_state(params: Params) -> Any:
    """Returns what `autoencoder.make_steps` carries, at the start."""
    channels = sizes.LATENT_CHANNELS
    return (
        params,
        make_optimizer().init(params),
        jax.tree.map(jnp.copy, params),
        jnp.zeros(channels),
        jnp.ones(channels),
    )


def compile_autoencoder(settings: Settings) -> Callable[..., Any]:
    """Compiles the steps of the first stage."""
    run = autoencoder.make_steps(
        settings.encoder(),
        settings.decoder(),
        make_optimizer(),
        batch=settings.autoencoder_batch,
        num_chunks=settings.autoencoder_chunks,
        num_steps=settings.steps_per_dispatch,
    )

    def start():
        params = initial_params(settings)
        return autoencoder_state({name: params[name] for name in CODEC})

    arguments = jax.eval_shape(start), jax.eval_shape(jax.random.key, 0), SCALAR
    return run.lower(*abstract(arguments)).compile()


def train_autoencoder(
    run: Callable[..., Any],
    settings: Settings,
    trees: Mapping[str, Params],
    spent: float,
    clock: Clock,
    journal: Journal,
    keep: Keep,
) -> None:
    """Trains the encoder and the decoder until their time, or the run's, is over.

    Args:
        run: From `compile_autoencoder`.
        settings: How to train.
        trees: Weights: "codec" is used.
        spent: Seconds that earlier runs spent in this stage.
        clock: The run's clock.
        journal: Where progress is written.
        keep: Called at the end with averaged weights, the statistics folded in.
    """
    carry = everywhere(autoencoder_state(trees["codec"]))
    key, steps = jax.random.fold_in(jax.random.key(settings.seed), int(spent)), 0
    limit = settings.seconds("autoencoder")
    while spent < limit and not clock.is_over(reserve=10):
        before = clock.seconds()
        rate = learning_rate(settings.autoencoder_rate, spent / limit, steps)
        arguments = everywhere((jax.random.fold_in(key, steps), jnp.float32(rate)))
        carry, (loss, quality) = run(carry, *arguments)
        jax.block_until_ready(loss)
        spent += clock.seconds() - before
        steps += settings.steps_per_dispatch
        journal.write(stage="autoencoder", step=steps, loss=loss, psnr=quality, lr=rate)
    _, _, average, mean, deviation = carry
    folded = autoencoder.fold_statistics(average["encoder"], mean, deviation)
    codec = {"encoder": folded, "decoder": average["decoder"]}
    keep("autoencoder", spent, codec=codec)


def make_denoiser_steps(settings: Settings, denoiser: Denoiser):
    """Returns a jitted function that trains on random clips of each device's pool.

    Its arguments are a state (params, optimizer state, averaged params), the pool's
    clips, held-out clips, a key, the learning rate and `own_share`; its results the new
    state, and the mean loss, loss by noise level and gradient norm, and the averaged
    weights' loss on the held-out clips.
    """
    optimizer = make_optimizer()

    def step(carry, clips, key, rate, own_share):
        params, opt_state, average = carry
        key_pick, key_loss = jax.random.split(key)
        shape = (settings.denoiser_batch,)
        picked = jax.random.randint(key_pick, shape, 0, settings.pool_clips)
        batch = jax.tree.map(lambda x: x[picked], clips)
        grad = jax.value_and_grad(denoiser.loss, has_aux=True)
        (loss, levels), grads = grad(params, batch, key_loss, own_share)
        grads = parallel.mean(grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = apply(params, updates, rate)
        average = optax.incremental_update(params, average, 0.003)
        return (params, opt_state, average), (loss, levels, optax.global_norm(grads))

    def run(carry, clips, held_out, key, rate, own_share):
        keys = jax.random.split(parallel.own_key(key), settings.steps_per_dispatch)
        carry, logs = jax.lax.scan(
            lambda c, k: step(c, clips, k, rate, own_share),
            carry,
            keys,
            unroll=autoencoder.unroll(settings.steps_per_dispatch),
        )
        logs = parallel.mean(jax.tree.map(lambda x: jnp.nanmean(x, axis=0), logs))
        validation = denoiser.loss(carry[2], held_out, jax.random.key(0), None)
        return carry, (*logs, *validation)

    same, split = parallel.SAME, parallel.SPLIT
    in_specs = (same, split, same, same, same, same)
    run = parallel.per_device(run, in_specs=in_specs, out_specs=same)
    return jax.jit(run, donate_argnums=0)


def denoiser_state(params: Params, average: Params) -> Any:
    """Returns what `make_denoiser_steps` carries, at the start."""
    return params, make_optimizer().init(params), average


def compile_denoiser(settings: Settings) -> Callable[..., Any]:
    """Compiles the steps of the second stage."""

    def start():
        params = initial_params(settings)
        params = {name: params[name] for name in MODEL}
        return denoiser_state(params, params)

    def shapes(count: int) -> Any:
        return clip_shapes(settings.encoder(), count, settings.denoiser_chunks)

    devices = jax.local_device_count()
    arguments = (
        abstract(jax.eval_shape(start)),
        abstract(shapes(settings.pool_clips * devices), parallel.SPLIT),
        abstract(shapes(settings.denoiser_batch)),
        *abstract((jax.eval_shape(jax.random.key, 0), SCALAR, SCALAR)),
    )
    return (
        make_denoiser_steps(settings, settings.denoiser()).lower(*arguments).compile()
    )


def train_denoiser(
    run: Callable[..., Any],
    settings: Settings,
    trees: Mapping[str, Params],
    spent: float,
    clock: Clock,
    journal: Journal,
    keep: Keep,
) -> None:
    """Trains the base model until its time, or the run's, is over.

    Args:
        run: From `compile_denoiser`.
        settings: How to train.
        trees: Weights: "codec", "params" and their running "average" are used.
        spent: Seconds that earlier runs spent in this stage.
        clock: The run's clock.
        journal: Where progress is written.
        keep: Called now and then, and at the end.
    """
    codec = trees["codec"]
    encoder, chunks = settings.encoder(), settings.denoiser_chunks
    key = jax.random.fold_in(jax.random.key(settings.seed + 7), int(spent))
    held_out = encoded_clips(
        encoder,
        codec["encoder"],
        jax.random.key(settings.seed + 1),
        settings.denoiser_batch,
        chunks,
    )
    pool = ClipPool.create(
        encoder, everywhere(codec["encoder"]), settings.pool_clips, chunks
    )
    for part in range(settings.pool_clips // settings.fresh_clips):
        pool = pool.refill(jax.random.fold_in(key, part), settings.fresh_clips)
    jax.block_until_ready(pool.clips)
    journal.write(stage="pool", clips=len(pool.clips.tokens))

    carry = everywhere(denoiser_state(trees["params"], trees["average"]))
    held_out = everywhere(held_out)
    limit, steps = settings.seconds("denoiser"), 0
    saved = clock.seconds()
    while spent < limit and not clock.is_over(reserve=12):
        before = clock.seconds()
        rate = learning_rate(settings.denoiser_rate, spent / limit, steps)
        own = settings.own_share if spent / limit >= settings.own_from else 0.0
        dispatch_key = jax.random.fold_in(key, 1000 + steps)
        pool = pool.refill(jax.random.fold_in(dispatch_key, 2), settings.fresh_clips)
        numbers = everywhere((dispatch_key, jnp.float32(rate), jnp.float32(own)))
        carry, logs = run(carry, pool.clips, held_out, *numbers)
        jax.block_until_ready(logs)
        now = clock.seconds()
        spent += now - before
        steps += settings.steps_per_dispatch
        names = ("loss", "levels", "norm", "held_out", "held_out_levels")
        record = dict(zip(names, logs, strict=True)) | {"lr": rate, "own": own}
        journal.write(stage="denoiser", step=steps, spent=spent, **record)
        if now - saved > 150:
            keep("denoiser", spent, params=carry[0], average=carry[2])
            saved = now
    keep("denoiser", spent, params=carry[0], average=carry[2])
