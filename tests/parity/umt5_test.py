"""UMT5 against transformers: weights, masks, padding, sizes, dtypes, tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax_convert import rules
from fdjax_convert.tables import umt5
from fdjax_models.networks.prompts import TokenizedPrompts
from fdjax_models.networks.umt5 import Umt5TextEncoderConfig
from fdjax_models.networks.umt5.model import relative_position_buckets
from fdjax_models.networks.umt5.tokenizer import clean_prompt
from tests.networks.umt5 import tiny
from tests.parity import imports
from tests.parity.comparison import assert_close

torch = imports.lazy("torch")
transformers = imports.lazy("transformers")

pytestmark = imports.requires("torch", "transformers")

CASES = {
    "published ratios": tiny.CONFIG,
    "head width that does not divide": Umt5TextEncoderConfig(
        vocab_size=50,
        width=24,
        head_dim=10,
        mlp_dim=40,
        num_layers=3,
        num_heads=6,
        max_length=40,
        dtype="float32",
    ),
    "few buckets, near distance": Umt5TextEncoderConfig(
        vocab_size=40,
        width=16,
        head_dim=4,
        mlp_dim=20,
        num_layers=1,
        num_heads=2,
        num_buckets=16,
        max_distance=20,
        epsilon=1e-5,
        max_length=70,
        dtype="float32",
    ),
}


def _torch_model(config, seed=0):
    torch.manual_seed(seed)
    model = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.width,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            relative_attention_num_buckets=config.num_buckets,
            relative_attention_max_distance=config.max_distance,
            layer_norm_epsilon=config.epsilon,
            feed_forward_proj="gated-gelu",
        )
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # The library's init is so small that attention would hardly matter.
            scale = 1.0 if weight.ndim == 1 or "bias" in name else 0.3
            weight.copy_(torch.randn_like(weight) * scale)
    return model


def _params(model, config):
    source = {key: value.numpy() for key, value in model.state_dict().items()}
    shapes = config.setup().param_shapes()
    return rules.convert(source, umt5.HUGGING_FACE_RULES, shapes)


def _batch(config, seed=1):
    rng = np.random.default_rng(seed)
    length = config.max_length
    lengths = np.array([length, 1, length // 3, length - 1], np.int32)
    ids = rng.integers(0, config.vocab_size, (4, length)).astype(np.int32)
    ids *= np.arange(length) < lengths[:, None]
    return TokenizedPrompts(ids, lengths)


def _torch_rows(model, tokens):
    """What the reference keeps: rows of tokens; zeros elsewhere."""
    mask = np.arange(tokens.token_ids.shape[1]) < tokens.lengths[:, None]
    with torch.no_grad():
        rows = model(
            torch.tensor(tokens.token_ids), torch.tensor(mask.astype(np.int64))
        ).last_hidden_state
    return np.where(mask[..., None], rows.float().numpy(), 0)


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_encoder(config):
    model, tokens = _torch_model(config), _batch(config)
    want = _torch_rows(model, tokens)
    got = config.setup().encode_tokens(_params(model, config), tokens)
    assert got.dtype == jnp.float32
    assert_close(got, want)


def test_bfloat16_error_is_that_of_the_reference():
    config = CASES["published ratios"]
    model, tokens = _torch_model(config), _batch(config)
    exact = _torch_rows(model, tokens)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.bfloat16), _params(model, config)
    )
    narrow = dataclasses.replace(config, dtype="bfloat16").setup()
    got = np.asarray(narrow.encode_tokens(params, tokens), np.float32)
    reference = _torch_rows(model.to(torch.bfloat16), tokens)
    ours, theirs = (np.abs(rows - exact).mean() for rows in (got, reference))
    # Ours keeps logits in float32, so it may only be nearer to the float32 output.
    assert 0 < ours < 1.2 * theirs


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (8, 20), (20, 77)])
def test_buckets(buckets, distance):
    from transformers.models.umt5 import modeling_umt5

    config = transformers.UMT5Config(
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance,
    )
    attention = modeling_umt5.UMT5Attention(config, layer_idx=0)
    positions = torch.arange(600)
    want = attention._relative_position_bucket(positions[None] - positions[:, None])
    got = relative_position_buckets(600, buckets, distance)
    np.testing.assert_array_equal(got, want.numpy())


def test_tokens(tmp_path):
    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    texts = ["a cat", "", "the  red sea", "zzz </s> a <pad> t", "a&amp;t", "a " * 40]
    cleaned = list(map(clean_prompt, texts))
    want = theirs(
        cleaned,
        padding="max_length",
        max_length=16,
        truncation=True,
        return_tensors="np",
    )
    encoder = dataclasses.replace(
        tiny.CONFIG, tokenizer_path=str(tmp_path), max_length=16
    ).setup()
    with pytest.warns(UserWarning, match="has 41 tokens"):
        got = encoder.tokenize(texts)
    np.testing.assert_array_equal(got.token_ids, want["input_ids"])
    np.testing.assert_array_equal(got.lengths, want["attention_mask"].sum(1))


def test_whole_encoder_against_the_reference(tmp_path):
    """Cleaning, tokens, mask and padding, from one folder in the published layout."""
    config = dataclasses.replace(
        CASES["published ratios"],
        max_length=512,
        tokenizer_path=str(tmp_path / "tokenizer"),
    )
    model = _torch_model(config)
    model.save_pretrained(tmp_path / "text_encoder")
    transformers.T5Tokenizer(
        vocab=[(word, 0.0) for word in ("<pad>", "</s>", "<unk>")]
        + [(word, -float(i)) for i, word in enumerate(tiny.WORDS, 1)],
        extra_ids=4,
    ).save_pretrained(tmp_path / "tokenizer")

    from tests.parity import flashdreams_cpu

    del flashdreams_cpu  # prepares the import of the next line
    from flashdreams.infra.encoder.text import umt5 as reference

    theirs = reference.UMT5TextEncoderConfig(
        model_id_or_local_path=str(tmp_path), dtype=torch.float32
    ).setup()
    texts = [" a  cat &amp;amp; the\nsea", "", "“red” cats, zz", "ﬁ tea"]
    want = theirs(texts).numpy()
    got = config.setup().encode(_params(model, config), texts)
    assert got.shape == want.shape == (4, 512, 32)
    assert_close(got, want)
    # Other cleaning, tokens or masking would show: the prompts are told apart.
    assert np.abs(want[0] - want[2]).max() > 0.1
