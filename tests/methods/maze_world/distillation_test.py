"""Distillation makes few steps sharp, and pieces of rollouts are cut where they say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax_models.methods.maze_world import text
from fdjax_models.methods.maze_world.training.data import Clip
from fdjax_models.methods.maze_world.training.denoiser import Denoiser
from fdjax_models.methods.maze_world.training.distillation import (
    Distiller,
    variance_by_quarter,
)
from fdjax_models.networks.wan_dit.dit import init_params
from fdjax_models.networks.wan_dit.image_conditioning import Stamp
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig
from tests.methods.maze_world import tiny

NETWORK = dataclasses.replace(
    tiny.NETWORK, ffn_dim=48, num_layers=1, in_dim=2, out_dim=2
)
BATCH, CHUNKS, TOKENS = 16, 3, 2


@pytest.fixture(scope="module")
def distiller() -> Distiller:
    model = DiffusionModelConfig(
        transformer=WanTransformerConfig(
            network=NETWORK, len_t=1, window_size_t=3, image_conditioning=(Stamp(),)
        ),
        scheduler=FlowMatchSchedulerConfig(
            num_inference_steps=2, denoising_timesteps=(1000, 500), shift=1.0
        ),
    )
    denoiser = Denoiser(config=NETWORK, height=2, width=4, window=3)
    return Distiller(denoiser=denoiser, model=model.setup())


@pytest.fixture(scope="module")
def params():
    transformer = init_params(NETWORK, jax.random.key(0))
    table = jax.random.normal(jax.random.key(1), (text.VOCABULARY_SIZE, 8))
    return {"transformer": transformer, "text_encoder": {"table": table}}


def clips_of_one_sign(key: jax.Array) -> Clip:
    """Every chunk is all 1 or all -1, whatever came before."""
    sign = jax.random.rademacher(key, (BATCH, CHUNKS, 1, 1, 1), jnp.float32)
    return Clip(
        video=jnp.broadcast_to(sign, (BATCH, CHUNKS, 2, 4, 2)),
        controls=jnp.zeros((BATCH, CHUNKS, 4, 2)),
        tokens=jnp.zeros((BATCH, text.NUM_SLOTS), jnp.int32),
    )


def starts() -> Clip:
    clips = clips_of_one_sign(jax.random.key(5))
    return dataclasses.replace(clips, video=clips.video[:, :1])


@pytest.fixture(scope="module")
def base(distiller, params):
    """A base model, trained until it knows the two signs."""
    optimizer = optax.adam(4e-3)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            keys = jax.random.split(key)
            clips = clips_of_one_sign(keys[0])
            grads, _ = jax.grad(distiller.denoiser.loss, has_aux=True)(
                params, clips, keys[1], jnp.float32(0)
            )
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(2), 250)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    return train(params)


@pytest.mark.slow
def test_two_steps_become_sharp(distiller, base):
    """The mean of both signs is grey; distilled, each chunk is one or the other."""
    optimizer = optax.adam(2e-3)
    no_image = jnp.zeros(BATCH, bool)

    @jax.jit
    def rollouts(params, key):
        return distiller.rollout(params, starts(), no_image, key)

    @jax.jit
    def distill(base):
        def step(carry, key):
            params, state, critic, critic_state = carry
            keys = jax.random.split(key, 6)
            made = distiller.rollout(params, starts(), no_image, keys[0])
            pieces = distiller.cut(made, starts(), no_image, keys[1], BATCH, CHUNKS)
            grads, chunks = jax.grad(distiller.generator_loss, has_aux=True)(
                params, critic, base, pieces, keys[2]
            )
            updates, state = optimizer.update(grads, state)
            params = optax.apply_updates(params, updates)

            def follow(carry, key):
                critic, state = carry
                grads = jax.grad(distiller.critic_loss)(critic, pieces, chunks, key)
                updates, state = optimizer.update(grads, state)
                return (optax.apply_updates(critic, updates), state), None

            (critic, critic_state), _ = jax.lax.scan(
                follow, (critic, critic_state), keys[3:]
            )
            return (params, state, critic, critic_state), None

        carry = base, optimizer.init(base), base, optimizer.init(base)
        keys = jax.random.split(jax.random.key(3), 200)
        return jax.lax.scan(step, carry, keys)[0][0]

    few_step = distill(base)
    before, after = (rollouts(params, jax.random.key(4)) for params in (base, few_step))
    assert jnp.abs(before).mean() < 0.7  # of 1
    assert jnp.abs(after).mean() > 0.9, jnp.abs(after).mean()
    assert 0.25 < (after > 0).mean() < 0.75  # both signs still occur


def test_a_rollout_streams_as_the_pipeline_does(distiller, params):
    """The given first frame stays; what follows depends on it and on the keys held."""
    clips, key = starts(), jax.random.key(6)
    has_image = jnp.arange(BATCH) % 2 == 0
    roll = jax.jit(distiller.rollout)
    made = roll(params, clips, has_image, key).reshape(BATCH, CHUNKS, TOKENS, -1)
    given = distiller.denoiser.patchify(clips.video)
    np.testing.assert_array_equal(made[::2, 0], given[::2])
    assert not np.isclose(made[1::2, 0], given[1::2]).any()
    held = dataclasses.replace(clips, controls=clips.controls.at[:, 1:].set(1.0))
    other = roll(params, held, has_image, key).reshape(made.shape)
    np.testing.assert_array_equal(other[:, :1], made[:, :1])
    assert not np.isclose(other[:, 1:], made[:, 1:]).all((1, 2, 3)).any()


def test_variance_tells_blur():
    sharp = jax.random.normal(jax.random.key(8), (32, 8, 16))
    blurred = sharp * jnp.repeat(jnp.array([1.0, 1.0, 0.7, 0.5]), 2)[:, None]
    np.testing.assert_allclose(
        variance_by_quarter(blurred), [1.0, 1.0, 0.49, 0.25], rtol=0.1
    )


def test_pieces_hold_what_was_rolled_out(distiller):
    """Latents, keys and weights of a piece belong to the same chunks."""
    count, length = 64, 6
    total = 2 * length
    number = jnp.arange(BATCH * total, dtype=jnp.float32).reshape(BATCH, total)
    clips = Clip(
        video=jnp.zeros((BATCH, 1, 2, 4, 2)),
        controls=jnp.broadcast_to(number[..., None, None], (BATCH, total, 4, 2)),
        tokens=jnp.zeros((BATCH, text.NUM_SLOTS), jnp.int32),
    )
    latents = jnp.repeat(number, TOKENS, axis=1)[..., None]
    has_image = jnp.arange(BATCH) % 2 == 0
    pieces = distiller.cut(latents, clips, has_image, jax.random.key(7), count, length)
    row, begin = np.divmod(np.asarray(pieces.controls[:, 0, 0, 0]).astype(int), total)
    of_chunk = pieces.latent.reshape(count, length, TOKENS)
    np.testing.assert_array_equal(of_chunk[..., 0], pieces.controls[..., 0, 0])
    np.testing.assert_array_equal(of_chunk[..., 0], of_chunk[..., 1])
    np.testing.assert_array_equal(pieces.is_first[:, 0], begin == 0)
    assert not pieces.is_first[:, 1:].any()
    assert {0, 1} <= set(begin) <= set(range(length + 1))
    for weight, at, is_given in zip(
        pieces.weight, begin, np.asarray(has_image)[row], strict=True
    ):
        expected = [0, 0, 0, 0, 1, 1] if at else [0 if is_given else 3, 1, 1, 1, 1, 1]
        np.testing.assert_array_equal(weight, expected)
