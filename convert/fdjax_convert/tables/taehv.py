"""Key layouts of TAEHV and LightTAE, which number the layers of a Sequential.

The layers are numbered as in madebyollin/taehv, taehv.py, which writes `decoder.3…`;
NVIDIA/flashdreams, recipes/taehv/impl.py, writes `decoder.blocks.3…`. LightX2V's
LightTAE has the first form. A file holds encoder and decoder; each has a table of its
own, which leaves the other's keys out.
"""

from collections.abc import Mapping
from typing import Any

from fdjax_convert.rules.rules import Drop, Layout, Rule, has_keys, layer
from fdjax_convert.rules.transforms import CONV2D, Transform, chain

_STAGES = 3
_BLOCKS = 3
_DECODER_FIRST = ("decoder.1.weight", "decoder.blocks.1.weight")
_ENCODER_LAST = ("encoder.17.weight", "encoder.blocks.17.weight")


def _last_rows(array: Any) -> Any:
    """The last C of the rows of a weight [rows, C, 1, 1], rows a multiple of C."""
    rows, columns = array.shape[:2]
    if rows % columns:
        raise ValueError(f"must have a multiple of {columns} rows, has {rows}")
    return array[-columns:]


_LAST_FRAME = Transform("last_frame", _last_rows, lambda array: array)
"""Keeps what makes the last frame of a layer that was stored for more than one.

Some published files hold the first growth in time for two frames, though the network
makes one of it; upstream, `patch_tgrow_layers` keeps the last rows. Exporting writes
the rows that are used.
"""


def _mem_block(source: str, target: str) -> tuple[Rule, ...]:
    """Three convolutions, numbered 0, 2, 4 in their own Sequential."""
    return tuple(
        rule
        for i in range(3)
        for rule in layer(rf"{source}\.conv\.{2 * i}", f"{target}/conv_{i}", CONV2D)
    )


def _decoder_rules(prefix: str) -> tuple[Rule, ...]:
    rules = [
        *layer(rf"{prefix}\.1", "conv_in", CONV2D),
        *layer(rf"{prefix}\.22", "conv_out", CONV2D),
        Rule(r"encoder\..*", Drop("belongs to the encoder")),
    ]
    for stage in range(_STAGES):
        start, target = 3 + 6 * stage, f"stages_{stage}"
        for block in range(_BLOCKS):
            rules += _mem_block(
                rf"{prefix}\.{start + block}", f"{target}/blocks_{block}"
            )
        grow = CONV2D if stage else chain(_LAST_FRAME, CONV2D)
        rules += layer(
            rf"{prefix}\.{start + 4}\.conv", f"{target}/grow", grow, bias=False
        )
        rules += layer(rf"{prefix}\.{start + 5}", f"{target}/out", CONV2D, bias=False)
    return tuple(rules)


def _encoder_rules(prefix: str) -> tuple[Rule, ...]:
    rules = [
        *layer(rf"{prefix}\.0", "conv_in", CONV2D),
        *layer(rf"{prefix}\.17", "conv_out", CONV2D),
        Rule(r"decoder\..*", Drop("belongs to the decoder")),
    ]
    for stage in range(_STAGES):
        start, target = 2 + 5 * stage, f"stages_{stage}"
        rules += layer(
            rf"{prefix}\.{start}\.conv", f"{target}/pool", CONV2D, bias=False
        )
        rules += layer(rf"{prefix}\.{start + 1}", f"{target}/down", CONV2D, bias=False)
        for block in range(_BLOCKS):
            rules += _mem_block(
                rf"{prefix}\.{start + 2 + block}", f"{target}/blocks_{block}"
            )
    return tuple(rules)


def _describe_decoder(shapes: Mapping[str, tuple[int, ...]]) -> str:
    weights = [shapes[key] for key in _DECODER_FIRST if key in shapes]
    width, channels = weights[0][:2] if weights else (0, 0)
    return f"TAEHV decoder of {channels}-channel latents, first width {width}"


def _describe_encoder(shapes: Mapping[str, tuple[int, ...]]) -> str:
    weights = [shapes[key] for key in _ENCODER_LAST if key in shapes]
    channels, width = weights[0][:2] if weights else (0, 0)
    return f"TAEHV encoder to {channels}-channel latents, last width {width}"


DECODER = _decoder_rules("decoder")
DECODER_BLOCKS = _decoder_rules(r"decoder\.blocks")
ENCODER = _encoder_rules("encoder")
ENCODER_BLOCKS = _encoder_rules(r"encoder\.blocks")

LAYOUTS = (
    Layout(
        "madebyollin",
        "taehv_decoder",
        DECODER,
        has_keys("decoder.1.weight", "decoder.3.conv.0.weight"),
        _describe_decoder,
    ),
    Layout(
        "flashdreams",
        "taehv_decoder",
        DECODER_BLOCKS,
        has_keys("decoder.blocks.1.weight", "decoder.blocks.3.conv.0.weight"),
        _describe_decoder,
    ),
    Layout(
        "madebyollin",
        "taehv_encoder",
        ENCODER,
        has_keys("encoder.0.weight", "encoder.4.conv.0.weight"),
        _describe_encoder,
    ),
    Layout(
        "flashdreams",
        "taehv_encoder",
        ENCODER_BLOCKS,
        has_keys("encoder.blocks.0.weight", "encoder.blocks.4.conv.0.weight"),
        _describe_encoder,
    ),
)
