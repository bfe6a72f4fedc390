"""Training shows the network what streaming shows it, and learns from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax_models.methods.maze_world import text
from fdjax_models.methods.maze_world.encoder import control_features
from fdjax_models.methods.maze_world.training.data import Clip
from fdjax_models.methods.maze_world.training.denoiser import (
    Denoiser,
    drop_words,
    visibility,
)
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl
from fdjax_models.networks.wan_dit.dit import init_params
from fdjax_models.networks.wan_dit.image_conditioning import Stamp
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig
from tests.methods.maze_world.tiny import NETWORK

HEIGHT, WIDTH, WINDOW, CHUNKS = 4, 6, 3, 5


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(config=NETWORK, height=HEIGHT, width=WIDTH, window=WINDOW)


@pytest.fixture(scope="module")
def params():
    table = jax.random.normal(jax.random.key(1), (text.VOCABULARY_SIZE, 8))
    transformer = init_params(NETWORK, jax.random.key(0))
    return {"transformer": transformer, "text_encoder": {"table": table}}


@pytest.fixture(scope="module")
def clips() -> Clip:
    keys = jax.random.split(jax.random.key(2), 2)
    return Clip(
        video=jax.random.normal(keys[0], (2, CHUNKS, HEIGHT, WIDTH, 4)),
        controls=jax.random.normal(keys[1], (2, CHUNKS, 4, 2)).at[:, 0].set(0),
        tokens=jnp.array([[1, 8, 14, 18], [3, 9, 15, 19]]),
    )


def stream(params, clips: Clip, noisy, clean_level, level):
    """The flow of each chunk, from a transformer that streams against its cache."""
    transformer = WanTransformerConfig(
        network=NETWORK, len_t=1, window_size_t=WINDOW, image_conditioning=(Stamp(),)
    ).setup()
    weights = params["transformer"]
    prompt = params["text_encoder"]["table"][clips.tokens]
    cache = transformer.initialize_cache(
        weights, Conditions(text=prompt), HEIGHT, WIDTH
    )
    nothing = jnp.zeros((2, 1, HEIGHT, WIDTH, 4))
    flows = []
    for i in range(CHUNKS):
        features = control_features(clips.controls[:, i], jnp.array(i == 0))
        control = WanControl(
            image=ImageControl(latent=nothing, mask=nothing), vector_features=features
        )
        workspace = transformer.start(weights, cache, control)
        x = transformer.patchify(noisy[:, i : i + 1])
        _, flow = transformer.predict_flow(weights, workspace, x, 1000 * level[i])
        flows.append(flow)
        x = transformer.patchify(clips.video[:, i : i + 1])
        _, residue = transformer.release(workspace)
        cache = transformer.commit(weights, cache, residue, x, 1000 * clean_level)
    return jnp.concatenate(flows, axis=1)


def test_one_pass_over_a_clip_equals_streaming(denoiser, params, clips):
    noisy = jax.random.normal(jax.random.key(3), clips.video.shape)
    level = jnp.linspace(0.2, 1.0, CHUNKS)
    clean_level = jnp.float32(0.1)
    expected = stream(params, clips, noisy, clean_level, level)
    got = jax.jit(denoiser.forward)(
        params,
        denoiser.patchify(clips.video),
        jnp.full((2, CHUNKS), clean_level),
        denoiser.patchify(noisy),
        jnp.broadcast_to(level, (2, CHUNKS)),
        clips.controls,
        clips.tokens,
    )
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_patchify_round_trip(denoiser, clips):
    tokens = denoiser.patchify(clips.video)
    np.testing.assert_array_equal(denoiser.unpatchify(tokens), clips.video)


def test_masks_equal_a_slow_rule():
    see_clean, see_noisy = visibility(num_chunks=4, tokens_per_chunk=2, window=3)
    for query in range(8):
        i = query // 2
        for key in range(8):
            j = key // 2
            assert see_clean[query, key] == (j in range(max(0, i - 2), i + 1))
            assert see_noisy[query, key] == (j in range(max(0, i - 2), i))
            assert see_noisy[query, 8 + key] == (j == i)


def test_loss_of_the_right_flow_is_zero(denoiser, params, clips, monkeypatch):
    """The target is the ground truth's flow, whatever the history is."""
    seen = {}

    def forward(self, params, clean, clean_level, noisy, level, controls, tokens):
        seen["history"], seen["clean_level"] = clean, clean_level
        per_token = jnp.repeat(level, self.tokens_per_chunk, axis=1)[..., None]
        target = self.patchify(clips.video)
        return (noisy - target) / per_token  # noise - target

    monkeypatch.setattr(Denoiser, "forward", forward)
    for own_share in (None, jnp.float32(0.0), jnp.float32(0.9)):
        loss, levels = denoiser.loss(params, clips, jax.random.key(0), own_share)
        assert float(loss) < 1e-8
        assert levels.shape == (4,)
    assert (seen["clean_level"] <= denoiser.context_noise_limit).all()


def test_own_history_keeps_some_chunks(denoiser, params, clips):
    target = denoiser.patchify(clips.video)
    own = jax.jit(denoiser._own_history)(
        params,
        target,
        clips.controls,
        clips.tokens,
        jax.random.key(4),
        jnp.float32(1.0),
    )
    same = np.isclose(own, target).reshape(2, CHUNKS, -1).all(-1)
    assert 0 < same.sum() < same.size


def test_gradients_with_own_history_are_finite(denoiser, params, clips):
    def loss(params):
        return denoiser.loss(params, clips, jax.random.key(5), jnp.float32(1.0))[0]

    grads = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert max(float(np.abs(g).max()) for g in jax.tree.leaves(grads)) > 0


def test_dropped_words_become_unsaid():
    tokens = text.tokens_of_style(np.zeros((400, text.NUM_SLOTS), np.int32))
    out = np.asarray(drop_words(jax.random.key(0), jnp.asarray(tokens), 0.25))
    dropped = out == np.array(text.UNSAID_IDS)
    assert ((out == tokens) | dropped).all()
    assert 0.2 < dropped.mean() < 0.45
    assert dataclasses.is_dataclass(Denoiser)
