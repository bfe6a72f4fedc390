"""A small classifier of wall colour and material, trained on simulator frames."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fdjax_models.methods.maze_world import rendering, simulator, text

NUM_COLOURS = len(text.SLOTS["colour"])
NUM_MATERIALS = len(text.SLOTS["material"])
_WIDTHS = (12, 24, 48, 64)


class Classifier(NamedTuple):
    """A convolutional network: kernels of four stages, and two output layers."""

    kernels: tuple[jax.Array, ...]
    biases: tuple[jax.Array, ...]
    colour: jax.Array
    material: jax.Array


def random_views(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Renders random places of random mazes: images [B, 48, 80, 3], styles [B, 4].

    The camera looks anywhere, from anywhere in a room.
    """

    def view(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, 4)
        world = simulator.random_world(keys[0])
        pose = simulator.random_pose(keys[1], world)
        offset = jax.random.uniform(keys[2], (2,), minval=-0.2, maxval=0.2)
        turn = jax.random.uniform(keys[3], (), minval=-1.2, maxval=1.2)
        pose = dataclasses.replace(
            pose, position=pose.position + offset, yaw=pose.yaw + turn
        )
        return shrink(rendering.render(world, pose)), world.style

    return jax.lax.map(view, jax.random.split(key, count), batch_size=8)


def shrink(frames: jax.Array) -> jax.Array:
    """Halves the size of frames.  [..., H, W, 3] to [..., H / 2, W / 2, 3]."""
    *batch, height, width, channels = frames.shape
    shape = (*batch, height // 2, 2, width // 2, 2, channels)
    return frames.reshape(shape).mean((-4, -2))


def _logits(net: Classifier, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    x = frames
    for kernel, bias in zip(net.kernels, net.biases, strict=True):
        x = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
    pooled = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
    return pooled @ net.colour, pooled @ net.material


def train(key: jax.Array, num_frames: int = 4000, num_steps: int = 900) -> Classifier:
    """Returns a classifier trained on frames of the simulator.

    Blur, noise and changes of brightness are part of the training, so that it looks at
    what a person would look at.
    """
    frames, styles = jax.jit(random_views, static_argnums=1)(key, num_frames)
    keys = jax.random.split(key, 8)
    inputs = (3, *_WIDTHS[:-1])
    kernels = tuple(
        jax.random.normal(k, (5, 5, i, o)) * (2 / (25 * i)) ** 0.5
        for k, i, o in zip(keys, inputs, _WIDTHS, strict=False)
    )
    net = Classifier(
        kernels=kernels,
        biases=tuple(jnp.zeros(o) for o in _WIDTHS),
        colour=jnp.zeros((2 * _WIDTHS[-1], NUM_COLOURS)),
        material=jnp.zeros((2 * _WIDTHS[-1], NUM_MATERIALS)),
    )
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, num_steps))

    def loss(net: Classifier, key: jax.Array) -> jax.Array:
        pick, blur, noise = jax.random.split(key, 3)
        chosen = jax.random.randint(pick, (64,), 0, num_frames)
        x = frames[chosen]
        amount = jax.random.uniform(blur, (64, 1, 1, 1), maxval=0.9)
        soft = (x + sum(jnp.roll(x, s, a) for s in (-1, 1) for a in (1, 2))) / 5
        x = x + amount * (soft - x) + 0.04 * jax.random.normal(noise, x.shape)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return sum(
            cross_entropy(logits, styles[chosen, slot]).mean()
            for slot, logits in enumerate(_logits(net, x))
        )

    @jax.jit
    def step(
        net: Classifier, state: optax.OptState, key: jax.Array
    ) -> tuple[Classifier, optax.OptState]:
        updates, state = optimizer.update(jax.grad(loss)(net, key), state, net)
        return optax.apply_updates(net, updates), state

    state = optimizer.init(net)
    for number in range(num_steps):
        net, state = step(net, state, jax.random.fold_in(keys[-1], number))
    return net


def classify(net: Classifier, video: np.ndarray) -> np.ndarray:
    """Returns colour and material of videos, by the sum over their frames.

    Args:
        net: From `train`.
        video: float[B, T, H, W, 3].

    Returns:
        Indices into the words of the slots.  int[B, 2].
    """
    batch, num_frames = video.shape[:2]
    frames = shrink(jnp.asarray(video, jnp.float32).reshape(-1, *video.shape[2:]))
    guesses = []
    for logits in jax.jit(_logits)(net, frames):
        scores = jax.nn.log_softmax(logits).reshape(batch, num_frames, -1).sum(1)
        guesses.append(np.asarray(scores.argmax(-1)))
    return np.stack(guesses, axis=-1)
