"""FlashAttention-3: what is handed to its kernel, by a stand-in that reads offsets."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.attention import attend, device, flash3

TOLERANCE = testing.tolerance(jnp.bfloat16, 12)


def packed_attention(
    query,
    key,
    value,
    cu_seqlens,
    max_seqlen,
    *,
    softmax_scale,
    key_cu_seqlens,
    key_max_seqlen,
):
    """As the package documents it: sequence i's queries see sequence i's keys.

    What lies in a sequence without queries is seen by nobody, as are poisoned slots.
    """

    def compute(query, key, value, starts, key_starts):
        assert max_seqlen == np.diff(starts).max()
        assert key_max_seqlen >= np.diff(key_starts).max()
        assert (starts[-1], key_starts[-1]) == (len(query), len(key))
        query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
        copies = query.shape[1] // key.shape[1]
        key, value = (np.repeat(x, copies, axis=1) for x in (key, value))
        out = np.full(query.shape, np.nan)
        for i in range(len(starts) - 1):
            rows = slice(starts[i], starts[i + 1])
            keys = slice(key_starts[i], key_starts[i + 1])
            scores = softmax_scale * np.einsum("LND,SND->NLS", query[rows], key[keys])
            weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-np.inf))
            weights /= weights.sum(-1, keepdims=True)
            out[rows] = np.einsum("NLS,SND->LND", weights, value[keys])
        return out.astype(jnp.bfloat16)

    shape = jax.ShapeDtypeStruct(query.shape, query.dtype)
    return jax.pure_callback(
        compute, shape, query, key, value, cu_seqlens, key_cu_seqlens
    )


@pytest.fixture
def hopper(monkeypatch):
    package = types.SimpleNamespace(flash_mha_varlen=packed_attention)
    monkeypatch.setattr(flash3, "_package", lambda: package)
    monkeypatch.setattr(device, "compute_capability", lambda: (9, 0))


def draw(batch=2, queries=6, keys=12, heads=4, shared=4, dim=8):
    rng = np.random.default_rng(0)
    shapes = [(queries, heads), (keys, shared), (keys, shared)]
    return [
        jnp.asarray(rng.normal(size=(batch, length, count, dim)), jnp.bfloat16)
        for length, count in shapes
    ]


def reference(query, key, value, length):
    arrays = [x.astype(jnp.float32) for x in (query, key, value)]
    return attend(*arrays, length=length, backend="xla")


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("length", [None, 0, 1, 12, (3, 12), (0, 5), 50])
def test_it_is_chosen_and_sees_each_sessions_valid_keys(length, shared):
    arrays = draw(shared=shared)
    length = None if length is None else jnp.asarray(length)
    expected = reference(*arrays, length)
    actual = attend(*arrays, length=length)
    assert actual.dtype == jnp.bfloat16
    testing.assert_close(actual, expected, TOLERANCE)


@pytest.mark.usefixtures("hopper")
def test_it_maps_over_an_axis_as_over_more_sessions():
    query, key, value = draw(batch=4)
    stacked = [x.reshape(2, 2, *x.shape[1:]) for x in (query, key)]
    lengths = jnp.array([[3, 12], [7, 1]])
    mapped = jax.vmap(
        lambda query, key, length: attend(query, key, value[:2], length=length)
    )
    values = jnp.concatenate([value[:2], value[:2]])
    expected = reference(query, key, values, lengths.reshape(-1))
    actual = mapped(*stacked, lengths).reshape(expected.shape)
    testing.assert_close(actual, expected, TOLERANCE)


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("shared", [4, 2])
def test_gradients_are_those_of_the_sums_it_stands_for(shared):
    arrays = draw(shared=shared)
    length = jnp.array([0, 7])

    def loss(query, key, value, backend):
        out = attend(query, key, value, length=length, backend=backend)
        return jnp.sum(jnp.sin(out.astype(jnp.float32)))

    gradients = jax.grad(loss, argnums=(0, 1, 2))
    expected = gradients(*arrays, "xla")
    for ours, theirs in zip(gradients(*arrays, "flash3"), expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        testing.assert_close(ours, theirs.astype(jnp.float32), TOLERANCE)


@pytest.mark.parametrize(
    ("capability", "dtype", "dim", "reason"),
    [
        (None, jnp.bfloat16, 64, "no NVIDIA GPU"),
        ((8, 0), jnp.bfloat16, 64, "compute capability 9.0"),
        ((10, 0), jnp.bfloat16, 64, "compute capability 9.0"),
        ((9, 0), jnp.float32, 64, "bfloat16 or float16"),
        ((9, 0), jnp.bfloat16, 60, "multiple of 8"),
        ((9, 0), jnp.bfloat16, 264, "up to 256"),
        ((9, 0), jnp.bfloat16, 128, "package dew-flash-attn"),
    ],
)
def test_it_says_what_it_needs(monkeypatch, capability, dtype, dim, reason):
    monkeypatch.setattr(device, "compute_capability", lambda: capability)
    monkeypatch.setattr(
        flash3, "_package", lambda: "it needs the package dew-flash-attn"
    )
    arrays = [x.astype(dtype) for x in draw(dim=dim)]
    assert reason in flash3.unsupported_reason(*arrays)
    with pytest.raises(ValueError, match="flash3 cannot attend here: "):
        attend(*arrays, backend="flash3")


def test_a_missing_package_is_named():
    reason = flash3._package()
    if isinstance(reason, str):
        assert "dew-flash-attn" in reason


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cudnn", "flash3"])
class TestOnAGpu:
    """Every kernel against float32, at the sizes that it meets."""

    def arrays(self, backend, batch, queries, keys, dim, heads=2, spread=1.0):
        keys_of = jax.random.split(jax.random.key(0), 3)
        shapes = [(batch, n, heads, dim) for n in (queries, keys, keys)]
        drawn = [
            spread * jax.random.normal(key, shape, jnp.bfloat16)
            for key, shape in zip(keys_of, shapes, strict=True)
        ]
        if backend == "flash3" and (reason := flash3.unsupported_reason(*drawn)):
            pytest.skip(reason)
        return drawn

    def check(self, backend, arrays, length):
        expected = jax.jit(reference)(*arrays, length)
        call = jax.jit(lambda *x: attend(*x[:3], length=x[3], backend=backend))
        actual = call(*arrays, length)
        assert actual.dtype == jnp.bfloat16
        # Inputs are bfloat16 for both; weights and the output are rounded to it.
        scale = max(float(jnp.abs(expected).max()), 1e-3)
        error = jnp.abs(actual.astype(jnp.float32) - expected).max() / scale
        assert float(error) < 2**-7, float(error)

    @pytest.mark.parametrize("batch", [1, 2])
    @pytest.mark.parametrize("dim", [64, 128])
    @pytest.mark.parametrize("length", [None, 0, 1, 63, 64, 65, 4680, 32760])
    def test_lengths(self, backend, length, dim, batch):
        arrays = self.arrays(backend, batch, 190, 32768, dim)
        if length is not None:
            length = jnp.array([length, 4680][:batch])
        self.check(backend, arrays, length)

    @pytest.mark.parametrize("queries", [1, 7, 128, 4680])
    def test_any_number_of_queries(self, backend, queries):
        arrays = self.arrays(backend, 2, queries, 9360, 128)
        self.check(backend, arrays, jnp.array([9360, 300]))

    @pytest.mark.parametrize("length", [0, 1, 5, 4680, 32760])
    def test_a_chunk_of_wan(self, backend, length):
        arrays = self.arrays(backend, 1, 4680, 32768, 128, heads=12)
        self.check(backend, arrays, jnp.array([length]))

    def test_extreme_logits(self, backend):
        arrays = self.arrays(backend, 1, 128, 4680, 128, spread=30.0)
        self.check(backend, arrays, jnp.array([4000]))

    def test_what_lies_behind_the_length_does_not_count(self, backend):
        query, key, value = self.arrays(backend, 1, 128, 4680, 128)
        length = jnp.array([1000])
        call = jax.jit(lambda *x: attend(*x, length=length, backend=backend))
        changed = [x.at[:, 1000:].set(7.0) for x in (key, value)]
        np.testing.assert_array_equal(call(query, key, value), call(query, *changed))

    def test_gradients(self, backend):
        arrays = self.arrays(backend, 2, 130, 258, 64)
        length = jnp.array([0, 200])

        def loss(query, key, value, backend):
            out = attend(query, key, value, length=length, backend=backend)
            return jnp.sum(jnp.sin(out.astype(jnp.float32)))

        gradients = jax.grad(loss, argnums=(0, 1, 2))
        expected = gradients(*(x.astype(jnp.float32) for x in arrays), "xla")
        for ours, theirs in zip(gradients(*arrays, backend), expected, strict=True):
            scale = max(np.abs(theirs).max(), 1e-3)
            np.testing.assert_allclose(np.float32(ours), theirs, atol=0.02 * scale)

    def test_it_maps_over_sessions(self, backend):
        query, key, value = self.arrays(backend, 2, 128, 512, 64)
        lengths = jnp.array([512, 100])
        mapped = jax.vmap(
            lambda *x: attend(*(y[None] for y in x[:3]), length=x[3], backend=backend)[
                0
            ]
        )
        expected = reference(query, key, value, lengths)
        actual = mapped(query, key, value, lengths).astype(jnp.float32)
        assert float(jnp.abs(actual - expected).max()) < 2**-7 * float(expected.max())
