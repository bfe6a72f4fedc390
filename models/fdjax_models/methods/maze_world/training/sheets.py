"""Contact sheets of what a training run has learned."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Params
from fdjax_models.methods.maze_world.evaluation import measures, rollouts
from fdjax_models.methods.maze_world.training import autoencoder, data
from fdjax_models.methods.maze_world.training.journal import Journal
from fdjax_models.methods.maze_world.training.png import write_png
from fdjax_models.methods.maze_world.training.pool import encoded_clips
from fdjax_models.methods.maze_world.training.settings import Settings


def write(
    stage: str,
    settings: Settings,
    trees: Mapping[str, Params],
    out: Path,
    journal: Journal,
) -> None:
    """Writes the contact sheet of a stage that has just run."""
    codec, path = trees["codec"], out / f"{stage}.png"
    if stage == "autoencoder":
        write_reconstructions(settings, codec, path, journal)
    elif stage == "denoiser":
        write_predictions(settings, codec, trees["average"], path, journal)
    else:
        write_rollouts(settings, {**codec, **trees["few_step"]}, path, journal)


def write_reconstructions(
    settings: Settings, codec: Params, path: Path, journal: Journal
) -> None:
    """Shows held-out clips above what the autoencoder makes of them."""
    encoder, decoder = settings.encoder(), settings.decoder()

    @jax.jit
    def reconstruct(codec: Params, key: jax.Array) -> tuple[jax.Array, ...]:
        video = data.make_clips(key, 8, 5).video
        latent = autoencoder.encode_raw(encoder, codec["encoder"], video)
        out = autoencoder.decode_raw(decoder, codec["decoder"], latent)
        return video, out, latent

    video, out, latent = reconstruct(codec, jax.random.key(settings.seed + 1))
    video = video.astype(jnp.float32)
    rows: list[np.ndarray] = []
    for clip in range(4):
        rows += [np.asarray(x)[clip, ::2] for x in (video, out)]
    write_png(path, rows)
    journal.write(
        stage="reconstruction",
        psnr=autoencoder.psnr(out, video),
        # Differences between neighbouring columns: below 1 it is blurred.
        sharpness=jnp.abs(jnp.diff(out, axis=3)).mean()
        / jnp.abs(jnp.diff(video, axis=3)).mean(),
        latent_mean=latent.mean((0, 1, 2, 3)),
        latent_deviation=latent.std((0, 1, 2, 3)),
    )


def write_predictions(
    settings: Settings, codec: Params, params: Params, path: Path, journal: Journal
) -> None:
    """Shows held-out clips above one-step predictions from pure noise."""
    encoder, decoder, denoiser = (
        settings.encoder(),
        settings.decoder(),
        settings.denoiser(),
    )
    chunks = settings.denoiser_chunks

    @jax.jit
    def predict(codec: Params, params: Params, key: jax.Array) -> tuple[jax.Array, ...]:
        clips = encoded_clips(encoder, codec["encoder"], key, 4, chunks)
        target = denoiser.patchify(clips.video.astype(jnp.float32))
        noise = jax.random.normal(key, target.shape)
        ones = jnp.ones(clips.controls.shape[:2])
        flow = denoiser.forward(
            params, target, 0 * ones, noise, ones, clips.controls, clips.tokens
        )
        # x_0 = x_sigma - sigma flow, at sigma 1.
        latent = denoiser.unpatchify(noise - flow)
        decode = autoencoder.decode_raw
        return tuple(
            decode(decoder, codec["decoder"], x)
            for x in (clips.video.astype(jnp.float32), latent)
        )

    truth, out = predict(codec, params, jax.random.key(settings.seed + 1))
    # Nine frames or so of each clip.
    step = max(1, truth.shape[1] // 9)
    rows: list[np.ndarray] = []
    for clip in range(len(truth)):
        rows += [np.asarray(x)[clip, ::step] for x in (truth, out)]
    write_png(path, rows)
    journal.write(stage="prediction", psnr=autoencoder.psnr(out, truth))


def write_rollouts(
    settings: Settings, params: Params, path: Path, journal: Journal
) -> None:
    """Shows walks above what the pipeline that ships makes of them.

    Half of the rollouts start from an image, the others from the prompt alone.

    Args:
        settings: How it was trained.
        params: Weights of all components.
        path: A .png file.
        journal: Gets the statistics of the last third, relative to the simulator's.
    """
    count, frames = 6, 240
    walks = rollouts.simulate(range(500, 500 + count), frames)
    pipeline = rollouts.pipeline_with(
        transformer={"network": settings.network_config()}
    )
    half = count // 2
    # [count / 2, T, H, W, 3] each
    made = [
        rollouts.generate(
            pipeline, params, walks.prompts[part], walks.controls[part], image
        )
        for part, image in (
            (slice(half), walks.video[:half, 0]),
            (slice(half, count), None),
        )
    ]
    # [count, T, H, W, 3]
    video = np.concatenate(made)
    shown = np.linspace(0, frames, 10).astype(int)
    rows: list[np.ndarray] = []
    for truth, clip in zip(walks.video, video, strict=True):
        rows += [truth[shown], clip[shown]]
    write_png(path, rows)
    expected = measures.statistics(walks.video)
    got = measures.statistics(video[:, -frames // 3 :])
    journal.write(
        stage="rollouts",
        **{name: got[name] / value for name, value in expected.items()},
    )
