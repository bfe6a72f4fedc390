"""Files that are no plain checkpoint of a network, called what they are."""

import re
from collections.abc import Collection

_PLAIN = "take the published float weights"
_MERGE = "merge it into its base model with the tool that made it, and take the result"

_KINDS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "a LoRA (low-rank changes to a checkpoint, such as PEFT and ComfyUI write)",
        (
            ".lora_a.",
            ".lora_b.",
            ".lora_up.",
            ".lora_down.",
            ".lora.up.",
            ".lora.down.",
            ".lora_linear_layer.",
            ".lora_embedding_",
            ".lora_magnitude_vector",
            ".dora_scale",
        ),
        _MERGE,
    ),
    (
        "a LoHa or LoKr (low-rank changes to a checkpoint, as LyCORIS writes them)",
        (".hada_w1_", ".hada_w2_", ".lokr_w1", ".lokr_w2", ".oft_blocks"),
        _MERGE,
    ),
    (
        "a checkpoint quantised by bitsandbytes",
        (".absmax", ".quant_map", ".quant_state.", ".nested_absmax", ".scb"),
        _PLAIN,
    ),
    (
        "a checkpoint quantised by GPTQ or AWQ",
        (".qweight", ".qzeros", ".g_idx"),
        _PLAIN,
    ),
    (
        "a checkpoint quantised by SVDQuant or to 4-bit floats (NF4, NVFP4, MXFP4)",
        (".weight_scale_2", ".wscales", ".weight_packed", ".smooth_factor"),
        _PLAIN,
    ),
)
"""What it is, what its keys contain (in small letters), and what to do."""

_ANY = re.compile("|".join(re.escape(mark) for _, marks, _ in _KINDS for mark in marks))


def foreign_kind(keys: Collection[str]) -> str | None:
    """What a file is, and what to do, if its keys are those of no plain checkpoint."""
    for key in keys:
        # With a dot on both sides: `x.lora_A`, `x.lora_A.weight` and `lora_A.x` alike.
        text = f".{key.lower()}."
        if _ANY.search(text):
            return next(
                f"{kind}; {cure}"
                for kind, marks, cure in _KINDS
                if any(mark in text for mark in marks)
            )
    return None
