"""Key layouts of the Cosmos DiT: that of Cosmos-Predict2.5 and OmniDreams; diffusers'.

Sources: NVIDIA/flashdreams, recipes/cosmos/transformer/impl (network.py, modules.py);
huggingface/diffusers, src/diffusers/models/transformers/transformer_cosmos.py. A
published file has `net.` before every key. In both layouts the network takes one more
channel than ours, a padding mask that is zero at inference, and writes patches in
another order than it reads: `fusion` undoes both. A network in which they were undone
before it was saved is read too.
"""

from collections.abc import Mapping
from typing import Any

from fdjax_convert.rules.rules import Drop, Layout, Rule, has_keys, layer, norm
from fdjax_convert.rules.transforms import LINEAR, Transform, stack_heads
from fdjax_models.networks.cosmos_dit.fusion import Kernels, fuse, unfuse

_VOLUME = 4  # of a patch, 1 x 2 x 2


def _fused(weights: tuple[Any, Any]) -> Kernels:
    """Patch embedding [M, 4 (C + 2)] and head [4 C, M] to our two kernels.

    A fused one lacks the columns of the padding mask; the order of its head's rows is
    not to be seen, but nobody changes the one without the other.

    Raises:
        ValueError: They do not fit together.
    """
    embedding, head = weights
    columns, rows = embedding.shape[1], head.shape[0]
    kernels = Kernels(*map(LINEAR.to_flax, weights))
    if columns == rows + _VOLUME:
        return kernels
    if columns != rows + 2 * _VOLUME:
        raise ValueError(
            f"the patch embedding must take {rows + 2 * _VOLUME} features (latent, "
            f"condition mask, padding mask) or {rows + _VOLUME} without the padding "
            f"mask, for the {rows} of the head, has {columns}"
        )
    return fuse(kernels)


def _published(kernels: tuple[Any, Any]) -> tuple[Any, ...]:
    return tuple(map(LINEAR.to_torch, unfuse(Kernels(*kernels))))


FUSION = Transform("drop padding mask, reorder patches", _fused, _published)
"""Both ends of the network at once, as only together they tell what was done."""


def _fusion(embedding: str, head: str) -> Rule:
    targets = "patch_embedding/kernel", "head/proj/kernel"
    return Rule((embedding + r"\.weight", head + r"\.weight"), targets, FUSION)


def _linear(source: str, target: str) -> tuple[Rule, ...]:
    return layer(source, target, bias=False)


_BLOCK = r"blocks\.(\d+)\."
_SELF, _CROSS, _VIEW = (
    rf"blocks_\1/{name}" for name in ("self_attn", "cross_attn", "view_attn")
)


def _qkv(sources: tuple[str, ...], target: str) -> Rule:
    weights = tuple(source + r"\.weight" for source in sources)
    return Rule(weights, target + "/qkv/kernel", stack_heads(3))


def _self_attention(source: str, target: str) -> tuple[Rule, ...]:
    return (
        _qkv(tuple(rf"{source}\.{name}_proj" for name in "qkv"), target),
        *_linear(source + r"\.output_proj", target + "/o"),
        *norm(source + r"\.q_norm", target + "/norm_q"),
        *norm(source + r"\.k_norm", target + "/norm_k"),
    )


_MODULATION = _BLOCK + r"adaln_modulation_"

RULES = (
    _fusion(r"x_embedder\.proj\.1", r"final_layer\.linear"),
    *_linear(r"additional_patch_embedding\.proj\.1", "control_embedding"),
    *_linear(r"t_embedder\.1\.linear_(1|2)", r"time_embedding/fc\1"),
    *norm("t_embedding_norm", "time_embedding/norm"),
    *layer(r"crossattn_proj\.0", "text_embedding"),
    Rule(r"adaln_view_embedder\.weight", "view_embedding/embedding"),
    *layer("adaln_view_proj", "view_projection"),
    *_self_attention(_BLOCK + "self_attn", _SELF),
    *_linear(_BLOCK + r"cross_attn\.(q|k|v)_proj", _CROSS + r"/\2"),
    *_linear(_BLOCK + r"cross_attn\.output_proj", _CROSS + "/o"),
    *norm(_BLOCK + r"cross_attn\.(q|k)_norm", _CROSS + r"/norm_\2"),
    *norm(_BLOCK + "layer_norm_cross_view_attn", r"blocks_\1/view_norm", bias=True),
    *_self_attention(_BLOCK + "cross_view_attn", _VIEW),
    *_linear(_BLOCK + r"mlp\.layer(1|2)", r"blocks_\1/mlp/fc\2"),
    *(
        rule
        for name, short in (
            ("self_attn", "self"),
            ("cross_attn", "cross"),
            ("mlp",) * 2,
        )
        for number, part in (("1", "down"), ("2", "up"))
        for rule in _linear(
            rf"{_MODULATION}{name}\.{number}", rf"blocks_\1/modulation_{short}/{part}"
        )
    ),
    *_linear(r"final_layer\.adaln_modulation\.1", "head/modulation/down"),
    *_linear(r"final_layer\.adaln_modulation\.2", "head/modulation/up"),
    Rule(r"pos_embedder\..*", Drop("tables of angles, which are computed")),
    Rule(r"(?:.*\.)?_extra_state", Drop("bookkeeping of the training's kernels")),
    Rule(
        r"accum_(?:video_sample_counter|image_sample_counter|iteration|train_in_hours)",
        Drop("counters of the training"),
    ),
)
"""Files of nvidia/Cosmos-Predict2.5-2B and nvidia/omni-dreams-models, after `net.`."""

_LAYER = r"transformer_blocks\.(\d+)\."

DIFFUSERS = (
    _fusion(r"patch_embed\.proj", "proj_out"),
    *_linear(r"time_embed\.t_embedder\.linear_(1|2)", r"time_embedding/fc\1"),
    *norm(r"time_embed\.norm", "time_embedding/norm"),
    *layer(r"crossattn_proj\.0", "text_embedding"),
    *(
        rule
        for number, short in enumerate(("self", "cross", "mlp"), 1)
        for step, part in (("1", "down"), ("2", "up"))
        for rule in _linear(
            rf"{_LAYER}norm{number}\.linear_{step}",
            rf"blocks_\1/modulation_{short}/{part}",
        )
    ),
    _qkv(tuple(rf"{_LAYER}attn1\.to_{name}" for name in "qkv"), _SELF),
    *_linear(_LAYER + r"attn1\.to_out\.0", _SELF + "/o"),
    *norm(_LAYER + r"attn1\.norm_(q|k)", _SELF + r"/norm_\2"),
    *_linear(_LAYER + r"attn2\.to_(q|k|v)", _CROSS + r"/\2"),
    *_linear(_LAYER + r"attn2\.to_out\.0", _CROSS + "/o"),
    *norm(_LAYER + r"attn2\.norm_(q|k)", _CROSS + r"/norm_\2"),
    *_linear(_LAYER + r"ff\.net\.0\.proj", r"blocks_\1/mlp/fc1"),
    *_linear(_LAYER + r"ff\.net\.2", r"blocks_\1/mlp/fc2"),
    *_linear(r"norm_out\.linear_1", "head/modulation/down"),
    *_linear(r"norm_out\.linear_2", "head/modulation/up"),
)
"""Checkpoints of `diffusers.CosmosTransformer3DModel` for Cosmos-Predict2.5."""

_SIZES = {(2048, 28): "2B", (5120, 36): "14B"}


_TEXT = 100352  # features of a token: those of Cosmos-Reason1, all layers


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name and size, such as "OmniDreams 2B, HD map of 16 channels"."""
    starts = "x_embedder.proj.1.weight", "patch_embed.proj.weight"
    patch = next((shapes[key] for key in starts if key in shapes), (0, 0))
    blocks = {
        key.split(".")[1]
        for key in shapes
        if key.startswith(("blocks.", "transformer_blocks."))
    }
    name = _SIZES.get((patch[0], len(blocks)), f"{patch[0]} wide, {len(blocks)} blocks")
    control = shapes.get("additional_patch_embedding.proj.1.weight")
    name = f"{'OmniDreams' if control else 'Cosmos-Predict2.5'} {name}"
    if control:
        name += f", HD map of {control[1] // _VOLUME} channels"
    if cameras := shapes.get("adaln_view_embedder.weight"):
        name += f", several views of {cameras[0]} cameras"
    text = shapes.get("crossattn_proj.0.weight")
    if text is None:
        name += ", without a projection of text"
    elif text[1] != _TEXT:
        name += f", text of {text[1]} features"
    head = shapes.get("final_layer.linear.weight", shapes.get("proj_out.weight"))
    if head and patch[1] <= head[0]:
        name += ", without the mask of a first frame"
    return name


LAYOUTS = (
    Layout(
        "published",
        "cosmos_dit",
        RULES,
        has_keys("x_embedder.proj.1.weight", "t_embedding_norm.weight"),
        _describe,
        prefix="net.",
    ),
    Layout(
        "diffusers",
        "cosmos_dit",
        DIFFUSERS,
        has_keys(
            "patch_embed.proj.weight",
            "time_embed.t_embedder.linear_1.weight",
            "transformer_blocks.0.attn1.to_q.weight",
        ),
        _describe,
    ),
)
