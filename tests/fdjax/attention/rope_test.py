import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.attention.kv_cache import KVLayout
from fdjax.attention.rope import Rope3D, axis_frequencies, rope_table, rotate

WAN = Rope3D(head_dim=128, interleaved=True)


def reference_angles(rope, frames, height, width, offset=0):
    """One token at a time: products in float32, that of the offset in float64."""
    by_time, by_row, by_column = rope.frequencies
    rows = []
    for frame in frames:
        shifted = np.float32(frame) * by_time + offset * by_time.astype(np.float64)
        for row in range(height):
            for column in range(width):
                parts = (
                    shifted,
                    np.float32(row) * by_row,
                    np.float32(column) * by_column,
                )
                rows.append(np.concatenate(parts))
    return np.stack(rows)


def assert_same_turn(actual, expected, atol):
    """Angles that differ by whole turns are the same."""
    difference = np.asarray(actual, np.float64) - np.asarray(expected, np.float64)
    difference -= 2 * np.pi * np.round(difference / (2 * np.pi))
    np.testing.assert_allclose(difference, 0, atol=atol)


def test_published_frequencies_and_angles():
    """Wan-family fact sheet, section 1.5."""
    assert WAN.axis_dims == (44, 42, 42)
    by_time, by_row, by_column = WAN.frequencies
    np.testing.assert_allclose(by_time[:3], [1, 0.6579332, 0.4328761], atol=6e-8)
    np.testing.assert_allclose(by_time[-1], 1.519911e-4, rtol=1e-6)
    np.testing.assert_allclose(by_row[:3], [1, 0.6449467, 0.4159562], atol=6e-8)
    np.testing.assert_allclose(by_row[-1], 1.550516e-4, rtol=1e-6)
    np.testing.assert_array_equal(by_row, by_column)

    angles = WAN.angles(np.arange(3), 30, 52, offset=2 * 3)
    token = angles[(1 * 30 + 7) * 52 + 11]
    pairs = [0, 1, 21, 22, 23, 43, 44, 63]
    expected = [7, 4.6055326, 0.0010639, 7, 4.5146270, 11, 7.0944138, 0.0017056]
    assert_same_turn(token[np.array(pairs)], expected, atol=2e-6)
    slowest = np.array([21, 63])
    np.testing.assert_allclose(token[slowest], [0.0010639, 0.0017056], rtol=1e-4)


def test_ntk_ratio_slows_the_slowest_pair_by_the_ratio_and_leaves_the_fastest():
    plain, stretched = (
        axis_frequencies(42, extrapolation=ratio) for ratio in (1.0, 3.0)
    )
    assert stretched[0] == plain[0] == 1
    np.testing.assert_allclose(plain[-1] / stretched[-1], 3.0, rtol=1e-6)
    cosmos = Rope3D(128, interleaved=False, extrapolation=(1.0, 3.0, 3.0))
    np.testing.assert_array_equal(cosmos.frequencies[0], WAN.frequencies[0])
    np.testing.assert_array_equal(cosmos.frequencies[2], stretched)


@pytest.mark.parametrize("offset", [0, 3, 999, 3000, 40_000, 2**31, 2**32 - 1])
@pytest.mark.parametrize("rope", [WAN, Rope3D(24, interleaved=False)])
def test_a_traced_offset_of_any_size_gives_exact_angles(rope, offset):
    angles = jax.jit(lambda shift: rope.angles(np.arange(3), 2, 5, offset=shift))
    expected = reference_angles(rope, range(3), 2, 5, offset)
    # float64 itself is off by half a unit in the last place of 2**32: 5e-7.
    assert_same_turn(angles(jnp.uint32(offset)), expected, atol=2e-6)


def test_strides_are_as_many_frames():
    angles = WAN.angles(np.arange(3), 2, 2, offset=1000, stride=3)
    assert_same_turn(angles, WAN.angles(np.arange(3), 2, 2, offset=3000), atol=1e-6)
    # Beyond 2**32 frames: the same stride as four times a quarter of the count.
    far = WAN.angles(np.arange(3), 2, 2, offset=np.uint32(2**32 - 4), stride=3)
    same = WAN.angles(np.arange(3), 2, 2, offset=np.uint32(2**30 - 1), stride=12)
    assert_same_turn(far, same, atol=1e-6)


def test_cache_relative_angles_follow_the_slots():
    """sink 5, window 7, chunk 3 frames: each slot's angles are those of its rank."""
    rope, layout = Rope3D(24, interleaved=True), KVLayout(5, 7, 3)
    by_rank = reference_angles(rope, range(layout.capacity), 2, 3).astype(np.float32)
    by_rank = by_rank.reshape(layout.capacity, 6, -1)
    angles = jax.jit(lambda ranks: rope.angles(ranks, 2, 3))
    for num_frames in range(0, 30, 3):
        ranks = layout.slot_positions(num_frames)
        actual = angles(ranks).reshape(layout.capacity, 6, -1)
        np.testing.assert_array_equal(actual, by_rank[np.asarray(ranks)])


@pytest.mark.isa
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotate_turns_pairs_as_complex_numbers(interleaved):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 6, 3, 24)).astype(np.float32)
    angles = rng.uniform(-9, 9, size=(6, 12)).astype(np.float32)
    table = rope_table(jnp.asarray(angles), jnp.float32)
    actual = np.asarray(rotate(features, table, interleaved=interleaved))

    def pairs(array):
        if interleaved:
            return array[..., 0::2] + 1j * array[..., 1::2]
        return array[..., :12] + 1j * array[..., 12:]

    turn = np.exp(1j * angles.astype(np.float64))[:, None]
    expected = pairs(features) * turn
    testing.assert_close(pairs(actual), expected, testing.tolerance(np.float32, 2))


def test_rotated_scores_depend_on_relative_time_alone():
    rope = Rope3D(24, interleaved=True)
    rng = np.random.default_rng(1)
    query, key = rng.normal(size=(2, 1, 1, 1, 24)).astype(np.float32)

    def score(query_time, key_time):
        query_table, key_table = (
            rope_table(rope.angles(np.array([time]), 1, 1), jnp.float32)
            for time in (query_time, key_time)
        )
        return jnp.sum(rope.rotate(query, query_table) * rope.rotate(key, key_table))

    np.testing.assert_allclose(score(7, 3), score(14, 10), atol=1e-5)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


@pytest.mark.isa
def test_a_table_may_differ_along_the_batch():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(2, 4, 3, 8)).astype(np.float32)
    angles = jnp.asarray(rng.normal(size=(2, 4, 4)), jnp.float32)
    together = rotate(features, rope_table(angles, jnp.float32), interleaved=True)
    for index in range(2):
        table = rope_table(angles[index], jnp.float32)
        alone = rotate(features[index : index + 1], table, interleaved=True)
        tolerance = testing.tolerance(np.float32, 2)
        testing.assert_close(together[index], alone[0], tolerance)


def test_bfloat16_takes_float32_cosines_and_keeps_its_dtype():
    angles = WAN.angles(np.arange(1), 2, 2, offset=3000)
    table = rope_table(angles, jnp.bfloat16)
    np.testing.assert_array_equal(
        table.cos, np.cos(np.asarray(angles)).astype(jnp.bfloat16)
    )
    rotated = WAN.rotate(jnp.ones((1, 4, 1, 128), jnp.bfloat16), table)
    assert rotated.dtype == jnp.bfloat16


def test_angles_map_over_sessions_with_their_own_offsets():
    offsets = jnp.array([0, 6, 300])
    mapped = jax.vmap(lambda shift: WAN.angles(np.arange(3), 2, 2, offset=shift))
    for row, offset in zip(mapped(offsets), offsets, strict=True):
        alone = WAN.angles(np.arange(3), 2, 2, offset=offset)
        np.testing.assert_array_equal(row, alone)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_dim": 7}, "head_dim must be even and >= 2, got 7"),
        ({"head_dim": 24, "extrapolation": (1.0, 0.0, 1.0)}, "must be > 0"),
    ],
)
def test_impossible_embeddings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Rope3D(interleaved=True, **fields)


def test_an_axis_of_two_features_cannot_be_extrapolated():
    with pytest.raises(ValueError, match="axis of 2 features"):
        _ = Rope3D(8, interleaved=True, extrapolation=(1.0, 3.0, 3.0)).frequencies
    assert [freq.size for freq in Rope3D(8, interleaved=True).frequencies] == [2, 1, 1]
