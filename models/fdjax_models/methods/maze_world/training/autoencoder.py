"""Training of the video autoencoder: TAEHV's networks, from scratch.

Latents are whitened per channel with the statistics of the batch while training, and
get a little noise, so that the decoder forgives the small errors of the diffusion
model. At the end the statistics are folded into the encoder's last convolution: what
is shipped is a plain TAEHV whose latents have zero mean and unit variance.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fdjax.axes import Array, Params, PyTree
from fdjax_models.methods.maze_world.training import data, parallel
from fdjax_models.methods.maze_world.training.optimizer import apply
from fdjax_models.networks.taehv.decoder import TaehvDecoder
from fdjax_models.networks.taehv.encoder import TaehvEncoder
from fdjax_models.networks.taehv.network import decoder_memories, encoder_memories

LATENT_NOISE = 0.15
"""Standard deviation of the noise added to whitened latents."""


def encode_raw(encoder: TaehvEncoder, params: Params, video: jax.Array) -> jax.Array:
    """Encodes whole clips at once, the first frame repeated in front.

    Args:
        encoder: The encoder.
        params: Its weights.
        video: In [-1, 1].  [B, 1 + 4 (T - 1), H, W, 3], pixels.

    Returns:
        Latents.  float32[B, T, H, W, C].
    """
    ratio = encoder.config.temporal_ratio
    # [B, 1 + 4 (T - 1), H, W, 3] -> [B, 4 T, H, W, 3]
    video = jnp.concatenate([jnp.repeat(video[:, :1], ratio - 1, 1), video], axis=1)
    height, width = (n // encoder.config.spatial_ratio for n in video.shape[2:4])
    memories = encoder_memories(encoder.config, len(video), height, width)
    # The networks of TAEHV work on pixels in [0, 1].
    latent, _ = encoder.network.apply({"params": params}, (video + 1) / 2, memories)
    return latent.astype(jnp.float32)


def decode_raw(decoder: TaehvDecoder, params: Params, latent: jax.Array) -> jax.Array:
    """Decodes whole clips at once, unclamped; the inverse of `encode_raw`."""
    memories = decoder_memories(decoder.config, len(latent), *latent.shape[2:4])
    rgb, _ = decoder.network.apply({"params": params}, latent, memories)
    # [B, 4 T, H, W, 3] -> [B, 1 + 4 (T - 1), H, W, 3], in [-1, 1]
    return 2 * rgb[:, decoder.config.temporal_ratio - 1 :].astype(jnp.float32) - 1


def reconstruction_loss(video: jax.Array, target: jax.Array) -> jax.Array:
    """Returns L1 of the pixels and of their differences, at three scales.

    Differences between neighbours weigh edges and texture, which L1 alone would blur.

    Args:
        video: float32[B, T, H, W, 3], pixels.
        target: As `video`.
    """
    loss = jnp.float32(0.0)
    for level in range(3):
        error = video - target
        loss += jnp.abs(error).mean()
        # Neighbours below and to the right.
        for axis in (2, 3):
            loss += jnp.abs(jnp.diff(error, axis=axis)).mean()
        if level < 2:
            video, target = (_halve(x) for x in (video, target))
    return loss


def _halve(video: jax.Array) -> jax.Array:
    b, t, h, w, c = video.shape
    # [B, T, H / 2, 2, W / 2, 2, C] -> [B, T, H / 2, W / 2, C]
    return video.reshape(b, t, h // 2, 2, w // 2, 2, c).mean((3, 5))


def loss_and_statistics(
    params: Params,
    encoder: TaehvEncoder,
    decoder: TaehvDecoder,
    video: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Returns the loss, and the latents' mean and deviation and the PSNR."""
    latent = encode_raw(encoder, params["encoder"], video)
    # [C] each; a channel that is constant yet is not divided by 0.
    mean = latent.mean((0, 1, 2, 3))
    deviation = latent.std((0, 1, 2, 3)) + 1e-4
    whitened = (latent - mean) / deviation
    noise = LATENT_NOISE * jax.random.normal(key, latent.shape)
    out = decode_raw(decoder, params["decoder"], whitened + noise)
    target = video.astype(jnp.float32)
    loss = reconstruction_loss(out, target)
    return loss, (mean, deviation, psnr(out, target))


def psnr(video: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the peak signal-to-noise ratio in dB of video in [-1, 1]."""
    error = jnp.square(jnp.clip(video, -1, 1) - target).mean()
    # The range is 2 wide, and its square 4.
    return 10 * jnp.log10(4.0 / error)


def fold_statistics(params: Params, mean: jax.Array, deviation: jax.Array) -> Params:
    """Returns encoder weights whose latents come out whitened."""
    last = params["conv_out"]
    # The output channels are a kernel's last axis: [..., C] over [C].
    folded = {
        "kernel": last["kernel"] / deviation,
        "bias": (last["bias"] - mean) / deviation,
    }
    return {**params, "conv_out": folded}


def unroll(num_steps: int) -> int:
    """Returns how far to unroll a scan over training steps.

    XLA:CPU runs convolutions in a loop's body without its fast library, about 25 times
    slower, so there are no loops there.
    """
    return num_steps if jax.default_backend() == "cpu" else 1


def make_steps(
    encoder: TaehvEncoder,
    decoder: TaehvDecoder,
    optimizer: optax.GradientTransformation,
    *,
    batch: int,
    num_chunks: int,
    num_steps: int,
) -> Any:
    """Returns a jitted function that trains for `num_steps` on fresh clips.

    Every device makes and learns `batch` clips a step. Its arguments are a state
    (params, optimizer state, averaged params, averaged mean, averaged deviation), a key
    and the learning rate; its results the new state, and the mean loss and PSNR.
    """

    def step(state: PyTree, key: jax.Array, rate: Array) -> tuple[PyTree, PyTree]:
        params, opt_state, average, mean, deviation = state
        key_clip, key_noise = jax.random.split(key)
        video = data.make_clips(key_clip, batch, num_chunks).video
        grad = jax.value_and_grad(loss_and_statistics, has_aux=True)
        (loss, (m, d, quality)), grads = grad(
            params, encoder, decoder, video, key_noise
        )
        grads, m, d = parallel.mean((grads, m, d))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = apply(params, updates, rate)
        # Over the last 200 steps or so, statistics over 50.
        average = optax.incremental_update(params, average, 0.005)
        mean, deviation = optax.incremental_update((m, d), (mean, deviation), 0.02)
        return (params, opt_state, average, mean, deviation), (loss, quality)

    def run(state: PyTree, key: jax.Array, rate: Array) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(parallel.own_key(key), num_steps)
        state, logs = jax.lax.scan(
            lambda s, k: step(s, k, rate), state, keys, unroll=unroll(num_steps)
        )
        return state, parallel.mean(jax.tree.map(jnp.mean, logs))

    same = parallel.SAME
    run = parallel.per_device(run, in_specs=(same, same, same), out_specs=same)
    return jax.jit(run, donate_argnums=0)
