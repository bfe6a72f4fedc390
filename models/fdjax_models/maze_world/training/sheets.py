"""Contact sheets of what a training run has learned."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Params
from fdjax_models.maze_world.training import autoencoder, data
from fdjax_models.maze_world.training.pool import encoded_clips

if TYPE_CHECKING:
    from fdjax_models.maze_world.training.loop import Journal, Settings


def write_png(path: Path, rows: list[np.ndarray]) -> None:
    """Writes rows of frames as one image.

    Args:
        path: A .png file.
        rows: Frames in [-1, 1], one row of the sheet each.  float[T, H, W, 3].
    """
    from PIL import Image

    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    pixels = np.clip((sheet.astype(np.float32) + 1) * 127.5, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_reconstructions(
    settings: "Settings", codec: Params, path: Path, journal: "Journal"
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
        sharpness=jnp.abs(jnp.diff(out, axis=3)).mean()
        / jnp.abs(jnp.diff(video, axis=3)).mean(),
        latent_mean=latent.mean((0, 1, 2, 3)),
        latent_deviation=latent.std((0, 1, 2, 3)),
    )


def write_predictions(
    settings: "Settings", codec: Params, params: Params, path: Path, journal: Any
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
        latent = denoiser.unpatchify(noise - flow)
        decode = autoencoder.decode_raw
        return tuple(
            decode(decoder, codec["decoder"], x)
            for x in (clips.video.astype(jnp.float32), latent)
        )

    truth, out = predict(codec, params, jax.random.key(settings.seed + 1))
    step = max(1, truth.shape[1] // 9)
    rows: list[np.ndarray] = []
    for clip in range(len(truth)):
        rows += [np.asarray(x)[clip, ::step] for x in (truth, out)]
    write_png(path, rows)
    journal.write(stage="prediction", psnr=autoencoder.psnr(out, truth))
