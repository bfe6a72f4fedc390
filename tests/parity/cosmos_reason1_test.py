"""Cosmos-Reason1 against transformers and flashdreams: chat, states, features."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checkpoint
from fdjax_convert import rules
from fdjax_convert.tables import cosmos_reason1
from fdjax_models.networks.cosmos_reason1 import CosmosReason1EncoderConfig, published
from fdjax_models.networks.cosmos_reason1.features import normalize_rows
from fdjax_models.networks.prompts import TokenizedPrompts
from tests.networks.cosmos_reason1 import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
reason1_files = imports.lazy("tests.parity.reason1_files")
reference = imports.lazy("flashdreams.infra.encoder.text.cosmos_reason1")

pytestmark = imports.requires("torch", "transformers", "flashdreams")

TEXTS = [
    "an  ocean &amp; a bus\n",
    "",
    "e\u0301t\u00e9 “quoted” \u6d77 <|im_end|>\n<|im_start|>user\nanother turn",
    "a very long prompt " * 20,
]
OTHER = CosmosReason1EncoderConfig(
    vocab_size=270,
    width=24,
    mlp_dim=16,
    num_layers=7,
    num_heads=4,
    num_kv_heads=4,
    rope_theta=5000.0,
    epsilon=1e-5,
    max_length=33,
    dtype="float32",
)


def _params(model, config):
    source = {
        key.removeprefix("model."): value.numpy()
        for key, value in model.state_dict().items()
    }
    shapes = config.setup().param_shapes()
    return rules.convert(source, cosmos_reason1.NESTED_RULES, shapes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A repository in the published layout."""
    return reason1_files.write(tmp_path_factory.mktemp("Cosmos-Reason1"))


@pytest.fixture(scope="module")
def their_tokenizer(folder):
    return reason1_files.tokenizer(folder)


@pytest.fixture(scope="module")
def their_encoder(folder):
    with reason1_files.readable():
        return reason1_files.encoder_config(folder).setup()


@pytest.mark.parametrize("config", [tiny.CONFIG, OTHER], ids=["grouped", "plain"])
def test_states_of_every_layer(config):
    model = reason1_files.model(config)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (2, 33))
    with torch.no_grad():
        outputs = model(input_ids=torch.tensor(ids), output_hidden_states=True)
    params = _params(model, config)
    got = config.setup().module.apply({"params": params}, jnp.asarray(ids))
    wanted = outputs.hidden_states[1:]
    assert len(got) == len(wanted) == config.num_layers
    for ours, theirs in zip(got, wanted, strict=True):
        assert_close(ours, theirs.numpy(), 1e-5)


@pytest.mark.parametrize(
    ("strategy", "group"),
    [
        ("full_concat", 5),
        ("mean_pooling", 5),
        ("pool_every_n_layers_and_concat", 2),
        ("pool_every_n_layers_and_concat", 5),
    ],
)
def test_encoder_of_flashdreams(folder, their_encoder, strategy, group):
    """From one folder of files: prompts to features, by every strategy."""
    their_encoder.embedding_concat_strategy = strategy
    their_encoder.n_layers_per_group = group
    want = their_encoder(TEXTS).numpy()
    config = dataclasses.replace(
        tiny.CONFIG,
        checkpoint_path=str(folder),
        tokenizer_path=str(folder),
        embedding_concat_strategy=strategy,
        n_layers_per_group=group,
    )
    ours = config.setup()
    with pytest.warns(UserWarning, match="prompt 'a very long prompt"):
        got = ours.encode(checkpoint.load_params(ours), TEXTS)
    assert config.embedding_dim == their_encoder.embedding_dim
    assert got.shape == want.shape == (4, 160, config.embedding_dim)
    assert_close(got, want, 1e-5)
    assert np.abs(want[0] - want[1]).max() > 0.1


def test_chat_is_that_of_the_template(folder, their_tokenizer):
    config = dataclasses.replace(
        tiny.CONFIG, tokenizer_path=str(folder), max_length=700
    )
    got = config.setup().tokenize(TEXTS)
    system = (
        "You are a helpful assistant who will provide prompts to an image generator."
    )
    for row, text in enumerate(TEXTS):
        turns = [
            {"role": "system", "content": [{"type": "text", "text": system}]},
            {"role": "user", "content": [{"type": "text", "text": text}]},
        ]
        want = their_tokenizer.apply_chat_template(turns, return_dict=False)
        assert list(got.token_ids[row, : got.lengths[row]]) == want
        assert set(got.token_ids[row, got.lengths[row] :]) == {
            their_tokenizer.pad_token_id
        }


def test_bfloat16_normalisation_rounds_as_torch_does(their_encoder):
    """Bit for bit, but where a mean or a deviation lies on a boundary."""
    rows = torch.randn(64, 48, generator=torch.manual_seed(3)) * 3 + 1
    narrow = rows.to(torch.bfloat16)
    want = their_encoder._mean_normalize(narrow).float().numpy()
    got = jax.jit(normalize_rows)(jnp.asarray(narrow.float().numpy(), jnp.bfloat16))
    same = np.mean(np.asarray(got, np.float32) == want)
    exact = their_encoder._mean_normalize(narrow.float()).numpy()
    unrounded = np.mean(
        np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float32) == want
    )
    assert same > 0.98 > unrounded


def test_bfloat16_error_is_that_of_the_reference():
    config = tiny.CONFIG
    model = reason1_files.model(config)
    params = _params(model, config)
    ids = np.random.default_rng(2).integers(0, config.vocab_size, (2, 40))

    def theirs(dtype):
        with torch.no_grad():
            states = model.to(dtype)(
                input_ids=torch.tensor(ids), output_hidden_states=True
            ).hidden_states[1:]
        features = [
            (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-8)
            for x in states
        ]
        return torch.cat(features, -1).float().numpy()

    exact = theirs(torch.float32)
    narrow = dataclasses.replace(config, dtype="bfloat16").setup()
    tokens = TokenizedPrompts(ids.astype(np.int32), np.full(2, 40, np.int32))
    got = narrow.encode_tokens(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params), tokens
    )
    assert got.dtype == jnp.bfloat16
    ours = np.abs(np.asarray(got, np.float32) - exact).mean()
    reference_error = np.abs(theirs(torch.bfloat16) - exact).mean()
    assert 0 < ours < 1.2 * reference_error


def test_published_constants_are_those_of_flashdreams():
    theirs = reference.CosmosReason1TextEncoderConfig()
    ours = published.COSMOS_REASON1_7B
    assert ours.checkpoint_path.startswith(
        f"hf://{theirs.model_name}@{theirs.revision}/"
    )
    assert ours.max_length == theirs.max_length
    assert ours.embedding_concat_strategy == theirs.embedding_concat_strategy
    assert ours.embedding_dim == 100352
    from flashdreams.recipes.cosmos.transformer import constants

    assert published.NEGATIVE_PROMPT == constants.NEGATIVE_PROMPT
