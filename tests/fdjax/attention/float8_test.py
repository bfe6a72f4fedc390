"""The cache in 8 bits: what is written where, and attention over it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.attention import attend, float8, float8_kernel
from fdjax.attention.kv_cache import KVLayout

# Three bits of mantissa: half a unit in the last place is 2**-4 of a number.
ROUNDING = 2.0**-4


def draw(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def test_columns_and_slots_undo_each_other():
    slots = np.arange(64)
    columns = float8_kernel.column(slots)
    assert sorted(columns) == list(slots)
    np.testing.assert_array_equal(float8_kernel.slot(columns), slots)
    # The order in which the registers of a product are handed on.
    order = [float8_kernel.slot(column) for column in range(16)]
    assert order == [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]


def test_what_is_too_large_becomes_the_largest_number():
    x = jnp.asarray([1e4, -1e4, 447.0, 1.0])
    rounded = float8.to_float8(x).astype(jnp.float32)
    np.testing.assert_array_equal(rounded, [448, -448, 448, 1])


LAYOUTS = [
    # sink, window, chunk
    (0, 20, 5),
    (0, 72, 24),
    (24, 48, 24),
    (5, 10, 3),  # a chunk straddles the sink, and wraps
    (1, 2, 3),  # the window is shorter than a chunk
    (0, 16, 16),
]


@pytest.mark.parametrize("sizes", LAYOUTS)
@pytest.mark.parametrize("ages", [(0,), (0, 3), (1, 4, 9)])
def test_a_stream_sees_what_a_plain_cache_shows(sizes, ages):
    sink, window, chunk = sizes
    layout = KVLayout(sink, window, chunk, slot_multiple=16)
    batch, heads, dim = len(ages), 2, 8
    rng = np.random.default_rng(0)
    rows = (batch, layout.num_slots, heads, dim)
    plain = [jnp.zeros(rows), jnp.zeros(rows)]
    small = [
        jnp.zeros(rows, float8.DTYPE),
        jnp.zeros((batch, heads, dim, layout.num_slots), float8.DTYPE),
    ]

    @jax.jit
    def write(small, key, value, count):
        tokens = layout.ring_tokens(count)
        keys = float8.write_keys(layout, small[0], key, tokens)
        return [keys, float8.write_values(layout, small[1], value, tokens)]

    for number in range(8):
        count = jnp.asarray(ages, jnp.uint32) + np.uint32(number)
        tokens = layout.ring_tokens(count)
        key, value, query = (draw(rng, batch, chunk, heads, dim) for _ in range(3))
        small = write(small, key, value, count)
        rounded = [float8.to_float8(x).astype(jnp.float32) for x in (key, value)]
        plain = [
            layout.write(buffer, x, tokens)
            for buffer, x in zip(plain, rounded, strict=True)
        ]
        length = layout.valid_length(tokens)
        np.testing.assert_array_equal(small[0].astype(jnp.float32), plain[0])
        out = float8.attend(query, *small, length=length)
        query = float8.to_float8(query).astype(jnp.float32)
        expected = attend(query, *plain, length=length, backend="xla")
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_the_error_is_that_of_8_bits():
    rng = np.random.default_rng(1)
    layout = KVLayout(0, 96, 96)
    query, key, value = (draw(rng, 1, 96, 2, 64) for _ in range(3))
    keys = float8.write_keys(layout, jnp.zeros(key.shape, float8.DTYPE), key, 0)
    empty = jnp.zeros((1, 2, 64, 96), float8.DTYPE)
    values = float8.write_values(layout, empty, value, 0)
    out = float8.attend(query, keys, values, length=96)
    expected = attend(query, key, value, backend="xla")
    error = jnp.linalg.norm(out - expected) / jnp.linalg.norm(expected)
    # Of values by themselves, and of scores: three roundings of about this size.
    assert ROUNDING / 16 < error < 3 * ROUNDING


def test_the_kernel_is_lowered_for_a_gpu():
    def run(query, keys, values, length):
        return float8_kernel.attend(query, keys, values, length, 0.1)

    def eight(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float8_e4m3fn)

    lowered = jax.export.export(jax.jit(run), platforms=["cuda"])(
        eight(2, 100, 3, 128),
        eight(2, 640, 3, 128),
        eight(2, 3, 128, 640),
        jax.ShapeDtypeStruct((2,), jnp.int32),
    )
    assert lowered.out_avals[0].shape == (2, 100, 3, 128)
    assert "mosaic_gpu" in lowered.mlir_module()


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("valid", [1, 63, 64, 65, 255, 256, 257, 4680, 32760])
def test_the_kernel_is_the_twin(batch, valid):
    if reason := float8.unsupported_reason(jnp.zeros((1, 1, 1, 128))):
        pytest.skip(reason)
    rng = np.random.default_rng(valid)
    heads, slots, queries = 2, 32768, 200
    query = draw(rng, batch, queries, heads, 128)
    keys = float8.to_float8(draw(rng, batch, slots, heads, 128) * 1.5)
    values = float8.to_float8(draw(rng, batch, heads, 128, slots))
    length = jnp.asarray([valid, 777][:batch], jnp.int32)
    out = float8.attend(query, keys, values, length=length)
    wide = float8.by_slot(values).transpose(0, 3, 1, 2).astype(jnp.float32)
    expected = attend(
        float8.to_float8(query).astype(jnp.float32),
        keys.astype(jnp.float32),
        wide,
        length=length,
        backend="xla",
    )
    error = jnp.linalg.norm(out - expected) / jnp.linalg.norm(expected)
    # The weights are rounded to 8 bits, independently; the output to bfloat16.
    assert error < ROUNDING
