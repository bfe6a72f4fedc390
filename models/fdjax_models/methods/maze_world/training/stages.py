"""The first two stages of a training run: the autoencoder, the base model.

Each has a function that compiles its program and one that runs it until its time, or
the run's, is over.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fdjax.axes import Array, Params
from fdjax_models.methods.maze_world import sizes
from fdjax_models.methods.maze_world.conditioner import WordEncoderConfig
from fdjax_models.methods.maze_world.training import autoencoder, parallel, state
from fdjax_models.methods.maze_world.training.data import Clip
from fdjax_models.methods.maze_world.training.denoiser import Denoiser
from fdjax_models.methods.maze_world.training.journal import (
    Clock,
    Journal,
    learning_rate,
)
from fdjax_models.methods.maze_world.training.optimizer import apply, make_optimizer
from fdjax_models.methods.maze_world.training.pool import (
    ClipPool,
    clip_shapes,
    encoded_clips,
)
from fdjax_models.methods.maze_world.training.settings import Settings
from fdjax_models.networks.wan_dit.dit import init_params

CODEC = ("encoder", "decoder")
MODEL = ("transformer", "text_encoder")
SCALAR = jax.ShapeDtypeStruct((), jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the stages of a training run share.

    Attributes:
        settings: How to train.
        trees: Weights by name: "codec"; "params" of the base model and their running
            "average"; in the end "few_step" and its "critic".
        spent: Seconds spent in each stage, over all runs.
        clock: The run's clock.
        journal: Where progress is written.
        out: Folder for weights and sheets.
    """

    settings: Settings
    trees: dict[str, Params]
    spent: dict[str, float]
    clock: Clock
    journal: Journal
    out: Path

    def is_over(self, stage: str) -> bool:
        """Whether the time of a stage is spent."""
        return self.spent[stage] >= self.settings.seconds(stage)

    def share(self, stage: str) -> float:
        """Share of a stage's time that is spent."""
        return self.spent[stage] / self.settings.seconds(stage)

    def steps(self, stage: str, num_steps: int) -> Iterator[int]:
        """Yields the steps done so far, until the stage's time or the run's is over.

        What happens between two of them is the stage's time.

        Args:
            stage: The stage.
            num_steps: Steps in each round.
        """
        steps = 0
        while not self.is_over(stage) and not self.clock.is_over(reserve=12):
            before = self.clock.seconds()
            yield steps
            self.spent[stage] += self.clock.seconds() - before
            steps += num_steps

    def keep(self, **changed: Params) -> None:
        """Saves all weights, of which some have changed, and the time spent."""
        self.trees.update(jax.device_get(changed))
        settings = dataclasses.asdict(self.settings)
        state.save(self.out, self.trees, {"spent": self.spent, "settings": settings})


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
    transformer = jax.jit(init_params, static_argnums=0)(network, keys[0])
    # No flow at the start, as in DiT (arXiv:2212.09748, adaLN-Zero).
    head = transformer["head"]["proj"]
    transformer["head"]["proj"] = {**head, "kernel": jnp.zeros_like(head["kernel"])}
    words = WordEncoderConfig(width=network.text_dim).setup()
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
        # Copied: a state is donated, and no buffer can be given away twice.
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

    def start() -> Any:
        params = initial_params(settings)
        return autoencoder_state({name: params[name] for name in CODEC})

    arguments = jax.eval_shape(start), jax.eval_shape(jax.random.key, 0), SCALAR
    return run.lower(*abstract(arguments)).compile()


def train_autoencoder(program: Callable[..., Any], run: Run) -> None:
    """Trains the encoder and the decoder until their time, or the run's, is over.

    Leaves averaged weights, with the latents' statistics folded in.

    Args:
        program: From `compile_autoencoder`.
        run: "codec" is used.
    """
    settings, stage = run.settings, "autoencoder"
    # By the time spent, so that a resumed run draws other clips.
    key = jax.random.fold_in(jax.random.key(settings.seed), int(run.spent[stage]))
    carry = everywhere(autoencoder_state(run.trees["codec"]))
    for steps in run.steps(stage, settings.steps_per_dispatch):
        rate = learning_rate(settings.autoencoder_rate, run.share(stage), steps)
        arguments = everywhere((jax.random.fold_in(key, steps), jnp.float32(rate)))
        carry, (loss, quality) = jax.block_until_ready(program(carry, *arguments))
        run.journal.write(stage=stage, step=steps, loss=loss, psnr=quality, lr=rate)
    _, _, average, mean, deviation = carry
    folded = autoencoder.fold_statistics(average["encoder"], mean, deviation)
    run.keep(codec={"encoder": folded, "decoder": average["decoder"]})


def make_denoiser_steps(settings: Settings, denoiser: Denoiser) -> Any:
    """Returns a jitted function that trains on random clips of each device's pool.

    Its arguments are a state (params, optimizer state, averaged params), the pool's
    clips, held-out clips, a key, the learning rate and `own_share`; its results the new
    state, and the mean loss, loss by noise level and gradient norm, and the averaged
    weights' loss on the held-out clips.
    """
    optimizer = make_optimizer()

    def step(
        carry: Any, clips: Clip, key: Array, rate: Array, own_share: Array
    ) -> tuple[Any, Any]:
        params, opt_state, average = carry
        key_pick, key_loss = jax.random.split(key)
        shape = (settings.denoiser_batch,)
        picked = jax.random.randint(key_pick, shape, 0, settings.pool_clips)
        # [pool, ...] -> [B, ...]
        batch = jax.tree.map(lambda x: x[picked], clips)
        grad = jax.value_and_grad(denoiser.loss, has_aux=True)
        (loss, levels), grads = grad(params, batch, key_loss, own_share)
        grads = parallel.mean(grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = apply(params, updates, rate)
        # Over the last 330 steps or so.
        average = optax.incremental_update(params, average, 0.003)
        return (params, opt_state, average), (loss, levels, optax.tree.norm(grads))

    def run(
        carry: Any,
        clips: Clip,
        held_out: Clip,
        key: Array,
        rate: Array,
        own_share: Array,
    ) -> tuple[Any, Any]:
        keys = jax.random.split(parallel.own_key(key), settings.steps_per_dispatch)
        carry, logs = jax.lax.scan(
            lambda c, k: step(c, clips, k, rate, own_share),
            carry,
            keys,
            unroll=autoencoder.unroll(settings.steps_per_dispatch),
        )
        # A step without a chunk in some quarter of noise levels has NaN there.
        logs = parallel.mean(jax.tree.map(lambda x: jnp.nanmean(x, axis=0), logs))
        # The same noise every time, so that numbers can be compared.
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

    def start() -> Any:
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


def filled_pool(settings: Settings, encoder_params: Params, key: jax.Array) -> ClipPool:
    """Returns a pool of encoded clips, all fresh."""
    pool = ClipPool.create(
        settings.encoder(),
        everywhere(encoder_params),
        settings.pool_clips,
        settings.denoiser_chunks,
    )
    for part in range(settings.pool_clips // settings.fresh_clips):
        pool = pool.refill(jax.random.fold_in(key, part), settings.fresh_clips)
    return pool


def train_denoiser(program: Callable[..., Any], run: Run) -> None:
    """Trains the base model until its time, or the run's, is over.

    Args:
        program: From `compile_denoiser`.
        run: "codec", "params" and "average" are used.
    """
    settings, trees, stage = run.settings, run.trees, "denoiser"
    key = jax.random.fold_in(jax.random.key(settings.seed + 7), int(run.spent[stage]))
    encoder_params = trees["codec"]["encoder"]
    held_out = encoded_clips(
        settings.encoder(),
        encoder_params,
        jax.random.key(settings.seed + 1),
        settings.denoiser_batch,
        settings.denoiser_chunks,
    )
    pool = jax.block_until_ready(filled_pool(settings, encoder_params, key))
    run.journal.write(stage="pool", clips=len(pool.clips.tokens))
    carry = everywhere(denoiser_state(trees["params"], trees["average"]))
    held_out = everywhere(held_out)
    saved = run.clock.seconds()
    for steps in run.steps(stage, settings.steps_per_dispatch):
        rate = learning_rate(settings.denoiser_rate, run.share(stage), steps)
        own = settings.own_share if run.share(stage) >= settings.own_from else 0.0
        # Behind the keys of the pool's first filling.
        dispatch_key = jax.random.fold_in(key, 1000 + steps)
        pool = pool.refill(jax.random.fold_in(dispatch_key, 2), settings.fresh_clips)
        numbers = everywhere((dispatch_key, jnp.float32(rate), jnp.float32(own)))
        carry, logs = jax.block_until_ready(
            program(carry, pool.clips, held_out, *numbers)
        )
        names = ("loss", "levels", "norm", "held_out", "held_out_levels")
        record = dict(zip(names, logs, strict=True)) | {"lr": rate, "own": own}
        run.journal.write(stage=stage, step=steps, **record)
        if run.clock.seconds() - saved > 150:
            run.keep(params=carry[0], average=carry[2])
            saved = run.clock.seconds()
    run.keep(params=carry[0], average=carry[2])
