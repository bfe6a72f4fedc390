"""A tiny Qwen2.5 and a tiny vocabulary for the tests."""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from fdjax_models.networks.cosmos_reason1 import CosmosReason1EncoderConfig

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("a", "n"), ("Ġ", "a"), ("Ġ", "an"), ("e", "r"), ("u", "s"))

CONFIG = CosmosReason1EncoderConfig(
    vocab_size=280,
    width=48,
    mlp_dim=40,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    max_length=160,
    dtype="float32",
)


def tokenizer() -> tokenizers.Tokenizer:
    """A byte-level BPE, built as that of Qwen2.5 is, over bytes and a few pairs."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, MERGES)]
    vocab = {token: number for number, token in enumerate(tokens)}
    result = tokenizers.Tokenizer(models.BPE(vocab, [*MERGES]))
    result.normalizer = normalizers.NFC()
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens(list(MARKS))
    # As a careless export would store it; it may not reach our ids.
    result.enable_truncation(3)
    return result
