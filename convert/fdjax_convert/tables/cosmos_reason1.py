"""Key layouts of Cosmos-Reason1: Qwen2.5-VL as Hugging Face writes it, two ways.

Published files have `model.layers.…`; transformers 4.52 and later name the same tensors
`model.language_model.layers.…` in memory. A file holds the vision tower and the head
too, which a text encoder has no use for. The tables leave `model.` out: readers remove
it, export writes it.
"""

from collections.abc import Mapping

from fdjax_convert.rules.rules import Drop, Layout, Rule, has_keys, layer, norm


def _rules(prefix: str) -> tuple[Rule, ...]:
    each = prefix + r"layers\.(\d+)\."
    attention, target = each + r"self_attn\.", r"layers_\1/attention"
    return (
        Rule(prefix + r"embed_tokens\.weight", "token_embedding/embedding"),
        *norm(each + r"input_layernorm", r"layers_\1/norm1"),
        *layer(attention + r"(q|k|v)_proj", target + r"/\2"),
        *layer(attention + r"o_proj", target + "/o", bias=False),
        *norm(each + r"post_attention_layernorm", r"layers_\1/norm2"),
        *layer(each + r"mlp\.(gate|up|down)_proj", r"layers_\1/mlp/\2", bias=False),
        *norm(prefix + "norm", "norm"),
        Rule(r"visual\..*", Drop("sees pictures; only text is encoded")),
        Rule(r"lm_head\..*", Drop("predicts words; only the layers' states are used")),
    )


PUBLISHED_RULES = _rules("")
"""Keys of the files of nvidia/Cosmos-Reason1-7B, after `model.`."""

NESTED_RULES = _rules(r"language_model\.")
"""Keys of transformers' `Qwen2_5_VLForConditionalGeneration`, after `model.`."""


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    embedding = next((k for k in shapes if k.endswith("embed_tokens.weight")), None)
    vocab_size, width = shapes[embedding] if embedding else (0, 0)
    depth = sum(
        "visual." not in key and key.endswith(".input_layernorm.weight")
        for key in shapes
    )
    if (vocab_size, width, depth) == (152064, 3584, 28):
        return "Cosmos-Reason1-7B (Qwen2.5-VL 7B)"
    return (
        f"Qwen2.5-VL text path of {depth} layers, width {width}, vocabulary "
        f"{vocab_size}"
    )


def _layout(name: str, rules: tuple[Rule, ...], start: str) -> Layout:
    keys = (
        "embed_tokens.weight",
        "layers.0.self_attn.q_proj.bias",
        "layers.0.mlp.gate_proj.weight",
    )
    detect = has_keys(*(start + key for key in keys))
    return Layout(name, "cosmos_reason1", rules, detect, _describe, prefix="model.")


LAYOUTS = (
    _layout("published", PUBLISHED_RULES, ""),
    _layout("nested", NESTED_RULES, "language_model."),
)
