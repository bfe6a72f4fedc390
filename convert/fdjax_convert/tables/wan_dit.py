"""Key layouts of the Wan DiT: the official one, LingBot's additions, and diffusers'.

Sources: wan/modules/model.py of Wan-Video/Wan2.1; the camera branch of
Robbyant/lingbot-world; src/diffusers/models/transformers/transformer_wan.py.
"""

from collections.abc import Mapping

from fdjax_convert.rules.rules import Layout, Rule, has_keys, layer, norm
from fdjax_convert.rules.transforms import (
    LINEAR,
    Transform,
    chain,
    conv_as_matrix,
    regroup,
    squeeze,
    stack_heads,
)

_PATCH = (1, 2, 2)
_CONV_PATCH = conv_as_matrix(*_PATCH)

PATCH_EMBEDDING = Transform(
    "patch embedding",
    lambda array: (LINEAR if array.ndim == 2 else _CONV_PATCH).to_flax(array),
    _CONV_PATCH.to_torch,
)
"""Convolution [M, C, 1, 2, 2], or the same as a matrix [M, 4 C], -> kernel [4 C, M].

Written back as a convolution, which all published checkpoints have.
"""

HEAD_ROWS = regroup((*_PATCH, -1), (3, 0, 1, 2))
"""Published rows: (t, h, w, channel). Ours, as patches: (channel, t, h, w)."""


def _qkv(block: str, names: tuple[str, str, str]) -> tuple[Rule, ...]:
    """Three projections -> the fused one of self-attention."""
    target = r"blocks_\1/self_attn/qkv"
    weights = tuple(rf"{block}\.{name}\.weight" for name in names)
    biases = tuple(rf"{block}\.{name}\.bias" for name in names)
    return (
        Rule(weights, target + "/kernel", stack_heads(3)),
        Rule(biases, target + "/bias", stack_heads(3)),
    )


def _head(source: str) -> tuple[Rule, ...]:
    weight = Rule(source + r"\.weight", "head/proj/kernel", chain(HEAD_ROWS, LINEAR))
    return weight, Rule(source + r"\.bias", "head/proj/bias", HEAD_ROWS)


def _patch_embedding() -> tuple[Rule, ...]:
    return layer("patch_embedding", "patch_embedding", PATCH_EMBEDDING)


_BLOCK = r"blocks\.(\d+)"
_SELF, _CROSS, _CAMERA = (
    rf"blocks_\1/{p}" for p in ("self_attn", "cross_attn", "camera")
)

_OFFICIAL_BLOCK = (
    Rule(_BLOCK + r"\.modulation", r"blocks_\1/modulation", squeeze(0)),
    *_qkv(_BLOCK + r"\.self_attn", ("q", "k", "v")),
    *layer(_BLOCK + r"\.self_attn\.o", _SELF + "/o"),
    *norm(_BLOCK + r"\.self_attn\.norm_q", _SELF + "/norm_q"),
    *norm(_BLOCK + r"\.self_attn\.norm_k", _SELF + "/norm_k"),
    *norm(_BLOCK + r"\.norm3", r"blocks_\1/norm3", bias=True),
    *layer(_BLOCK + r"\.cross_attn\.(q|k|v|o|k_img|v_img)", _CROSS + r"/\2"),
    *norm(_BLOCK + r"\.cross_attn\.(norm_q|norm_k|norm_k_img)", _CROSS + r"/\2"),
    *layer(_BLOCK + r"\.ffn\.0", r"blocks_\1/ffn/fc1"),
    *layer(_BLOCK + r"\.ffn\.2", r"blocks_\1/ffn/fc2"),
    *layer(_BLOCK + r"\.cam_injector_layer(1|2)", _CAMERA + r"/fc\2"),
    *layer(_BLOCK + r"\.cam_(scale|shift)_layer", _CAMERA + r"/\2"),
)

OFFICIAL = (
    *_patch_embedding(),
    *layer(r"text_embedding\.0", "text_embedding_fc1"),
    *layer(r"text_embedding\.2", "text_embedding_fc2"),
    *layer(r"time_embedding\.0", "time_embedding_fc1"),
    *layer(r"time_embedding\.2", "time_embedding_fc2"),
    *layer(r"time_projection\.1", "time_projection"),
    *norm(r"img_emb\.proj\.0", "image_embedding/norm1", bias=True),
    *layer(r"img_emb\.proj\.1", "image_embedding/fc1"),
    *layer(r"img_emb\.proj\.3", "image_embedding/fc2"),
    *norm(r"img_emb\.proj\.4", "image_embedding/norm2", bias=True),
    *layer(r"patch_embedding_wancamctrl", "camera_embedding"),
    *layer(r"c2ws_hidden_states_layer(1|2)", r"camera_fc\1"),
    *_OFFICIAL_BLOCK,
    Rule(r"head\.modulation", "head/modulation", squeeze(0)),
    *_head(r"head\.head"),
)
"""Wan-Video/Wan2.1 and what keeps its names: Self-Forcing, Causal-Forcing, LingBot."""

_DIFFUSERS_BLOCK = (
    Rule(_BLOCK + r"\.scale_shift_table", r"blocks_\1/modulation", squeeze(0)),
    *_qkv(_BLOCK + r"\.attn1", ("to_q", "to_k", "to_v")),
    *layer(_BLOCK + r"\.attn1\.to_out\.0", _SELF + "/o"),
    *norm(_BLOCK + r"\.attn1\.(norm_q|norm_k)", _SELF + r"/\2"),
    *norm(_BLOCK + r"\.norm2", r"blocks_\1/norm3", bias=True),
    *layer(_BLOCK + r"\.attn2\.to_(q|k|v)", _CROSS + r"/\2"),
    *layer(_BLOCK + r"\.attn2\.to_out\.0", _CROSS + "/o"),
    *layer(_BLOCK + r"\.attn2\.add_(k|v)_proj", _CROSS + r"/\2_img"),
    *norm(_BLOCK + r"\.attn2\.(norm_q|norm_k)", _CROSS + r"/\2"),
    *norm(_BLOCK + r"\.attn2\.norm_added_k", _CROSS + "/norm_k_img"),
)

_EMBEDDER = r"condition_embedder\."
_IMAGE_EMBEDDER = _EMBEDDER + r"image_embedder\."


def _diffusers(mlp_in: str, mlp_out: str) -> tuple[Rule, ...]:
    """The table with either name of the two layers of the MLP."""
    return (
        *_patch_embedding(),
        *layer(_EMBEDDER + r"text_embedder\.linear_(1|2)", r"text_embedding_fc\1"),
        *layer(_EMBEDDER + r"time_embedder\.linear_(1|2)", r"time_embedding_fc\1"),
        *layer(_EMBEDDER + r"time_proj", "time_projection"),
        *norm(_IMAGE_EMBEDDER + r"norm(1|2)", r"image_embedding/norm\1", bias=True),
        *layer(_IMAGE_EMBEDDER + r"ff\.net\.0\.proj", "image_embedding/fc1"),
        *layer(_IMAGE_EMBEDDER + r"ff\.net\.2", "image_embedding/fc2"),
        *_DIFFUSERS_BLOCK,
        *layer(_BLOCK + mlp_in, r"blocks_\1/ffn/fc1"),
        *layer(_BLOCK + mlp_out, r"blocks_\1/ffn/fc2"),
        Rule(r"scale_shift_table", "head/modulation", squeeze(0)),
        *_head("proj_out"),
    )


DIFFUSERS = _diffusers(r"\.ffn\.net\.0\.proj", r"\.ffn\.net\.2")
"""Checkpoints of `diffusers.WanTransformer3DModel`."""

FASTVIDEO = _diffusers(r"\.ffn\.fc_in", r"\.ffn\.fc_out")
"""diffusers' names, with the MLP as FastVideo writes it."""

_SIZES = {
    (1536, 30): "1.3B",
    (5120, 40): "14B",
    (3072, 30): "5B",
}


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name and size, such as "Wan 14B I2V"."""
    patch = shapes.get("patch_embedding.weight", ())
    blocks = {key.split(".")[1] for key in shapes if key.startswith("blocks.")}
    width = patch[0] if patch else 0
    size = _SIZES.get((width, len(blocks)), f"{width} wide, {len(blocks)} blocks")
    if any(key.startswith("patch_embedding_wancamctrl") for key in shapes):
        return f"LingBot-World {size}"
    if any(".k_img." in key or ".add_k_proj." in key for key in shapes):
        return f"Wan {size} I2V"
    channels = patch[1] if len(patch) == 5 else (patch[1] // 4 if patch else 0)
    kind = {16: "T2V", 48: "TI2V"}.get(channels, f"with {channels} input channels")
    return f"Wan {size} {kind}"


LAYOUTS = tuple(
    Layout(name, "wan_dit", rules, has_keys(*keys), _describe)
    for name, rules, keys in (
        ("official", OFFICIAL, ("head.head.weight", "blocks.0.self_attn.q.weight")),
        (
            "diffusers",
            DIFFUSERS,
            (
                "condition_embedder.time_proj.weight",
                "blocks.0.attn1.to_q.weight",
                "blocks.0.ffn.net.0.proj.weight",
            ),
        ),
        (
            "fastvideo",
            FASTVIDEO,
            ("condition_embedder.time_proj.weight", "blocks.0.ffn.fc_in.weight"),
        ),
    )
)
