"""Key layouts of CLIP image towers: Hugging Face's and the official Wan release's.

Sources: transformers' modeling_clip.py; wan/modules/clip.py of Wan-Video/Wan2.1, whose
keys are those of open_clip's XLM-RoBERTa-large ViT-H/14.
"""

from collections.abc import Mapping

from fdjax_convert.rules.rules import Drop, Layout, Rule, has_keys, layer, norm
from fdjax_convert.rules.transforms import CONV2D, LINEAR, chain, each, split, squeeze

_TEXT = Drop("only the image tower conditions a video model")
_PROJECTION = Drop("maps the tower's last state to the space shared with text")


def _hugging_face(prefix: str) -> tuple[Rule, ...]:
    block = prefix + r"encoder\.layers\.(\d+)\."
    return (
        *layer(
            prefix + r"embeddings\.patch_embedding",
            "patch_embedding",
            CONV2D,
            bias=False,
        ),
        Rule(prefix + r"embeddings\.class_embedding", "class_embedding"),
        Rule(prefix + r"embeddings\.position_embedding\.weight", "position_embedding"),
        Rule(
            prefix + r"embeddings\.position_ids",
            Drop("counts from 0; written by old versions of the library"),
        ),
        *norm(prefix + "pre_layrnorm", "pre_norm", bias=True),
        *norm(block + "layer_norm(1|2)", r"blocks_\1/norm\2", bias=True),
        *layer(block + r"self_attn\.(q|k|v)_proj", r"blocks_\1/\2"),
        *layer(block + r"self_attn\.out_proj", r"blocks_\1/o"),
        *layer(block + r"mlp\.fc1", r"blocks_\1/mlp_in"),
        *layer(block + r"mlp\.fc2", r"blocks_\1/mlp_out"),
        *norm(prefix + "post_layernorm", "post_norm", bias=True),
        Rule(r"visual_projection\.weight", _PROJECTION),
        Rule(r"text_model\..*|text_projection\.weight|logit_scale", _TEXT),
    )


HUGGING_FACE_RULES = _hugging_face(r"vision_model\.")
"""Keys of `CLIPVisionModel` up to transformers 4, and of `CLIPModel`."""

HUGGING_FACE_BARE_RULES = _hugging_face("")
"""Keys of `CLIPVisionModel` as transformers 5 names its modules."""

_BLOCK = r"visual\.transformer\.(\d+)\."
_QKV = (r"blocks_\1/q/", r"blocks_\1/k/", r"blocks_\1/v/")

OFFICIAL_RULES = (
    *layer(r"visual\.patch_embedding", "patch_embedding", CONV2D, bias=False),
    Rule(r"visual\.cls_embedding", "class_embedding", squeeze(0, 1)),
    Rule(r"visual\.pos_embedding", "position_embedding", squeeze(0)),
    *norm(r"visual\.pre_norm", "pre_norm", bias=True),
    *norm(_BLOCK + "norm(1|2)", r"blocks_\1/norm\2", bias=True),
    Rule(
        _BLOCK + r"attn\.to_qkv\.weight",
        tuple(part + "kernel" for part in _QKV),
        chain(split(3), each(LINEAR)),
    ),
    Rule(
        _BLOCK + r"attn\.to_qkv\.bias",
        tuple(part + "bias" for part in _QKV),
        split(3),
    ),
    *layer(_BLOCK + r"attn\.proj", r"blocks_\1/o"),
    *layer(_BLOCK + r"mlp\.0", r"blocks_\1/mlp_in"),
    *layer(_BLOCK + r"mlp\.2", r"blocks_\1/mlp_out"),
    *norm(r"visual\.post_norm", "post_norm", bias=True),
    Rule(r"visual\.head", _PROJECTION),
    Rule(r"textual\..*|log_scale", _TEXT),
)
"""Keys of `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`."""


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    ends = ("patch_embedding.weight", "pre_layrnorm.weight", "pre_norm.weight")
    found = {end: shapes[key] for key in shapes for end in ends if key.endswith(end)}
    width = next((shape[0] for shape in found.values()), 0)
    if found.get(ends[0]) == (1280, 3, 14, 14):
        return "CLIP ViT-H/14 image tower"
    return f"CLIP image tower, width {width}"


LAYOUTS = (
    Layout(
        name="huggingface",
        architecture="clip",
        rules=HUGGING_FACE_RULES,
        detect=has_keys(
            "vision_model.embeddings.class_embedding",
            "vision_model.pre_layrnorm.weight",
        ),
        describe=_describe,
    ),
    Layout(
        name="huggingface-bare",
        architecture="clip",
        rules=HUGGING_FACE_BARE_RULES,
        detect=has_keys("embeddings.class_embedding", "pre_layrnorm.weight"),
        describe=_describe,
    ),
    Layout(
        name="official",
        architecture="clip",
        rules=OFFICIAL_RULES,
        detect=has_keys("visual.cls_embedding", "visual.pre_norm.weight"),
        describe=_describe,
    ),
)
