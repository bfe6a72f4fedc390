"""Key layout of the Cosmos-Predict2 DiT, as Cosmos-Predict2.5 and OmniDreams write it.

Source: NVIDIA/flashdreams, recipes/cosmos/transformer/impl (network.py, modules.py).
A file has `net.` before every key. Its network takes one more channel than ours, a
padding mask that is zero at inference, and writes patches in the order (t, h, w,
channel) while it reads (channel, t, h, w): columns are dropped and rows are permuted
here. A network that has done both already is read too.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fdjax_convert.rules.rules import Drop, Layout, Rule, has_keys, layer, norm
from fdjax_convert.rules.transforms import LINEAR, Transform, regroup, stack_heads

_PATCH = (1, 2, 2)
_VOLUME = 4
_ROWS = regroup((*_PATCH, -1), (3, 0, 1, 2))


def _fuse(weights: tuple[Any, Any]) -> tuple[Any, Any]:
    """Patch embedding [M, 4 (C + 2)] and head [4 C, M] to our two kernels.

    Raises:
        ValueError: They do not fit together.
    """
    embedding, head = weights
    columns, rows = embedding.shape[1], head.shape[0]
    fused = columns == rows + _VOLUME
    if not fused and columns != rows + 2 * _VOLUME:
        raise ValueError(
            f"x_embedder must take {rows + 2 * _VOLUME} features (latent, condition "
            f"mask, padding mask) or {rows + _VOLUME} without the padding mask, for "
            f"the {rows} of final_layer, has {columns}"
        )
    # Channels are the slowest axis of a column, so that the last one is the last four.
    embedding = embedding[:, : rows + _VOLUME]
    head = head if fused else _ROWS.to_flax(head)
    return LINEAR.to_flax(embedding), LINEAR.to_flax(head)


def _unfuse(kernels: tuple[Any, Any]) -> tuple[Any, Any]:
    """The inverse; the padding mask's columns, which nothing reads, become zero."""
    embedding, head = (LINEAR.to_torch(kernel) for kernel in kernels)
    zeros = np.zeros((len(embedding), _VOLUME), embedding.dtype)
    embedding = np.concatenate([np.asarray(embedding), zeros], axis=1)
    return embedding, _ROWS.to_torch(head)


PATCHES = Transform("drop padding mask, reorder patches", _fuse, _unfuse)
"""Both ends of the network at once, as only together they tell what was done."""


def _linear(source: str, target: str) -> tuple[Rule, ...]:
    return layer(source, target, bias=False)


_BLOCK = r"blocks\.(\d+)\."
_SELF, _CROSS, _VIEW = (
    rf"blocks_\1/{name}" for name in ("self_attn", "cross_attn", "view_attn")
)


def _self_attention(source: str, target: str) -> tuple[Rule, ...]:
    weights = tuple(rf"{source}\.{name}_proj\.weight" for name in "qkv")
    return (
        Rule(weights, target + "/qkv/kernel", stack_heads(3)),
        *_linear(source + r"\.output_proj", target + "/o"),
        *norm(source + r"\.q_norm", target + "/norm_q"),
        *norm(source + r"\.k_norm", target + "/norm_k"),
    )


_MODULATION = _BLOCK + r"adaln_modulation_"

RULES = (
    Rule(
        (r"x_embedder\.proj\.1\.weight", r"final_layer\.linear\.weight"),
        ("patch_embedding/kernel", "head/proj/kernel"),
        PATCHES,
    ),
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
"""Keys after `net.`."""


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name and size, such as "Cosmos DiT 2B, HD map of 16 channels"."""
    width = shapes.get("x_embedder.proj.1.weight", (0,))[0]
    blocks = {key.split(".")[1] for key in shapes if key.startswith("blocks.")}
    size = f"{width} wide, {len(blocks)} blocks"
    name = "Cosmos DiT " + ("2B" if (width, len(blocks)) == (2048, 28) else size)
    control = shapes.get("additional_patch_embedding.proj.1.weight")
    if control:
        name += f", HD map of {control[1] // _VOLUME} channels"
    return name + (", several views" if "adaln_view_proj.weight" in shapes else "")


LAYOUTS = (
    Layout(
        "published",
        "cosmos_dit",
        RULES,
        has_keys("x_embedder.proj.1.weight", "t_embedding_norm.weight"),
        _describe,
        prefix="net.",
    ),
)
