"""Key layouts of UMT5 encoders: Hugging Face's and the official Wan release's."""

from collections.abc import Mapping

from fdjax_convert.rules.rules import Drop, Layout, Rule, has_keys, layer, norm

_HF_ATTENTION = r"encoder\.block\.(\d+)\.layer\.0\."
_HF_MLP = r"encoder\.block\.(\d+)\.layer\.1\."

_TOKENIZER = Rule(
    r"spiece_model", Drop("the tokenizer as bytes, which ComfyUI packs into the file")
)

HUGGING_FACE_RULES = (
    Rule(r"shared\.weight", "token_embedding/embedding"),
    # The same tensor under a second name; which of the two a file holds varies.
    Rule(r"encoder\.embed_tokens\.weight", "token_embedding/embedding", alias=True),
    *norm(_HF_ATTENTION + r"layer_norm", r"blocks_\1/norm1"),
    *layer(
        _HF_ATTENTION + r"SelfAttention\.(q|k|v|o)",
        r"blocks_\1/attention/\2",
        bias=False,
    ),
    Rule(
        _HF_ATTENTION + r"SelfAttention\.relative_attention_bias\.weight",
        r"blocks_\1/attention/relative_bias",
    ),
    *norm(_HF_MLP + r"layer_norm", r"blocks_\1/norm2"),
    *layer(_HF_MLP + r"DenseReluDense\.wi_0", r"blocks_\1/mlp/gate", bias=False),
    *layer(_HF_MLP + r"DenseReluDense\.wi_1", r"blocks_\1/mlp/up", bias=False),
    *layer(_HF_MLP + r"DenseReluDense\.wo", r"blocks_\1/mlp/down", bias=False),
    *norm(r"encoder\.final_layer_norm", "norm"),
    Rule(r"decoder\..*", Drop("only the encoder half conditions a video model")),
    Rule(r"lm_head\..*", Drop("predicts words, for the decoder half")),
    _TOKENIZER,
)
"""Keys of transformers' `UMT5EncoderModel`, and of the whole model it is half of."""

OFFICIAL_RULES = (
    Rule(r"token_embedding\.weight", "token_embedding/embedding"),
    *norm(r"blocks\.(\d+)\.norm(1|2)", r"blocks_\1/norm\2"),
    *layer(r"blocks\.(\d+)\.attn\.(q|k|v|o)", r"blocks_\1/attention/\2", bias=False),
    Rule(
        r"blocks\.(\d+)\.pos_embedding\.embedding\.weight",
        r"blocks_\1/attention/relative_bias",
    ),
    *layer(r"blocks\.(\d+)\.ffn\.gate\.0", r"blocks_\1/mlp/gate", bias=False),
    *layer(r"blocks\.(\d+)\.ffn\.fc1", r"blocks_\1/mlp/up", bias=False),
    *layer(r"blocks\.(\d+)\.ffn\.fc2", r"blocks_\1/mlp/down", bias=False),
    *norm("norm", "norm"),
    _TOKENIZER,
)
"""Keys of `models_t5_umt5-xxl-enc-bf16.pth` of the Wan 2.1 release."""


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    embeddings = ("shared", "encoder.embed_tokens", "token_embedding")
    found = [shapes[f"{e}.weight"] for e in embeddings if f"{e}.weight" in shapes]
    vocab_size, width = found[0] if found else (0, 0)
    if (vocab_size, width) == (256384, 4096):
        return "UMT5-XXL text encoder"
    return f"UMT5 text encoder, width {width}, vocabulary {vocab_size}"


LAYOUTS = (
    Layout(
        name="huggingface",
        architecture="umt5",
        rules=HUGGING_FACE_RULES,
        detect=has_keys(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "encoder.final_layer_norm.weight",
        ),
        describe=_describe,
    ),
    Layout(
        name="official",
        architecture="umt5",
        rules=OFFICIAL_RULES,
        detect=has_keys("token_embedding.weight", "blocks.0.ffn.gate.0.weight"),
        describe=_describe,
    ),
)
