"""UMT5: recorded outputs, masking, buckets, size, and the component's contract."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checkpoint, testing
from fdjax_convert import rules
from fdjax_convert.tables import umt5
from fdjax_models.networks.prompts import TokenizedPrompts
from fdjax_models.networks.umt5 import Umt5TextEncoderConfig
from fdjax_models.networks.umt5.model import relative_position_buckets
from tests import golden
from tests.networks.umt5 import tiny

ENCODER = tiny.CONFIG.setup()


@pytest.fixture(scope="module")
def params():
    source = {
        key: golden.fill_input(key, shape)
        if "relative_attention_bias" in key
        else golden.fill_weight(key, shape)
        for key, shape in tiny.published_shapes().items()
    }
    shapes = ENCODER.param_shapes()
    return rules.convert(source, umt5.HUGGING_FACE_RULES, shapes)


def _tokens(*prompts, length=16):
    ids = np.zeros((len(prompts), length), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    return TokenizedPrompts(ids, np.array([len(p) for p in prompts], np.int32))


def assert_sums(actual, expected):
    """Equal up to the order of sums, the longest over the MLP's features."""
    length = tiny.CONFIG.mlp_dim
    testing.assert_close(actual, expected, testing.tolerance(jnp.float32, length))


@pytest.mark.isa
def test_golden(params):
    rows = ENCODER.encode_tokens(params, _tokens([5, 9, 33, 7, 60, 1]))
    first = [1.076430, 0.890571, -0.075707, 0.611361, 0.900976]
    last = [-0.257902, -1.440257, 0.298001]
    expected = [-31.386518, 148.755937, *first, *last]
    golden.assert_summary(rows[:, :6], expected, length=tiny.CONFIG.mlp_dim)
    np.testing.assert_array_equal(rows[:, 6:], 0)


@pytest.mark.isa
def test_padding_does_not_matter(params):
    prompt = [5, 9, 33, 7, 60, 1]
    alone = ENCODER.encode_tokens(params, _tokens(prompt, length=6))
    dirty = _tokens(prompt, [8, 1])
    dirty.token_ids[0, 6:] = 17
    padded = ENCODER.encode_tokens(params, dirty)
    # Sums over 6 and over 16 keys round differently.
    assert_sums(padded[0, :6], alone[0])
    # The test would be empty if the tokens behind the mask had no effect unmasked.
    longer = TokenizedPrompts(dirty.token_ids, np.array([7, 2], np.int32))
    unmasked = ENCODER.encode_tokens(params, longer)
    assert jnp.abs(unmasked[0, :6] - alone[0]).max() > 1e-2


def test_buckets_at_every_threshold():
    buckets = relative_position_buckets(200)
    thresholds = {8: 8, 12: 9, 16: 10, 23: 11, 32: 12, 46: 13, 64: 14, 91: 15}
    for distance, bucket in thresholds.items():
        assert buckets[distance, 0] == bucket
        assert buckets[distance - 1, 0] == bucket - 1
        assert buckets[0, distance] == bucket + 16
    assert buckets[3, 3] == 0
    assert buckets[0, 1] == 17
    assert buckets[199, 0] == 15


def test_published_parameter_count():
    shapes = Umt5TextEncoderConfig().setup().param_shapes()
    leaves = jax.tree.leaves(shapes)
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 5_680_910_336
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


def test_random_weights_are_of_use():
    encoder = dataclasses.replace(tiny.CONFIG, num_layers=1).setup()
    params = encoder.init_params(jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, encoder.param_shapes())
    rows = encoder.encode(params, ["a", "b"])
    assert jnp.all(jnp.isfinite(rows))
    assert 0.1 < jnp.std(rows[:, 0]) < 10
    assert jnp.abs(rows[0] - rows[1]).max() > 0.1


def test_text_to_embeddings(tmp_path, params):
    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = dataclasses.replace(tiny.CONFIG, tokenizer_path=str(tmp_path))
    encoder = config.setup()
    both = encoder.encode(params, ["a cat", "the red sea"])
    chex.assert_shape(both, (2, 16, 32))
    alone = encoder.encode(params, ["  a   cat "])
    assert_sums(both[:1], alone)
    assert jnp.abs(both[0, :3] - both[1, :3]).max() > 0.1
    np.testing.assert_array_equal(both[0, 3:], 0)
    assert jnp.all(jnp.any(both[0, :3] != 0, axis=-1))


def test_bfloat16_is_near_float32(params):
    narrow = dataclasses.replace(tiny.CONFIG, dtype="bfloat16").setup()
    rounded = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    chex.assert_trees_all_equal_dtypes(
        rounded, jax.eval_shape(narrow.init_params, jax.random.key(0))
    )
    wide = ENCODER.encode(params, ["hello", "a"])
    got = narrow.encode(rounded, ["hello", "a"])
    assert got.dtype == jnp.bfloat16
    scale = jnp.abs(wide).max()
    # bfloat16 keeps 8 bits; two layers of rounding leave about 2 %.
    assert jnp.abs(got.astype(jnp.float32) - wide).max() < 0.05 * scale


def test_one_executable_for_every_prompt(params):
    encoder = dataclasses.replace(tiny.CONFIG, max_length=12).setup()
    before = type(encoder).encode_tokens._cache_size()
    for text in ("", "a", "a cat sat"):
        encoder.encode(params, [text])
    assert type(encoder).encode_tokens._cache_size() == before + 1


def test_foreign_tokenizer_is_refused(tmp_path):
    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = dataclasses.replace(
        tiny.CONFIG, tokenizer_path=str(tmp_path), vocab_size=8
    )
    with pytest.raises(ValueError, match=r"gives token id 8; .* has 8 rows"):
        config.setup().tokenize(["red"])


def test_missing_tokenizer_shows_before_weights_are_read(tmp_path):
    config = dataclasses.replace(
        tiny.CONFIG, checkpoint_path="nowhere.pth", tokenizer_path=str(tmp_path)
    )
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*tokenizer\.json"):
        checkpoint.load_params(config.setup())


def test_checkpoint_needs_a_tokenizer():
    with pytest.raises(ValueError, match="set tokenizer_path"):
        dataclasses.replace(tiny.CONFIG, checkpoint_path="umt5.pth")
