import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.attention.rope import Rope3D
from fdjax.streaming.cache import KVCache, StreamCache
from fdjax.streaming.layout import StreamLayout
from fdjax.streaming.view import ordered_kv

FRAME = 6  # tokens of a 2 x 3 latent


def layout(**changes):
    fields = {
        "channels": 4,
        "patch_size": (1, 1, 1),
        "num_layers": 2,
        "num_heads": 1,
        "rope": Rope3D(head_dim=8, interleaved=True),
        "dtype": "float32",
        "len_t": 2,
        "window_size_t": (4, 3),
        "sink_size_t": (0, 1),
        "slot_multiple": 16,
    }
    return StreamLayout(**fields | changes)


def committed(layout, chunks, batch=1):
    """A cache whose every key is the number of its token; values are negative."""
    kv = KVCache.create(layout, batch=batch, height=2, width=3)
    keys, values = list(kv.keys), list(kv.values)
    for index in range(chunks):
        for layer, each in enumerate(layout.tokens(2, 3)):
            numbers = index * each.chunk + np.arange(each.chunk, dtype=np.float32)
            shape = (*keys[layer].shape[:-3], each.chunk, *keys[layer].shape[-2:])
            new = np.broadcast_to(numbers[:, None, None], shape)
            flat = [x.reshape(-1, *x.shape[-3:]) for x in (keys[layer], new)]
            tokens = each.ring_tokens(index)
            keys[layer] = each.write(*flat, tokens).reshape(keys[layer].shape)
            flat[0] = values[layer].reshape(-1, *values[layer].shape[-3:])
            written = each.write(flat[0], -flat[1], tokens)
            values[layer] = written.reshape(values[layer].shape)
    kv = KVCache(
        keys=tuple(keys),
        values=tuple(values),
        num_chunks=jnp.full((batch,), chunks, jnp.uint32),
    )
    return StreamCache(kv=kv, context=(), height=2, width=3)


def visible(sink, window, total):
    return [*range(min(sink, total)), *range(max(sink, total - window), total)]


@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 7, 8])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_sink_first_then_oldest_to_newest(chunks, guidance_scale):
    sizes = layout(guidance_scale=guidance_scale)
    cache = committed(sizes, chunks)
    for layer, (sink, window) in enumerate([(0, 4), (1, 3)]):
        view = ordered_kv(sizes, cache, layer)
        held = visible(sink * FRAME, window * FRAME, chunks * 2 * FRAME)
        capacity = (sink + window) * FRAME
        assert view.positions.shape == view.valid.shape == (1, capacity)
        assert view.positions[0, : len(held)].tolist() == held
        assert view.valid[0].tolist() == [i < len(held) for i in range(capacity)]
        assert (view.positions[~view.valid] == -1).all()
        expected = np.zeros(capacity)
        expected[: len(held)] = held
        assert view.keys.shape == (*cache.kv.keys[layer].shape[:-3], capacity, 1, 8)
        np.testing.assert_array_equal(
            view.keys, np.broadcast_to(expected[:, None, None], view.keys.shape)
        )
        np.testing.assert_array_equal(view.values, -view.keys)


def test_sessions_of_different_age_and_a_very_old_one():
    sizes = layout()
    young, old = committed(sizes, 1), committed(sizes, 8)
    cache = jax.tree.map(lambda *x: jnp.concatenate(x), young, old)
    # As many whole rounds of two chunks later the ring looks the same.
    ages = jnp.array([1, 2**32 - 8], jnp.uint32)
    kv = dataclasses.replace(cache.kv, num_chunks=ages)
    view = ordered_kv(sizes, dataclasses.replace(cache, kv=kv), 0)
    assert view.valid.sum(axis=1).tolist() == [2 * FRAME, 4 * FRAME]
    last = (2**32 - 8) * 2 * FRAME
    assert view.positions[1].tolist() == list(range(last - 4 * FRAME, last))
    expected = ordered_kv(sizes, old, 0)
    np.testing.assert_array_equal(view.keys[1:], expected.keys)


def test_what_cannot_be_shown():
    cache = committed(layout(), 1)
    for layer in (2, -3):
        with pytest.raises(ValueError, match=f"below 2.*got {layer}"):
            ordered_kv(layout(), cache, layer)
    alone = layout(window_size_t=2, sink_size_t=0)
    with pytest.raises(ValueError, match="no key/value cache"):
        ordered_kv(alone, cache)
