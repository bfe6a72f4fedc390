"""A tiny UMT5 and a tiny vocabulary for the tests."""

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from fdjax_models.networks.umt5 import Umt5TextEncoderConfig

CONFIG = Umt5TextEncoderConfig(
    vocab_size=64,
    width=32,
    head_dim=8,
    mlp_dim=48,
    num_layers=2,
    num_heads=4,
    max_length=16,
    dtype="float32",
)

WORDS = ("▁a", "▁cat", "▁the", "▁sea", "▁red", "s", "a", "t", "c", "e", "▁", "1", "&")


def published_shapes(config: Umt5TextEncoderConfig = CONFIG) -> dict[str, tuple]:
    """Shapes of the Hugging Face layout by key, as the library names them."""
    inner = config.num_heads * config.head_dim
    shapes = {
        "shared.weight": (config.vocab_size, config.width),
        "encoder.final_layer_norm.weight": (config.width,),
    }
    for layer in range(config.num_layers):
        attention = f"encoder.block.{layer}.layer.0"
        mlp = f"encoder.block.{layer}.layer.1"
        for name in "qkv":
            key = f"{attention}.SelfAttention.{name}.weight"
            shapes[key] = (inner, config.width)
        shapes |= {
            f"{attention}.SelfAttention.o.weight": (config.width, inner),
            f"{attention}.SelfAttention.relative_attention_bias.weight": (
                config.num_buckets,
                config.num_heads,
            ),
            f"{attention}.layer_norm.weight": (config.width,),
            f"{mlp}.layer_norm.weight": (config.width,),
            f"{mlp}.DenseReluDense.wi_0.weight": (config.mlp_dim, config.width),
            f"{mlp}.DenseReluDense.wi_1.weight": (config.mlp_dim, config.width),
            f"{mlp}.DenseReluDense.wo.weight": (config.width, config.mlp_dim),
        }
    return shapes


def official_shapes(config: Umt5TextEncoderConfig = CONFIG) -> dict[str, tuple]:
    """Shapes of the official single file by key."""
    inner = config.num_heads * config.head_dim
    shapes = {
        "token_embedding.weight": (config.vocab_size, config.width),
        "norm.weight": (config.width,),
    }
    for layer in range(config.num_layers):
        block = f"blocks.{layer}"
        for name in "qkv":
            shapes[f"{block}.attn.{name}.weight"] = (inner, config.width)
        shapes |= {
            f"{block}.attn.o.weight": (config.width, inner),
            f"{block}.pos_embedding.embedding.weight": (
                config.num_buckets,
                config.num_heads,
            ),
            f"{block}.norm1.weight": (config.width,),
            f"{block}.norm2.weight": (config.width,),
            f"{block}.ffn.gate.0.weight": (config.mlp_dim, config.width),
            f"{block}.ffn.fc1.weight": (config.mlp_dim, config.width),
            f"{block}.ffn.fc2.weight": (config.width, config.mlp_dim),
        }
    return shapes


def tokenizer() -> tokenizers.Tokenizer:
    """A Unigram tokenizer built the way the published one is, over a few words."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("<unk>", 0.0)]
    vocab = special + [(word, -float(i)) for i, word in enumerate(WORDS, 1)]
    result = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=3))
    result.normalizer = normalizers.NFKC()
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    result.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    result.add_special_tokens(["<pad>", "</s>", "<s>", "<unk>"])
    # As a careless export would store them; neither may reach our ids.
    result.enable_truncation(3)
    result.enable_padding(length=5)
    return result
