"""The streaming wrapper: what is visible, what stays, batches, features, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.attention.attend import attend
from fdjax.attention.rope import rope_table
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import NullEncoderConfig
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl
from fdjax_models.networks.wan_dit.dit import init_params
from fdjax_models.networks.wan_dit.image_conditioning import (
    Concatenate,
    FirstFrameTimestep,
    Stamp,
)
from fdjax_models.networks.wan_dit.time_embedding import TokenTimesteps
from fdjax_models.networks.wan_dit.transformer import (
    WanTransformer,
    WanTransformerConfig,
)
from tests import golden
from tests.networks.wan_dit import tiny

SIZE = (4, 6)
FRAME = 6  # tokens per latent frame
BASE = WanTransformerConfig(network=tiny.CONFIG, len_t=2, window_size_t=4)
RELATIVE = {"apply_rope_before_kvcache": False}
LAYOUTS = {
    "window": {},
    "sink": {"sink_size_t": 2},
    "straddling sink": {"len_t": 3, "window_size_t": 7, "sink_size_t": 5},
    "window shorter than a chunk": {"len_t": 3, "window_size_t": 2, "sink_size_t": 4},
}


@functools.cache
def _params(network=tiny.CONFIG):
    return tiny.params(network)


def _conditions(batch: int = 1, name: str = "") -> Conditions:
    shape = (batch, tiny.CONFIG.text_len, tiny.CONFIG.text_dim)
    return Conditions(
        text=jnp.asarray(golden.fill_input("text" + name, shape)),
        negative_text=jnp.asarray(golden.fill_input("negative" + name, shape)),
    )


def _latent(transformer: WanTransformer, name: str, batch: int = 1) -> jax.Array:
    config = transformer.config
    shape = (batch, config.len_t * FRAME, 4 * config.network.out_dim)
    return jnp.asarray(golden.fill_input(name, shape))


def _start(config: WanTransformerConfig, batch: int = 1):
    transformer = config.setup()
    params = _params(config.network)
    cache = transformer.initialize_cache(params, _conditions(batch), *SIZE)
    return transformer, params, cache


class ListAttention:
    """A slow twin: every key ever seen in a list, the visible ones picked by frame."""

    def __init__(self, config: WanTransformerConfig, past: int, table):
        self.config, self.past, self.table = config, past, table

    def __call__(self, query, key, value, state):
        cfg = self.config
        keys = [*state[0], *np.split(np.asarray(key), cfg.len_t, axis=1)]
        values = [*state[1], *np.split(np.asarray(value), cfg.len_t, axis=1)]
        total = self.past + cfg.len_t
        newest = max(cfg.sink_size_t, total - cfg.window_size_t)
        visible = [*range(min(cfg.sink_size_t, total)), *range(newest, total)]
        if cfg.apply_rope_before_kvcache:
            key_times, query_times = visible, range(self.past, total)
        else:
            key_times = range(len(visible))
            query_times = range(len(visible) - cfg.len_t, len(visible))
        rotate = cfg.layout.rope.rotate
        query = rotate(query, self.table(query_times))
        key = np.concatenate([keys[frame] for frame in visible], axis=1)
        value = np.concatenate([values[frame] for frame in visible], axis=1)
        key = rotate(jnp.asarray(key), self.table(key_times))
        return (keys, values), attend(query, key, jnp.asarray(value))


@pytest.mark.parametrize("mode", [{}, RELATIVE], ids=["absolute", "relative"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sees_what_a_list_of_frames_says(layout, mode):
    config = dataclasses.replace(BASE, **LAYOUTS[layout], **mode)
    transformer, params, cache = _start(config)
    predict = jax.jit(transformer.predict_flow)
    commit = jax.jit(functools.partial(tiny.commit, transformer))

    def table(times):
        angles = transformer.layout.rope.angles(
            np.array(times), SIZE[0] // 2, SIZE[1] // 2
        )
        return rope_table(angles, jnp.float32)

    states = tuple(([], []) for _ in range(config.network.num_layers))
    for chunk in range(6):
        attention = ListAttention(config, chunk * config.len_t, table)
        noisy = _latent(transformer, f"noisy{chunk}")
        clean = _latent(transformer, f"clean{chunk}")

        twin = functools.partial(
            transformer.network.apply,
            {"params": params},
            attention=attention,
            states=states,
            context=cache.context,
        )
        _, expected = twin(noisy, jnp.float32(700))
        workspace = transformer.start(params, cache, None)
        _, flow = predict(params, workspace, noisy, jnp.float32(700))
        testing.assert_close(flow, expected)
        states, _ = twin(clean, jnp.float32(0))
        cache = commit(params, cache, clean, None)


@pytest.mark.parametrize("mode", [{}, RELATIVE], ids=["absolute", "relative"])
def test_predicting_leaves_the_visible_cache_as_it_is(mode):
    config = dataclasses.replace(BASE, sink_size_t=2, **mode)
    transformer, params, cache = _start(config)
    for chunk in range(4):
        clean = _latent(transformer, f"clean{chunk}")
        cache = tiny.commit(transformer, params, cache, clean, None)
    noisy, other = _latent(transformer, "noisy"), _latent(transformer, "other")

    def flow_of(cache, latent):
        workspace = transformer.start(params, cache, None)
        return transformer.predict_flow(params, workspace, latent, jnp.float32(500))

    workspace, _ = flow_of(cache, other)
    used = transformer.release(workspace)[0]
    np.testing.assert_array_equal(flow_of(used, noisy)[1], flow_of(cache, noisy)[1])
    committed = [
        tiny.commit(transformer, params, each, noisy, None) for each in (used, cache)
    ]
    jax.tree.map(np.testing.assert_array_equal, *committed)
    assert jax.tree.structure(used) == jax.tree.structure(cache)


def test_bidirectional_generation_keeps_no_buffers():
    config = dataclasses.replace(BASE, len_t=4)
    transformer, params, cache = _start(config)
    assert cache.kv.keys == cache.kv.values == ()
    wide = dataclasses.replace(config, window_size_t=8)
    latent = _latent(transformer, "x")
    flows = []
    for each in (config, wide):
        transformer, params, cache = _start(each)
        workspace = transformer.start(params, cache, None)
        _, flow = transformer.predict_flow(params, workspace, latent, jnp.float32(300))
        flows.append(flow)
    testing.assert_close(*flows)
    cache = tiny.commit(transformer, params, cache, latent, None)
    assert cache.kv.num_chunks == 1


def test_two_sessions_equal_two_rollouts():
    config = dataclasses.replace(
        BASE, guidance_scale=4.0, image_conditioning=(Stamp(),)
    )
    transformer, params, both = _start(config, batch=2)
    conditions = _conditions(2)
    alone = [
        transformer.initialize_cache(
            params,
            jax.tree.map(lambda x, i=i: x[i : i + 1], conditions),
            *SIZE,
        )
        for i in range(2)
    ]
    shape = (2, config.len_t, *SIZE, 16)
    predict = jax.jit(transformer.predict_flow)
    commit = jax.jit(functools.partial(tiny.commit, transformer))

    def step(cache, latent, timestep, control):
        workspace = transformer.start(params, cache, control)
        _, flow = predict(params, workspace, latent, timestep)
        return commit(params, cache, latent, control), flow

    for chunk in range(3):
        latent = _latent(transformer, f"x{chunk}", batch=2)
        control = ImageControl(
            latent=jnp.asarray(golden.fill_input(f"image{chunk}", shape)),
            mask=jnp.asarray(golden.fill_input("mask", shape) > 0, jnp.float32),
        )
        timesteps = jnp.array([900.0, 100.0])
        both, flow = step(both, latent, timesteps, control)
        for i in range(2):
            mine = jax.tree.map(lambda x, i=i: x[i : i + 1], control)
            alone[i], single = step(alone[i], latent[i : i + 1], timesteps[i], mine)
            testing.assert_close(flow[i : i + 1], single)


def test_guidance_extrapolates_from_the_negative_prompt():
    params, scale = _params(), 3.0
    plain = BASE.setup()
    guided = dataclasses.replace(BASE, guidance_scale=scale).setup()
    conditions = _conditions()
    negative = Conditions(text=conditions.negative_text)

    def flow(transformer, conditions):
        cache = transformer.initialize_cache(params, conditions, *SIZE)
        workspace = transformer.start(params, cache, None)
        latent = _latent(transformer, "x")
        return transformer.predict_flow(params, workspace, latent, jnp.float32(400))[1]

    with_text, without = flow(plain, conditions), flow(plain, negative)
    expected = without + scale * (with_text - without)
    testing.assert_close(flow(guided, conditions), expected)
    assert guided.layout.num_branches == 2
    assert plain.layout.num_branches == 1


def test_a_new_prompt_keeps_what_was_generated():
    transformer, params, cache = _start(BASE)
    latent = _latent(transformer, "x")
    cache = tiny.commit(transformer, params, cache, latent, None)
    changed = transformer.update_conditions(params, cache, _conditions(name="new"))
    jax.tree.map(np.testing.assert_array_equal, changed.kv, cache.kv)
    fresh = transformer.initialize_cache(params, _conditions(name="new"), *SIZE)
    jax.tree.map(np.testing.assert_array_equal, changed.context, fresh.context)
    with pytest.raises(ValueError, match="cache's 1 sessions, got 2"):
        transformer.update_conditions(params, cache, _conditions(2))


def test_a_vector_per_frame_equals_one_per_token():
    config = dataclasses.replace(BASE, len_t=4, window_size_t=4)
    transformer, params, cache = _start(config)
    latent = _latent(transformer, "x")
    workspace = transformer.start(params, cache, None)
    per_frame = jnp.array([[900.0, 500.0, 20.0, 0.0]])
    flows = [
        transformer.predict_flow(params, workspace, latent, timestep)[1]
        for timestep in (per_frame, jnp.repeat(per_frame, FRAME, axis=1))
    ]
    testing.assert_close(*flows)
    _, uniform = transformer.predict_flow(params, workspace, latent, per_frame[:, 0])
    first = slice(0, FRAME)
    assert jnp.abs(uniform - flows[0]).max() > 0.1
    # The first frame has the same timestep, and sees other frames that do not.
    assert jnp.abs(uniform - flows[0])[:, first].max() > 1e-3


def test_features_steer_where_they_are():
    network = dataclasses.replace(
        tiny.CONFIG, text_dim=0, token_feature_dim=3, vector_feature_dim=5
    )
    config = dataclasses.replace(BASE, network=network)
    transformer = config.setup()
    params = init_params(network, jax.random.key(0))
    cache = transformer.initialize_cache(params, Conditions(), *SIZE)
    latent = _latent(transformer, "x")

    def flow(tokens, vectors):
        control = WanControl(token_features=tokens, vector_features=vectors)
        workspace = transformer.start(params, cache, control)
        return transformer.predict_flow(params, workspace, latent, jnp.float32(400))[1]

    tokens = jnp.zeros((1, 2 * FRAME, 3))
    vectors = jnp.zeros((1, 2, 5))
    base = flow(tokens, vectors)
    testing.assert_close(flow(tokens, vectors[:, 0]), base)  # one per chunk
    for changed in (
        flow(tokens.at[:, 2].set(1.0), vectors),
        flow(tokens, vectors.at[:, 1].set(1.0)),
    ):
        assert jnp.abs(changed - base).max() > 0.05
    # Head and MLP act token by token: what one frame is given shows there most.
    change = jnp.abs(flow(tokens, vectors.at[:, 1].set(1.0)) - base)
    assert change[:, FRAME:].mean() > 3 * change[:, :FRAME].mean()


def test_patches_are_inverted():
    transformer, _, cache = _start(BASE)
    video = jnp.asarray(golden.fill_input("video", (1, 2, *SIZE, 16)))
    tokens = transformer.patchify(video)
    assert tokens.shape == transformer.latent_shape(cache)
    np.testing.assert_array_equal(transformer.unpatchify(tokens, cache), video)
    # Token (frame 1, row 0, column 2), feature (channel 3, row 1, column 0).
    assert tokens[0, FRAME + 2, 3 * 4 + 2] == video[0, 1, 1, 4, 3]


def _initialize(pipeline, params, key):
    return pipeline.initialize_cache(
        params, conditions=_conditions(), pixel_height=4, pixel_width=6, key=key
    )


def _pipeline(transformer: WanTransformerConfig, **fields):
    return StreamInferencePipelineConfig(
        name="tiny-wan",
        diffusion_model=DiffusionModelConfig(
            transformer=transformer,
            scheduler=FlowMatchSchedulerConfig(
                num_inference_steps=2, denoising_timesteps=(1000, 500)
            ),
        ),
        spatial_compression_ratio=1,
        **fields,
    )


def _image_input(chunk: int) -> ImageControl:
    shape = (1, 2, *SIZE, 16)
    mask = jnp.zeros(shape).at[:, 0].set(float(chunk == 0))
    latent = jnp.asarray(golden.fill_input(f"control{chunk}", shape))
    return ImageControl(latent=latent, mask=mask)


PIPELINES = {
    "window": testing.PipelineCase(
        config=_pipeline(BASE),
        initialize=_initialize,
        new_conditions=lambda pipeline, params: _conditions(name="new"),
    ),
    "relative, guidance, image": testing.PipelineCase(
        config=_pipeline(
            dataclasses.replace(
                BASE,
                window_size_t=3,
                sink_size_t=1,
                guidance_scale=2.0,
                image_conditioning=(Stamp(), FirstFrameTimestep()),
                **RELATIVE,
            ),
            encoder=NullEncoderConfig(),
        ),
        initialize=_initialize,
        make_input=_image_input,
    ),
}


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, id=f"{name}-{check.__name__}")
        for name in PIPELINES
        for check in testing.CHECKS
        # Operation by operation takes long: once for this network.
        if name == "window" or check.__name__ != "check_without_jit"
    ],
)
def test_contract(name, check):
    check(PIPELINES[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_size_t": 1}, "make the window 2 or more"),
        ({"len_t": 5}, "'len_t': 5, 'window_size_t': 4"),
        ({"window_size_t": 0, "sink_size_t": 4}, "window must be >= 1"),
        ({"image_conditioning": (Concatenate(),)}, "in_dim must be 36"),
        (
            {"image_conditioning": (FirstFrameTimestep(), FirstFrameTimestep())},
            "must name each way once, got FirstFrameTimestep 2 times",
        ),
                (
            {"network": dataclasses.replace(tiny.CONFIG, patch_size=(2, 2, 2)),
             "len_t": 3, "window_size_t": 3},
            "multiples of 2",
        ),
        (
            {"network": dataclasses.replace(tiny.CONFIG, text_dim=0),
             "guidance_scale": 2.0},
            "network with text",
        ),
    ],
)  # fmt: skip
def test_sizes_that_cannot_work(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **change)


@pytest.mark.parametrize(
    ("change", "conditions", "size", "message"),
    [
        ({}, _conditions(), (4, 5), "multiples of 2 and 2, the patch size, got 4 x 5"),
        ({}, _conditions(), (0, 6), "got 0 x 6"),
        ({}, Conditions(), SIZE, r"needs conditions\.text, got None"),
        (
            {"guidance_scale": 5.0},
            Conditions(text=_conditions().text),
            SIZE,
            "negative_text with guidance_scale=5.0 > 1, got None; set negative_prompt",
        ),
        ({}, Conditions(text=jnp.zeros((1, 8, 15))), SIZE, "another encoder"),
        ({}, Conditions(text=jnp.zeros((1, 7, 16))), SIZE, r"\(B, 8, 16\)"),
        (
            {"network": tiny.IMAGE_CONFIG, "image_conditioning": (Concatenate(),)},
            _conditions(),
            SIZE,
            r"image_embedding of shape \(B, P, 1280\), got None",
        ),
    ],
)
def test_conditions_that_do_not_fit(change, conditions, size, message):
    config = dataclasses.replace(BASE, **change)
    with pytest.raises(ValueError, match=message):
        config.setup().initialize_cache({}, conditions, *size)


IMAGE = ImageControl(
    latent=jnp.zeros((1, 2, *SIZE, 16)), mask=jnp.zeros((1, 1, 1, 1, 1))
)


@pytest.mark.parametrize(
    ("change", "control", "message"),
    [
        ({"image_conditioning": (Stamp(),)}, None, "need a control with an image"),
        (
            {"image_conditioning": (Stamp(),)},
            IMAGE.replace(latent=jnp.zeros((1, 3, *SIZE, 16))),
            r"image\.latent must have shape \(1, 2, 4, 6, 16\), got \(1, 3, 4, 6, 16\)",
        ),
        ({}, WanControl(vector_features=jnp.zeros((1, 4))), "0 channels .* got 4"),
        ({}, jnp.zeros(3), "takes a WanControl"),
    ],
)
def test_controls_that_do_not_fit(change, control, message):
    transformer, params, cache = _start(dataclasses.replace(BASE, **change))
    with pytest.raises(ValueError, match=message):
        transformer.start(params, cache, control)


@pytest.mark.parametrize("batch", [1, 2])
def test_two_timesteps_are_embedded_once_each(batch):
    """Not once for every token; the flow is that of one timestep for each token."""
    transformer, params, _ = _start(BASE)
    network, length = transformer.network, 2 * FRAME
    latent = jnp.asarray(golden.fill_input("two", (batch, length, 64)))
    second = jnp.asarray(golden.fill_input("which", (batch, length)) > 0)
    values = jnp.asarray([[700.0, 14.0], [300.0, 0.0]][:batch])
    rows = (jnp.asarray(golden.fill_input("text", (batch, 8, 16))),)
    context = network.apply({"params": params}, *rows, method="context")

    def run(timestep):
        (_, flow), state = network.apply(
            {"params": params},
            latent,
            timestep,
            lambda query, key, value, state: (state, value),
            (None,) * BASE.network.num_layers,
            context,
            capture_intermediates=lambda module, _: module.name == "time_projection",
            mutable=["intermediates"],
        )
        [projected] = state["intermediates"]["time_projection"]["__call__"]
        return flow, projected.shape[:2]

    flow, shape = run(TokenTimesteps(values=values, second=second))
    by_token = jnp.where(second, values[:, 1:], values[:, :1])
    expected, full_shape = run(by_token)
    assert (shape, full_shape) == ((batch, 2), (batch, length))
    testing.assert_close(flow, expected, testing.tolerance(jnp.float32, 64))
    other, _ = run(TokenTimesteps(values=values, second=~second))
    assert jnp.abs(other - flow).max() > 1e-2


def test_a_camera_network_needs_rays():
    network = dataclasses.replace(tiny.LINGBOT_CONFIG, control_dim=12)
    config = dataclasses.replace(
        BASE, network=network, image_conditioning=(Concatenate(),)
    )
    transformer = config.setup()
    params = init_params(network, jax.random.key(0))
    cache = transformer.initialize_cache(params, _conditions(), *SIZE)
    with pytest.raises(ValueError, match=r"rays must have shape \(1, 2, 4, 6, 12\)"):
        transformer.start(params, cache, IMAGE)
    rays = jnp.ones((1, 2, *SIZE, 12))
    workspace = transformer.start(params, cache, WanControl(image=IMAGE, rays=rays))
    assert len(workspace.extras) == network.num_layers
