"""KV cache and rotary embedding against flashdreams 0.1.0 (torch, on the CPU)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.attention import KVLayout, Rope3D
from tests.parity import imports
from tests.parity.comparison import assert_allclose

torch = imports.lazy("torch")
reference_cache = imports.lazy("flashdreams.core.attention.kvcache")
reference_rope = imports.lazy("flashdreams.core.attention.rope")

pytestmark = imports.requires("torch", "flashdreams")


@pytest.mark.parametrize(
    ("sink", "window", "chunk"),
    [(0, 21, 3), (5, 7, 3), (3, 15, 3), (0, 4, 1), (1, 2, 3), (4, 2, 6), (7, 1, 4)],
)
def test_ring_holds_what_the_reference_shows(sink, window, chunk):
    layout = KVLayout(sink, window, chunk)
    shape = (1, layout.capacity, 1, 2)
    reference = reference_cache.BlockKVCache(
        k_shape=shape,
        v_shape=shape,
        seq_dim=1,
        chunk_size=chunk,
        window_size=window,
        sink_size=sink,
        device="cpu",
        dtype=torch.float32,
    )
    buffer = jnp.zeros(shape)
    write = jax.jit(layout.write)
    for index in range(3 * layout.capacity // chunk):
        num_tokens = index * chunk
        tokens = np.arange(num_tokens, num_tokens + chunk, dtype=np.float32)
        values = np.stack([tokens, -tokens], axis=-1)[None, :, None]
        reference.before_update(index)
        for scale in (0.5, 1.0):  # a denoising step, then the clean chunk
            reference.update(*[torch.from_numpy(scale * values)] * 2)
            buffer = write(buffer, scale * values, num_tokens)
        ordered = np.empty(shape, np.float32)
        ordered[:, np.asarray(layout.slot_positions(num_tokens))] = buffer
        length = int(layout.valid_length(num_tokens))
        np.testing.assert_array_equal(ordered[:, :length], reference.cached_k())
        reference.after_update(index)


@pytest.mark.parametrize("head_dim", [128, 64, 24])
@pytest.mark.parametrize("ratios", [(1.0, 1.0, 1.0), (1.0, 3.0, 3.0), (2.0, 1.0, 1.0)])
@pytest.mark.parametrize("interleaved", [True, False])
def test_angles_of_any_chunk(head_dim, ratios, interleaved):
    time_ratio, height_ratio, width_ratio = ratios
    reference = reference_rope.RotaryPositionEmbedding3D(
        head_dim=head_dim,
        len_h=3,
        len_w=4,
        len_t=2,
        t_extrapolation_ratio=time_ratio,
        h_extrapolation_ratio=height_ratio,
        w_extrapolation_ratio=width_ratio,
        interleaved=interleaved,
        device=torch.device("cpu"),
    )
    rope = Rope3D(head_dim, interleaved=interleaved, extrapolation=ratios)
    half = slice(None, None, 2) if interleaved else slice(head_dim // 2)
    angles = jax.jit(lambda offset: rope.angles(np.arange(2), 3, 4, offset=offset))
    for index in (0, 1, 7, 1500):
        expected = reference.shift_t(index)[:, 0, 0, half].numpy()
        actual = angles(jnp.uint32(index * 2))
        # The reference rounds `offset * f`, ours does not: half a unit in the last
        # place of the angle, and one more where torch's float32 pow rounds the other
        # way with a theta that is no integer.
        units = 0.5 if time_ratio == 1.0 else 1.5
        atol = 2e-6 + units * float(np.spacing(np.float32(index * 2)))
        assert_allclose(np.cos(actual), np.cos(expected), atol=atol)
        assert_allclose(np.sin(actual), np.sin(expected), atol=atol)


def test_cache_relative_angles():
    reference = reference_rope.KVCacheRelativeRotaryPositionEmbedding3D(
        head_dim=128,
        len_h=3,
        len_w=4,
        len_t=3,
        sink_size_t=5,
        window_size_t=7,
        interleaved=True,
        device=torch.device("cpu"),
    )
    rope, layout = Rope3D(128, interleaved=True), KVLayout(5, 7, 3)
    expected = reference.shift_t(25)[:, 0, 0, ::2].numpy().reshape(12, 12, 64)
    for num_frames in (0, 9, 12, 75):
        ranks = layout.slot_positions(num_frames)
        actual = rope.angles(ranks, 3, 4).reshape(12, 12, 64)
        assert_allclose(actual, expected[np.asarray(ranks)], atol=1e-6)
