"""Cosmos-Reason1: causality, padding, sizes, random weights, bad configs and files."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax_models.networks.cosmos_reason1 import CosmosReason1EncoderConfig
from fdjax_models.networks.cosmos_reason1 import tokenizer as lib
from fdjax_models.networks.cosmos_reason1.features import join_layers, joined_width
from tests.networks.cosmos_reason1 import tiny

ENCODER = dataclasses.replace(tiny.CONFIG, max_length=144).setup()


@pytest.fixture(scope="module")
def params():
    return ENCODER.init_params(jax.random.key(0))


@pytest.mark.isa
def test_no_token_sees_those_after_it(params):
    tokens = ENCODER.tokenize(["a cat"])
    other = tokens._replace(token_ids=tokens.token_ids.copy())
    length = int(tokens.lengths[0])
    other.token_ids[0, length:] = 7
    ours, theirs = (ENCODER.encode_tokens(params, each) for each in (tokens, other))
    np.testing.assert_array_equal(ours[:, :length], theirs[:, :length])
    assert jnp.abs(ours[:, length:] - theirs[:, length:]).max() > 0.1
    # Padding carries values: it is attended to.
    assert jnp.abs(ours[:, length:]).min(axis=-1).max() > 0


def test_random_weights_tell_prompts_apart(params):
    rows = ENCODER.encode(params, ["a", "b"])
    assert rows.shape == (2, 144, ENCODER.config.embedding_dim)
    assert jnp.all(jnp.isfinite(rows))
    assert jnp.abs(rows[0] - rows[1]).max() > 0.1
    np.testing.assert_allclose(jnp.std(rows[..., :48], axis=-1, ddof=1), 1, rtol=1e-5)


def test_published_size():
    encoder = CosmosReason1EncoderConfig().setup()
    leaves = jax.tree.leaves(encoder.param_shapes())
    # config.json's sizes: 7.615 B parameters, less the head's 152064 x 3584.
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 7_070_619_136
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("how", "columns"),
    [
        ("full_concat", [[1.0], [2.0], [6.0]]),
        ("mean_pooling", [[3.0]]),
        ("pool_every_n_layers_and_concat", [[1.5], [6.0]]),
    ],
)
def test_layers_are_joined(how, columns):
    states = [jnp.full((1, 2, 1), value) for value in (1.0, 2.0, 6.0)]
    got = join_layers(states, how, 2)
    np.testing.assert_allclose(got[0, 1], np.concatenate(columns))
    assert got.shape[-1] == joined_width(1, 3, how, 2)


def test_a_chat_that_is_too_long_is_cut_with_a_note(tmp_path):
    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = dataclasses.replace(
        tiny.CONFIG, tokenizer_path=str(tmp_path), max_length=20
    )
    whole = lib.load_tokenizer(tmp_path).to_ids("a cat")
    with pytest.warns(UserWarning, match=f"has {len(whole)} tokens; .* reads 20, so"):
        tokens = config.setup().tokenize(["a cat"])
    assert list(tokens.token_ids[0]) == whole[:20]


def test_chat():
    assert lib.chat("Hi") == (
        "<|im_start|>system\nYou are a helpful assistant who will provide prompts to "
        "an image generator.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_bad_tokenizers_are_refused(tmp_path):
    config = dataclasses.replace(tiny.CONFIG, tokenizer_path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nvidia/Cosmos-Reason1-7B"):
        config.setup().check_files()
    file = tmp_path / "tokenizer.json"
    tiny.tokenizer().save(str(file))
    small = dataclasses.replace(config, vocab_size=100).setup()
    with pytest.raises(ValueError, match="vocabulary has 100 rows"):
        small.tokenize(["a"])
    content = json.loads(file.read_text())
    content["added_tokens"] = content["added_tokens"][:1]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lacks <\|im_start\|>, <\|im_end\|>"):
        config.setup().check_files()
    file.write_text("{")
    with pytest.raises(ValueError, match="not a readable tokenizer"):
        config.setup().check_files()


def test_bytes_stay_inside_the_vocabulary():
    tokens = dataclasses.replace(tiny.CONFIG, vocab_size=9).setup().tokenize(["é"])
    length = int(tokens.lengths[0])
    assert length == len(lib.chat("é").encode())
    assert tokens.token_ids[0, :length].min() >= 1
    assert tokens.token_ids.max() < 9
    assert not tokens.token_ids[0, length:].any()
    with pytest.raises(ValueError, match="at least 2, got 1"):
        lib.byte_tokenizer(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint_path": "a"}, "set tokenizer_path"),
        ({"num_heads": 5}, "multiple of num_kv_heads, got 5 and 2"),
        ({"num_heads": 0}, "multiple of num_kv_heads, got 0"),
        ({"width": 50}, "even multiple of num_heads, got 50 and 6"),
        ({"width": 18}, "even multiple of num_heads, got 18 and 6"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"n_layers_per_group": 0}, "n_layers_per_group must be at least 1"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny.CONFIG, **changes)
