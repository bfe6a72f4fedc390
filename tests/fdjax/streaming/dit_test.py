"""A family of its own on the streaming wrapper: layers that differ, fewer key heads."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.attention.rope import Rope3D, rope_table
from fdjax.config.base import InstantiateConfig
from fdjax.contract.conditioner import Conditions
from fdjax.streaming.dit import StreamingDiT
from fdjax.streaming.layout import StreamLayout

HEIGHT, WIDTH, FRAME = 2, 3, 6
CHANNELS, WIDTH_M = 4, 24


class Network(nn.Module):
    """Attention layers only, with their own projections of queries and keys."""

    num_layers: int
    num_heads: int
    kv_heads: int

    @nn.compact
    def __call__(self, x, timestep, attention, states, context):
        head_dim = WIDTH_M // self.num_heads
        x = nn.Dense(WIDTH_M)(x) + timestep / 1000 + context
        new = []
        for state in states:
            q = nn.DenseGeneral((self.num_heads, head_dim))(x)
            kv = nn.DenseGeneral((2, self.kv_heads, head_dim))(x)
            state, out = attention(q, kv[:, :, 0], kv[:, :, 1], state)
            new.append(state)
            x = x + nn.Dense(WIDTH_M)(out.reshape(x.shape))
        return tuple(new), nn.Dense(CHANNELS)(x)


class Transformer(StreamingDiT):
    @functools.cached_property
    def network(self):
        cfg = self.config
        return Network(cfg.num_layers, cfg.num_heads, cfg.kv_heads)

    @functools.cached_property
    def layout(self):
        cfg = self.config
        return StreamLayout(
            channels=CHANNELS,
            patch_size=(1, 1, 1),
            num_layers=cfg.num_layers,
            num_heads=cfg.num_heads,
            num_kv_heads=cfg.kv_heads,
            rope=Rope3D(head_dim=WIDTH_M // cfg.num_heads, interleaved=True),
            dtype="float32",
            len_t=cfg.len_t,
            window_size_t=cfg.windows,
            sink_size_t=cfg.sinks,
            cache_relative=cfg.cache_relative,
            guidance_scale=cfg.guidance_scale,
            slot_multiple=cfg.slot_multiple,
        )

    def init_params(self, key):
        def attention(query, key, value, state):
            return state, jnp.zeros_like(query)

        x, context = jnp.zeros((1, 1, CHANNELS)), jnp.zeros((1, 1, WIDTH_M))
        states = (None,) * self.config.num_layers
        variables = self.network.init(key, x, 0.0, attention, states, context)
        return variables["params"]

    def context(self, params, conditions):
        return self.rows(conditions.text, conditions.negative_text)

    def forward(self, params, latent, timestep, attention, states, workspace):
        variables, context = {"params": params}, workspace.cache.context
        return self.network.apply(
            variables, latent, timestep, attention, states, context
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(InstantiateConfig):
    _target: type = Transformer
    num_layers: int = 2
    num_heads: int = 2
    kv_heads: int = 2
    len_t: int = 2
    windows: tuple[int, ...] = (4, 4)
    sinks: tuple[int, ...] = (0, 0)
    cache_relative: bool = False
    guidance_scale: float = 1.0
    slot_multiple: int | None = 1


def conditions(batch=1):
    keys = jax.random.split(jax.random.key(5))
    text, negative = (jax.random.normal(key, (batch, 1, WIDTH_M)) for key in keys)
    return Conditions(text=text, negative_text=negative)


def latent(index, batch=1, frames=2):
    shape = (batch, frames * FRAME, CHANNELS)
    return jax.random.normal(jax.random.key(index), shape)


def aged(cache, transformer, age):
    """The cache as if `age` more chunks had gone before; keys at absolute time turn."""
    layout, kv = transformer.layout, cache.kv
    keys = kv.keys
    if not layout.cache_relative:

        def turn(keys):
            shift = layout.rope.angles([0], 1, 1, offset=age, stride=layout.len_t)
            rows = keys.reshape(-1, *keys.shape[-3:])
            if shift.ndim == 3:
                shift = jnp.repeat(shift, len(rows) // len(shift), axis=0)
            rows = layout.rope.rotate(rows, rope_table(shift, jnp.float32))
            return rows.reshape(keys.shape)

        keys = tuple(map(turn, keys))
    num_chunks = kv.num_chunks + jnp.asarray(age, jnp.uint32)
    kv = dataclasses.replace(kv, keys=keys, num_chunks=num_chunks)
    return dataclasses.replace(cache, kv=kv)


def stream(config, params, chunks=6, batch=1, after=0, age=None):
    """The flow of every chunk, after the clean ones before it were committed.

    Before chunk `after` the sessions are made older by `age` chunks.
    """
    transformer = config.setup()

    @jax.jit
    def step(cache, noisy, clean):
        workspace = transformer.start(params, cache, None)
        t = jnp.float32(300)
        workspace, flow = transformer.predict_flow(params, workspace, noisy, t)
        cache, residue = transformer.release(workspace)
        return transformer.commit(params, cache, residue, clean, jnp.float32(0)), flow

    cache = transformer.initialize_cache(params, conditions(batch), HEIGHT, WIDTH)
    flows = []
    for index in range(chunks):
        if age is not None and index == after:
            cache = aged(cache, transformer, age)
        noisy, clean = latent(index, batch), latent(100 + index, batch)
        cache, flow = step(cache, noisy, clean)
        flows.append(np.asarray(flow))
    return cache, flows


class Visible:
    """A slow twin: keys of all frames in lists, each layer sees those of its window."""

    def __init__(self, config, past):
        self.config, self.past, self.layer = config, past, 0

    def __call__(self, query, key, value, state):
        cfg, layout = self.config, self.config.setup().layout
        window, sink = cfg.windows[self.layer], cfg.sinks[self.layer]
        self.layer += 1
        keys = [*state[0], *np.split(np.asarray(key), cfg.len_t, axis=1)]
        values = [*state[1], *np.split(np.asarray(value), cfg.len_t, axis=1)]
        total = self.past + cfg.len_t
        newest = max(sink, total - window)
        visible = [*range(min(sink, total)), *range(newest, total)]
        times, now = visible, range(self.past, total)
        if cfg.cache_relative:
            times = range(len(visible))
            now = range(len(visible) - cfg.len_t, len(visible))

        def rotate(x, times):
            angles = layout.rope.angles(np.array(times), HEIGHT, WIDTH)
            return layout.rope.rotate(x, rope_table(angles, jnp.float32))

        k = rotate(jnp.concatenate([keys[frame] for frame in visible], axis=1), times)
        v = jnp.concatenate([values[frame] for frame in visible], axis=1)
        copies = query.shape[2] // k.shape[2]
        k, v = (jnp.repeat(x, copies, axis=2) for x in (k, v))
        out = jax.nn.dot_product_attention(rotate(query, now), k, v)
        return (keys, values), out


def listed(config, params, chunks=6):
    """`stream` by lists of frames."""
    transformer = config.setup()
    states = [([], []) for _ in range(config.num_layers)]
    context, flows = conditions().text, []
    for index in range(chunks):
        past = index * config.len_t

        def run(x, t, past=past, states=states):
            return transformer.network.apply(
                {"params": params}, x, t, Visible(config, past), states, context
            )

        flows.append(np.asarray(run(latent(index), 300.0)[1]))
        states, _ = run(latent(100 + index), 0.0)
    return flows


@pytest.mark.parametrize("cache_relative", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {"windows": (4, 6)},
        {"windows": (2, 8), "sinks": (2, 0)},
        {"windows": (3, 6), "sinks": (3, 2)},
        {"kv_heads": 1, "windows": (4, 2)},
        {"windows": (5, 4), "sinks": (0, 3)},  # no multiples of the chunk
    ],
)
def test_every_layer_sees_its_own_window(sizes, cache_relative):
    config = TransformerConfig(**sizes, cache_relative=cache_relative)
    params = config.setup().init_params(jax.random.key(0))
    cache, flows = stream(config, params)
    for flow, expected in zip(flows, listed(config, params), strict=True):
        testing.assert_close(flow, expected)
    slots = [buffer.shape[1] for buffer in cache.kv.keys]
    sinks = config.sinks
    assert slots == [
        FRAME * (w + s) for w, s in zip(config.windows, sinks, strict=True)
    ]
    assert {buffer.shape[2] for buffer in cache.kv.keys} == {config.kv_heads}


@pytest.mark.parametrize("cache_relative", [False, True])
@pytest.mark.parametrize("start", [2**31 // 12 - 3, 2**31 - 3, 2**32 - 30])
def test_a_session_of_any_age_continues_like_a_young_one(start, cache_relative):
    """Time is relative without a sink: what is seen is as in the first chunks.

    The counter is set ahead by whole rounds of both rings, past 2**31 tokens and past
    2**31 chunks; rows and angles must go on as if nothing had happened.
    """
    config = TransformerConfig(windows=(4, 6), cache_relative=cache_relative)
    params = config.setup().init_params(jax.random.key(0))
    young_cache, young = stream(config, params, chunks=12)
    start -= start % 6  # rounds of two and of three chunks
    old_cache, old = stream(config, params, chunks=12, after=6, age=start)
    for flow, expected in zip(old[6:], young[6:], strict=True):
        testing.assert_close(flow, expected, 1e-5)
    assert int(old_cache.kv.num_chunks[0]) == start + 12
    for a, b in zip(old_cache.kv.values, young_cache.kv.values, strict=True):
        testing.assert_close(a, b, 1e-5)


def test_sessions_across_the_wrap_of_int32_share_a_batch():
    config = TransformerConfig(windows=(4, 6), guidance_scale=2.0)
    params = config.setup().init_params(jax.random.key(0))
    ages = np.array([0, 2**31 - 8], np.uint32)
    _, flows = stream(config, params, chunks=12, batch=2, after=6, age=ages)
    _, young = stream(config, params, chunks=12, batch=2)
    for flow, expected in zip(flows[6:], young[6:], strict=True):
        testing.assert_close(flow, expected, 1e-5)


@pytest.mark.parametrize("cache_relative", [False, True])
def test_padded_slots_change_nothing_and_stay_zero(cache_relative):
    config = TransformerConfig(
        windows=(4, 3), sinks=(0, 3), cache_relative=cache_relative
    )
    params = config.setup().init_params(jax.random.key(0))
    padded = dataclasses.replace(config, slot_multiple=32)
    _, flows = stream(config, params)
    cache, same = stream(padded, params)
    for flow, expected in zip(same, flows, strict=True):
        testing.assert_close(flow, expected, 1e-6)
    for buffer, capacity in zip(cache.kv.keys, (24, 36), strict=True):
        assert buffer.shape[1] == -(-capacity // 32) * 32
        np.testing.assert_array_equal(buffer[:, capacity:], 0)


def test_branches_are_the_second_axis():
    config = TransformerConfig(guidance_scale=3.0)
    params = config.setup().init_params(jax.random.key(0))
    cache, flows = stream(config, params, chunks=2, batch=3)
    assert {b.shape for b in cache.kv.keys} == {(3, 2, 4 * FRAME, 2, 12)}
    assert cache.context.shape == (3, 2, 1, WIDTH_M)
    plain = dataclasses.replace(config, guidance_scale=1.0)
    _, conditional = stream(plain, params, chunks=1, batch=3)
    assert np.abs(conditional[0] - flows[0]).max() > 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": (4,)}, "one for each of 2 layers, got 1"),
        ({"kv_heads": 3}, "num_kv_heads must divide num_heads, got 3 and 2"),
        ({"windows": (4, 1)}, "'window_size_t': 1"),
    ],
)
def test_sizes_that_cannot_work(change, message):
    with pytest.raises(ValueError, match=message):
        _ = TransformerConfig(**change).setup().layout
