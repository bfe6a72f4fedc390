"""The training run: the autoencoder, then the diffusion transformer, by the clock.

How long each stage runs is given in minutes, and the learning rate follows the share
of that time that is spent, so that a run fits a rented machine whatever its speed.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from fdjax.axes import Params
from fdjax_models.maze_world import sizes
from fdjax_models.maze_world.conditioner import WordConditionerConfig
from fdjax_models.maze_world.training import autoencoder, sheets, state
from fdjax_models.maze_world.training.denoiser import Denoiser
from fdjax_models.maze_world.training.pool import ClipPool, encoded_clips
from fdjax_models.taehv.decoder import TaehvDecoder
from fdjax_models.taehv.encoder import TaehvEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run depends on besides its starting weights.

    Attributes:
        seed: Seed of weights and data; held-out clips use `seed + 1`.
        dtype: Computation dtype; weights and optimiser are float32.
        attention: Implementation of `jax.nn.dot_product_attention`: "cudnn" or "xla".
        autoencoder_minutes: Time for the autoencoder, compilation not counted.
        denoiser_minutes: Time for the transformer, compilation not counted.
        autoencoder_rate: Peak learning rate.
        denoiser_rate: Peak learning rate.
        autoencoder_batch: Clips in a step.
        autoencoder_chunks: Latent frames of a clip.
        denoiser_batch: Clips in a step.
        denoiser_chunks: Latent frames of a clip.
        steps_per_dispatch: Steps that run without the host.
        pool_clips: Encoded clips kept on the device.
        fresh_clips: Clips renewed before each dispatch.
        own_share: Share of context chunks that are the model's own predictions.
        own_from: Share of the time after which `own_share` holds; 0 before it.
        network: Changes to `sizes.NETWORK`.
    """

    seed: int = 0
    dtype: str = "bfloat16"
    attention: Literal["cudnn", "xla"] = "cudnn"
    autoencoder_minutes: float = 3.0
    denoiser_minutes: float = 12.0
    autoencoder_rate: float = 1.5e-3
    denoiser_rate: float = 2e-3
    autoencoder_batch: int = 32
    autoencoder_chunks: int = 5
    denoiser_batch: int = 64
    denoiser_chunks: int = 24
    steps_per_dispatch: int = 32
    pool_clips: int = 2048
    fresh_clips: int = 512
    own_share: float = 0.8
    own_from: float = 0.35
    write_sheets: bool = True
    network: tuple[tuple[str, Any], ...] = ()

    def encoder(self) -> TaehvEncoder:
        """The autoencoder's first half, in the training dtype."""
        return dataclasses.replace(sizes.ENCODER, dtype=self.dtype).setup()

    def decoder(self) -> TaehvDecoder:
        """The autoencoder's second half, in the training dtype."""
        return dataclasses.replace(sizes.DECODER, dtype=self.dtype).setup()

    def denoiser(self, attention: Literal["cudnn", "xla"] | None = None) -> Denoiser:
        """The transformer, in the training dtype."""
        changes = dict(self.network) | {"dtype": self.dtype}
        return Denoiser(
            config=dataclasses.replace(sizes.NETWORK, **changes),
            height=sizes.LATENT_HEIGHT,
            width=sizes.LATENT_WIDTH,
            window=sizes.WINDOW_CHUNKS,
            attention=attention or self.attention,
        )


class Clock:
    """Time since the run began, and whether it must stop."""

    def __init__(self, max_minutes: float):
        self._start = time.monotonic()
        self._limit = 60 * max_minutes

    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def is_over(self, reserve: float = 0.0) -> bool:
        """Whether fewer than `reserve` seconds are left."""
        return self.seconds() + reserve > self._limit


class Journal:
    """Prints records, and appends them to a file of JSON lines."""

    def __init__(self, path: Path, clock: Clock):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._clock = path, clock

    def write(self, **record: Any) -> None:
        """Writes one record; arrays become numbers."""
        record = {
            key: np.asarray(value, np.float64).round(5).tolist()
            if not isinstance(value, str)
            else value
            for key, value in record.items()
        }
        record["at"] = round(self._clock.seconds(), 1)
        line = json.dumps(record)
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


def learning_rate(peak: float, share: float, steps_since_start: int) -> float:
    """Returns warm-up over 150 steps, a plateau, and a linear descent from 55 % on.

    Args:
        peak: The plateau.
        share: Share of the stage's time that is spent, over all runs.
        steps_since_start: Steps since the optimiser was made anew.
    """
    warm = min(1.0, (steps_since_start + 1) / 150)
    fall = min(1.0, max(0.01, (1 - share) / 0.45))
    return peak * warm * fall


def train_autoencoder(
    settings: Settings,
    params: Params,
    spent: float,
    clock: Clock,
    journal: Journal,
    on_progress: Callable[[Params, float], None],
) -> tuple[Params, float]:
    """Trains the encoder and the decoder until their time, or the run's, is over.

    Returns:
        Averaged weights with the statistics folded in, and the seconds spent.
    """
    encoder, decoder = settings.encoder(), settings.decoder()
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1.0, 0.9, 0.98, weight_decay=1e-3)
    )
    run = autoencoder.make_steps(
        encoder,
        decoder,
        optimizer,
        batch=settings.autoencoder_batch,
        num_chunks=settings.autoencoder_chunks,
        num_steps=settings.steps_per_dispatch,
    )
    channels = sizes.LATENT_CHANNELS
    carry = (
        params,
        optimizer.init(params),
        jax.tree.map(jnp.copy, params),
        jnp.zeros(channels),
        jnp.ones(channels),
    )
    key, steps = jax.random.fold_in(jax.random.key(settings.seed), int(spent)), 0
    limit = 60 * settings.autoencoder_minutes
    started = None
    while spent < limit and not clock.is_over(reserve=10):
        rate = learning_rate(settings.autoencoder_rate, spent / limit, steps)
        carry, (loss, quality) = run(carry, jax.random.fold_in(key, steps), rate)
        jax.block_until_ready(loss)
        now = clock.seconds()
        spent += now - started if started else 0.0
        started = now
        steps += settings.steps_per_dispatch
        journal.write(stage="autoencoder", step=steps, loss=loss, psnr=quality, lr=rate)
    _, _, average, mean, deviation = carry
    folded = autoencoder.fold_statistics(average["encoder"], mean, deviation)
    average = {"encoder": folded, "decoder": average["decoder"]}
    on_progress(average, spent)
    return average, spent


def make_optimizer() -> optax.GradientTransformation:
    """Returns Muon for the matrices of the blocks, AdamW for everything else.

    Muon (Jordan et al. 2024) with updates of the size of Adam's (arXiv:2502.16982), so
    that both follow one schedule; AdamW takes half of its rate.
    """

    def dimensions(params: Params) -> Params:
        def of(path, leaf):
            names = [part.key for part in path]
            is_matrix = names[-1] == "kernel" and any("blocks" in n for n in names)
            return contrib.MuonDimensionNumbers() if is_matrix else None

        return jax.tree_util.tree_map_with_path(of, params)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        contrib.muon(
            1.0,
            adam_learning_rate=0.5,
            weight_decay=0.02,
            adam_b2=0.98,
            muon_weight_dimension_numbers=dimensions,
            consistent_rms=0.2,
        ),
    )


def make_denoiser_steps(
    settings: Settings, denoiser: Denoiser, optimizer: optax.GradientTransformation
):
    """Returns a jitted function that trains on random clips of a pool.

    Its arguments are a state (params, optimizer state, averaged params), the pool's
    clips, held-out clips, a key, the learning rate and `own_share`; its results the new
    state, and the mean loss, loss by noise level and gradient norm, and the averaged
    weights' loss on the held-out clips.
    """

    def step(carry, clips, key, rate, own_share):
        params, opt_state, average = carry
        key_pick, key_loss = jax.random.split(key)
        shape = (settings.denoiser_batch,)
        picked = jax.random.randint(key_pick, shape, 0, settings.pool_clips)
        batch = jax.tree.map(lambda x: x[picked], clips)
        grad = jax.value_and_grad(denoiser.loss, has_aux=True)
        (loss, levels), grads = grad(params, batch, key_loss, own_share)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        average = optax.incremental_update(params, average, 0.003)
        return (params, opt_state, average), (loss, levels, optax.global_norm(grads))

    def run(carry, clips, held_out, key, rate, own_share):
        keys = jax.random.split(key, settings.steps_per_dispatch)
        carry, logs = jax.lax.scan(
            lambda c, k: step(c, clips, k, rate, own_share),
            carry,
            keys,
            unroll=autoencoder.unroll(settings.steps_per_dispatch),
        )
        logs = jax.tree.map(lambda x: jnp.nanmean(x, axis=0), logs)
        validation = denoiser.loss(carry[2], held_out, jax.random.key(0), None)
        return carry, (*logs, *validation)

    return jax.jit(run, donate_argnums=0)


def check_denoiser(settings: Settings) -> None:
    """Traces the second stage, so that a mistake shows before the first one is run."""
    encoder, optimizer = settings.encoder(), make_optimizer()

    def run(key):
        params = initial_params(settings)
        model = {name: params[name] for name in ("transformer", "text_encoder")}
        clips = encoded_clips(
            encoder, params["encoder"], key, 1, settings.denoiser_chunks
        )
        step = make_denoiser_steps(settings, settings.denoiser("xla"), optimizer)
        carry = (model, optimizer.init(model), model)
        return step(carry, clips, clips, key, 0.1, jnp.float32(0.1))

    jax.eval_shape(run, jax.random.key(0))


def train_denoiser(
    settings: Settings,
    codec: Params,
    params: Params,
    average: Params,
    spent: float,
    clock: Clock,
    journal: Journal,
    on_progress: Callable[[Params, Params, float], None],
) -> None:
    """Trains the transformer and the word vectors until the time is over.

    Args:
        settings: How to train.
        codec: Weights of "encoder" and "decoder".
        params: "transformer" and "text_encoder".
        average: Running average of `params`.
        spent: Seconds that earlier runs spent in this stage.
        clock: The run's clock.
        journal: Where progress is written.
        on_progress: Called now and then, and at the end, with the weights, their
            average and the seconds spent.
    """
    encoder, optimizer = settings.encoder(), make_optimizer()
    key = jax.random.fold_in(jax.random.key(settings.seed + 7), int(spent))
    pool = ClipPool.create(
        encoder, codec["encoder"], settings.pool_clips, settings.denoiser_chunks
    )
    pool = pool.refill(jax.random.key(settings.seed + 1), settings.fresh_clips)
    held_out = jax.tree.map(
        lambda x: jnp.copy(x[: settings.denoiser_batch]), pool.clips
    )
    for part in range(settings.pool_clips // settings.fresh_clips):
        pool = pool.refill(jax.random.fold_in(key, part), settings.fresh_clips)
    jax.block_until_ready(pool.clips)
    journal.write(stage="pool", clips=settings.pool_clips)

    carry = (params, optimizer.init(params), average)
    run = make_denoiser_steps(settings, settings.denoiser(), optimizer)
    try:
        arguments = carry, pool.clips, held_out, key, 0.0, jnp.float32(0)
        run = run.lower(*arguments).compile()
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        if settings.attention == "xla":
            raise
        journal.write(stage="fallback", attention="xla", error=str(error)[:300])
        run = make_denoiser_steps(settings, settings.denoiser("xla"), optimizer)
    journal.write(stage="compiled")
    limit, steps = 60 * settings.denoiser_minutes, 0
    started = saved = None
    while spent < limit and not clock.is_over(reserve=12):
        rate = learning_rate(settings.denoiser_rate, spent / limit, steps)
        own = settings.own_share if spent / limit >= settings.own_from else 0.0
        dispatch_key = jax.random.fold_in(key, 1000 + steps)
        pool = pool.refill(jax.random.fold_in(dispatch_key, 2), settings.fresh_clips)
        carry, (loss, levels, norm, held_out_loss, held_out_levels) = run(
            carry, pool.clips, held_out, dispatch_key, float(rate), jnp.float32(own)
        )
        jax.block_until_ready(loss)
        now = clock.seconds()
        spent += now - started if started else 0.0
        started = now
        steps += settings.steps_per_dispatch
        record = {"loss": loss, "levels": levels, "norm": norm, "lr": rate, "own": own}
        record |= {"held_out": held_out_loss, "held_out_levels": held_out_levels}
        journal.write(stage="denoiser", step=steps, spent=spent, **record)
        if saved is None or now - saved > 150:
            on_progress(carry[0], carry[2], spent)
            saved = now
    on_progress(carry[0], carry[2], spent)


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


def train(settings: Settings, out: Path, resume: Path | None, max_minutes: float):
    """Runs both stages, and leaves weights, a journal and sample sheets in `out`.

    Args:
        settings: How to train.
        out: Folder for everything that is written.
        resume: Folder that an earlier run wrote, or None to begin.
        max_minutes: When to stop, compilation included.
    """
    clock = Clock(max_minutes)
    journal = Journal(out / "journal.jsonl", clock)
    device = jax.devices()[0]
    journal.write(
        stage="start",
        device=device.device_kind,
        jax=jax.__version__,
        seed=settings.seed,
    )
    check_denoiser(settings)
    journal.write(stage="checked")
    params = initial_params(settings)
    average = {name: params[name] for name in ("transformer", "text_encoder")}
    spent = {"autoencoder": 0.0, "denoiser": 0.0}
    if resume is not None:
        params |= state.load(resume, "params")
        average |= state.load(resume, "average")
        spent |= state.load_progress(resume)["spent"]
    codec = {name: params[name] for name in ("encoder", "decoder")}
    model = {name: params[name] for name in ("transformer", "text_encoder")}
    model, average, codec = jax.tree.map(jnp.array, (model, average, codec))

    def keep(model: Params, average: Params, codec: Params) -> None:
        progress = {"spent": spent, "settings": dataclasses.asdict(settings)}
        trees = {"params": {**model, **codec}, "average": average}
        state.save(out, trees, progress)

    def keep_codec(codec: Params, seconds: float) -> None:
        spent["autoencoder"] = seconds
        keep(model, average, codec)
        if settings.write_sheets:
            sheets.write_reconstructions(
                settings, codec, out / "autoencoder.png", journal
            )

    def keep_model(model: Params, average: Params, seconds: float) -> None:
        spent["denoiser"] = seconds
        keep(model, average, codec)

    if spent["autoencoder"] < 60 * settings.autoencoder_minutes:
        codec, _ = train_autoencoder(
            settings, codec, spent["autoencoder"], clock, journal, keep_codec
        )
    if spent["autoencoder"] < 60 * settings.autoencoder_minutes:
        return
    train_denoiser(
        settings, codec, model, average, spent["denoiser"], clock, journal, keep_model
    )
    if settings.write_sheets:
        average = state.load(out, "average")
        sheets.write_predictions(
            settings, codec, average, out / "denoiser.png", journal
        )
