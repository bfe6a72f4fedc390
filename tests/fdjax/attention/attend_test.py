"""Every path against a softmax in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.attention import attend, attend_with_lse, cudnn, device, flash3, merge, xla


def assert_sums(actual, expected, length=11):
    """Equal up to the order of sums over `length` terms (keys, or features if more)."""
    testing.assert_close(actual, expected, testing.tolerance(jnp.float32, length))


def draw(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def qkv(batch=2, queries=5, keys=11, heads=3, dim=8, seed=0, dtype=jnp.float32):
    query_shape, key_shape = (batch, queries, heads, dim), (batch, keys, heads, dim)
    return draw(seed, query_shape, key_shape, key_shape, dtype=dtype)


def softmax_attention(query, key, value, lengths=None, scale=None):
    """Output and log-sum-exp in float64, one row of the batch at a time."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    lengths = [key.shape[1]] * len(query) if lengths is None else lengths
    outs, lses = [], []
    for row, length in enumerate(np.broadcast_to(lengths, len(query))):
        scores = scale * np.einsum("LND,SND->NLS", query[row], key[row, :length])
        weights = np.exp(scores)
        total = weights.sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            out = np.einsum(
                "NLS,SND->LND", weights / total[..., None], value[row, :length]
            )
            lses.append(np.log(total))
        outs.append(out)
    return np.stack(outs), np.stack(lses)


def assert_attention(actual, expected, length=11):
    (out, lse), (expected_out, expected_lse) = actual, expected
    assert_sums(out, expected_out, length)
    filled = np.isfinite(expected_lse)
    if filled.any():
        assert_sums(lse[filled], expected_lse[filled], length)
    assert np.all(np.asarray(lse)[~filled] <= xla.EMPTY_LSE)


@pytest.mark.isa
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"batch": 1, "queries": 1, "keys": 1, "heads": 1, "dim": 2},
        {"batch": 3, "queries": 7, "keys": 64, "heads": 2, "dim": 16},
        {"batch": 1, "queries": 60, "keys": 300, "heads": 4, "dim": 32},
    ],
)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_all_keys(shape, scale):
    arrays = qkv(**shape)
    expected = softmax_attention(*arrays, scale=scale)
    length = max(arrays[1].shape[1], arrays[1].shape[3])
    assert_attention(attend_with_lse(*arrays, scale=scale), expected, length)
    assert_sums(attend(*arrays, scale=scale), expected[0], length)


@pytest.mark.isa
@pytest.mark.parametrize("key_chunk", [None, 1, 3, 4, 10, 11, 50])
def test_every_length_by_every_chunk_size(key_chunk):
    query, key, value = qkv()

    @functools.partial(jax.jit)
    def chunked(length):
        return xla.attend(
            query, key, value, length=length, scale=8**-0.5, key_chunk=key_chunk
        )

    for length in range(12):
        lengths = jnp.array([length, (3 * length) % 12], jnp.int32)
        expected = softmax_attention(query, key, value, lengths)
        assert_attention(chunked(lengths), expected)


def test_a_traced_length_serves_every_fill_with_one_executable():
    query, key, value = qkv()
    traces = []

    @jax.jit
    def step(length):
        traces.append(length)
        return attend(query, key, value, length=length)

    for length in (0, 1, 6, 11):
        expected, _ = softmax_attention(query, key, value, length)
        assert_sums(step(length), expected)
    assert len(traces) == 1


def test_a_length_out_of_range_is_clipped():
    arrays = qkv()
    np.testing.assert_array_equal(attend(*arrays, length=99), attend(*arrays))
    np.testing.assert_array_equal(attend(*arrays, length=-3), np.zeros((2, 5, 3, 8)))


def test_keys_behind_the_length_have_no_influence():
    query, key, value = qkv()
    garbage = jnp.arange(11)[None, :, None, None] >= 6
    filled = jnp.where(garbage, 1e4, key), jnp.where(garbage, -1e4, value)
    expected, _ = softmax_attention(query, key, value, 6)
    for chunk in (None, 2, 4):
        options = {"length": jnp.full(2, 6), "scale": 8**-0.5, "key_chunk": chunk}
        out, _ = jax.jit(functools.partial(xla.attend, **options))(query, *filled)
        assert_sums(out, expected)


@pytest.mark.isa
@pytest.mark.parametrize("key_chunk", [None, 4])
def test_gradients_of_output_and_lse(key_chunk):
    arrays = qkv()
    out_weight, lse_weight = draw(5, (2, 5, 3, 8), (2, 3, 5))

    def plain(query, key, value, length):
        scores = 8**-0.5 * jnp.einsum("BLND,BSND->BNLS", query, key)
        valid = (jnp.arange(11) < length[:, None])[:, None, None]
        scores = jnp.where(valid, scores, -jnp.inf)
        out = jnp.einsum("BNLS,BSND->BLND", jax.nn.softmax(scores), value)
        return out, jax.nn.logsumexp(scores, axis=-1)

    def chunked(*arrays):
        *arrays, length = arrays
        options = {"length": length, "scale": 8**-0.5, "key_chunk": key_chunk}
        return xla.attend(*arrays, **options)

    def gradients(attention):
        def loss(*arrays):
            out, lse = attention(*arrays)
            return jnp.sum(out * out_weight) + jnp.sum(lse * lse_weight)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))

    actual_gradients, expected_gradients = gradients(chunked), gradients(plain)
    for lengths in ([11, 11], [1, 7], [8, 4]):
        actual = actual_gradients(*arrays, jnp.array(lengths))
        expected = expected_gradients(*arrays, jnp.array(lengths))
        for gradient, expected_gradient in zip(actual, expected, strict=True):
            assert_sums(gradient, expected_gradient)
    for gradient in actual_gradients(*arrays, jnp.array([0, 0])):
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_long_keys_never_make_the_whole_score_matrix():
    query, key, value = (
        jax.ShapeDtypeStruct((1, length, 12, 64), jnp.float32)
        for length in (4680, 32_760, 32_760)
    )

    def loss(query, key, value):
        return attend(query, key, value, length=20_000).sum()

    whole_matrix = 4680 * 32_760 * 12 * 4
    for function in (loss, jax.grad(loss, argnums=(0, 1, 2))):
        compiled = jax.jit(function).lower(query, key, value).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < whole_matrix / 8


@pytest.mark.parametrize("key_chunk", [None, 300])
def test_bfloat16_keeps_its_dtype_and_a_float32_softmax(key_chunk):
    query, key, value = qkv(batch=1, keys=1000, dim=16, dtype=jnp.bfloat16)
    out, lse = xla.attend(
        query, key, value, length=None, scale=0.25, key_chunk=key_chunk
    )
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    expected_out, expected_lse = softmax_attention(query, key, value)
    # Half a unit in the last place of bfloat16 at 0.25, for weights and outputs.
    np.testing.assert_allclose(np.float64(out), expected_out, atol=2e-3)
    assert_sums(lse, expected_lse, length=1000)


def test_large_scores_pick_the_best_key():
    query, key, value = qkv()
    out, lse = attend_with_lse(1e5 * query, key, value)
    best = np.einsum("BLND,BSND->BLNS", query, key).argmax(-1)
    expected = np.take_along_axis(np.asarray(value), best[..., None], axis=1)
    np.testing.assert_array_equal(out, expected)
    assert np.all(np.isfinite(lse))


@pytest.mark.parametrize("bounds", [(0, 4, 11), (0, 1, 2, 11), (0, 11)])
@pytest.mark.parametrize("length", [0, 3, 4, 9, 11])
def test_merged_segments_equal_one_softmax(bounds, length):
    query, key, value = qkv()
    segments = [
        attend_with_lse(
            query,
            key[:, start:stop],
            value[:, start:stop],
            length=jnp.clip(length - start, 0, stop - start),
        )
        for start, stop in itertools.pairwise(bounds)
    ]
    merged = merge(*zip(*segments, strict=True))
    assert_attention(merged, softmax_attention(query, key, value, length))
    if len(segments) == 3:
        first_two = merge(*zip(*segments[:2], strict=True))
        again = merge(*zip(first_two, segments[2], strict=True))
        assert_attention(again, softmax_attention(query, key, value, length))


@pytest.mark.parametrize("lengths", [(3, 5), (0, 5), (3, 0), (0, 0)])
def test_gradients_through_a_merge_with_empty_segments(lengths):
    query, key, value = qkv()

    def merged(query, key, value):
        segments = [
            attend_with_lse(query, key[:, part], value[:, part], length=length)
            for part, length in zip((slice(6), slice(6, 11)), lengths, strict=True)
        ]
        return jnp.sum(jnp.sin(merge(*zip(*segments, strict=True))[0]))

    def whole(query, key, value):
        kept = np.r_[: lengths[0], 6 : 6 + lengths[1]]
        if kept.size == 0:
            return jnp.zeros(()) * sum(x.sum() for x in (query, key, value))
        return jnp.sum(jnp.sin(attend(query, key[:, kept], value[:, kept])))

    argnums = (0, 1, 2)
    actual = jax.jit(jax.grad(merged, argnums))(query, key, value)
    expected = jax.jit(jax.grad(whole, argnums))(query, key, value)
    for gradient, expected_gradient in zip(actual, expected, strict=True):
        assert_sums(gradient, expected_gradient)


def test_attention_maps_over_sessions():
    query, key, value = qkv(batch=4)
    lengths = jnp.array([0, 1, 5, 11])

    @jax.jit
    @jax.vmap
    def mapped(query, key, value, length):
        arrays = (x[None] for x in (query, key, value))
        options = {"length": length[None], "scale": 8**-0.5, "key_chunk": 4}
        return xla.attend(*arrays, **options)[0][0]

    expected = attend(query, key, value, length=lengths)
    assert_sums(mapped(query, key, value, lengths), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"backend": "flash"},
            "backend must be one of flash3, cudnn, xla, or None, got 'flash'",
        ),
        ({"key": (2, 11, 2, 8)}, r"got \(2, 11, 2, 8\) and \(2, 11, 3, 8\)"),
        ({"value": (2, 10, 3, 8)}, r"got \(2, 11, 3, 8\) and \(2, 10, 3, 8\)"),
        (
            {"backend": "cudnn"},
            "cudnn cannot attend here: it needs bfloat16 or float16",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    names = ("query", "key", "value")
    arrays = dict(zip(names, qkv(), strict=True))
    arrays |= {
        name: jnp.zeros(shape) for name, shape in change.items() if name in names
    }
    options = {name: value for name, value in change.items() if name not in names}
    with pytest.raises(ValueError, match=message):
        attend(**arrays, **options)


@pytest.mark.parametrize(
    ("capability", "dtype", "dim", "reason"),
    [
        (None, jnp.bfloat16, 64, "no NVIDIA GPU"),
        ((7, 5), jnp.bfloat16, 64, "compute capability 8.0"),
        ((9, 0), jnp.float32, 64, "bfloat16 or float16"),
        ((9, 0), jnp.bfloat16, 60, "multiple of 8"),
        ((8, 0), jnp.float16, 136, "up to 128"),
        ((9, 0), jnp.float16, 136, None),
        ((9, 0), jnp.bfloat16, 128, None),
    ],
)
def test_cudnn_says_what_it_needs(monkeypatch, capability, dtype, dim, reason):
    monkeypatch.setattr(device, "compute_capability", lambda: capability)
    actual = cudnn.unsupported_reason(*qkv(dim=dim, dtype=dtype))
    assert actual is None if reason is None else reason in actual


def test_cudnn_clears_rows_without_keys_unless_there_are_none(monkeypatch):
    ones = functools.partial(jnp.full_like, fill_value=1)
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, *_, **__: ones(q))
    arrays = qkv(queries=4, keys=10)
    attend_cudnn = functools.partial(
        cudnn.attend, *arrays, length=jnp.array([0, 3]), scale=1.0
    )
    np.testing.assert_array_equal(attend_cudnn()[:, 0, 0, 0], [0, 1])
    np.testing.assert_array_equal(attend_cudnn(nonempty=True), ones(arrays[0]))


@pytest.mark.gpu
class TestCudnn:
    """On a GPU: the same numbers as float64, to bfloat16 round-off."""

    def test_it_is_chosen_where_nothing_is_faster(self):
        arrays = qkv(dim=64, dtype=jnp.bfloat16)
        name = "fmha" if flash3.unsupported_reason(*arrays) else "dew_flash3"
        assert name in jax.jit(attend).lower(*arrays).compile().as_text()

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    @pytest.mark.parametrize("lengths", [None, 0, 1, 100, 257, (0, 200)])
    def test_output_and_lse(self, dtype, lengths):
        arrays = qkv(queries=130, keys=257, dim=64, dtype=dtype)
        length = None if lengths is None else jnp.array(lengths, jnp.int32)
        expected = softmax_attention(*arrays, lengths)
        out, lse = attend_with_lse(*arrays, length=length, backend="cudnn")
        for array in (out, attend(*arrays, length=length, backend="cudnn")):
            assert array.dtype == dtype
            np.testing.assert_allclose(np.float64(array), expected[0], atol=8e-3)
        assert lse.dtype == jnp.float32
        filled = np.isfinite(expected[1])
        lse = np.asarray(lse)
        np.testing.assert_allclose(lse[filled], expected[1][filled], atol=1e-3)
        assert np.all(lse[~filled] == xla.EMPTY_LSE)

    def assert_same_gradients(self, loss, arrays):
        """Of cuDNN in bfloat16, to a few units in its last place, and float32 XLA."""
        gradients = jax.grad(loss, argnums=(0, 1, 2))
        actual = gradients(*arrays, "cudnn")
        expected = gradients(*(x.astype(jnp.float32) for x in arrays), "xla")
        for ours, reference in zip(actual, expected, strict=True):
            assert ours.dtype == jnp.bfloat16
            scale = max(np.abs(reference).max(), 1e-3)
            np.testing.assert_allclose(np.float64(ours), reference, atol=0.02 * scale)

    @pytest.mark.parametrize("queries", [130, 131])
    @pytest.mark.parametrize("keys", [256, 257])
    @pytest.mark.parametrize("lengths", [None, 0, 100, (0, 200)])
    def test_gradients(self, queries, keys, lengths):
        length = None if lengths is None else jnp.array(lengths, jnp.int32)

        def loss(query, key, value, backend):
            out = attend(query, key, value, length=length, backend=backend)
            return jnp.sum(jnp.sin(out.astype(jnp.float32)))

        arrays = qkv(queries=queries, keys=keys, dim=64, dtype=jnp.bfloat16)
        self.assert_same_gradients(loss, arrays)

    @pytest.mark.parametrize("lengths", [(129, 128), (0, 128), (129, 0), (0, 0)])
    def test_gradients_through_a_merge(self, lengths):
        def loss(query, key, value, backend):
            segments = [
                attend_with_lse(
                    query, key[:, part], value[:, part], length=length, backend=backend
                )
                for part, length in zip(
                    (slice(129), slice(129, 257)), lengths, strict=True
                )
            ]
            out, _ = merge(*zip(*segments, strict=True))
            return jnp.sum(jnp.sin(out.astype(jnp.float32)))

        arrays = qkv(queries=130, keys=257, dim=64, dtype=jnp.bfloat16)
        self.assert_same_gradients(loss, arrays)
