"""Key layouts of the Wan VAEs: 2.1 (and LightVAE) and 2.2, official and diffusers.

Official: Wan-Video/Wan2.1, wan/modules/vae.py, and Wan-Video/Wan2.2,
wan/modules/vae2_2.py. Diffusers: AutoencoderKLWan. A file holds encoder and decoder;
each has a table of its own, which leaves the other's keys out.
"""

from collections.abc import Mapping

from fdjax_convert.rules.rules import Drop, Layout, Rule, has_keys, layer
from fdjax_convert.rules.transforms import CONV2D, CONV3D, LINEAR, chain, squeeze

_POINT = chain(squeeze(2), CONV2D)
_MATRIX = chain(squeeze(2, 3), LINEAR)
_STAGES = 4
_BLOCKS = {"encoder": 2, "decoder": 3}
_OFFICIAL_BLOCK = ("residual.0", "residual.2", "residual.3", "residual.6", "shortcut")
_OFFICIAL_ENDS = {
    "encoder_quant": "conv1",
    "decoder_quant": "conv2",
    "conv_in": "conv1",
    "block_1": "middle.0",
    "attention": "middle.1",
    "block_2": "middle.2",
    "norm_out": "head.0",
    "conv_out": "head.2",
}
_DIFFUSERS_ENDS = {
    "encoder_quant": "quant_conv",
    "decoder_quant": "post_quant_conv",
    "conv_in": "conv_in",
    "block_1": "mid_block.resnets.0",
    "attention": "mid_block.attentions.0",
    "block_2": "mid_block.resnets.1",
    "norm_out": "norm_out",
    "conv_out": "conv_out",
}
_DIFFUSERS_BLOCK = ("norm1", "conv1", "norm2", "conv2", "conv_shortcut")


def _literal(name: str) -> str:
    return name.replace(".", r"\.")


def _gamma(source: str, target: str, axes: tuple[int, ...] = (1, 2, 3)) -> Rule:
    """A norm's gamma, [C, 1, 1(, 1)]."""
    return Rule(source + r"\.gamma", target + "/scale", squeeze(*axes))


def _residual(source: str, target: str, names: tuple[str, ...]) -> tuple[Rule, ...]:
    """A residual block; its parts are called `names`."""
    norm_1, conv_1, norm_2, conv_2, shortcut = (
        rf"{source}\.{_literal(name)}" for name in names
    )
    return (
        _gamma(norm_1, f"{target}/norm_1"),
        *layer(conv_1, f"{target}/conv_1", CONV3D),
        _gamma(norm_2, f"{target}/norm_2"),
        *layer(conv_2, f"{target}/conv_2", CONV3D),
        *layer(shortcut, f"{target}/shortcut", _POINT),
    )


def _resample(source: str, target: str) -> tuple[Rule, ...]:
    """A step up or down in resolution; both layouts name its parts alike."""
    return (
        *layer(rf"{source}\.resample\.1", f"{target}/space", CONV2D),
        *layer(rf"{source}\.time_conv", f"{target}/time", CONV3D),
    )


def _attention(source: str) -> tuple[Rule, ...]:
    """The attention block between the two middle blocks."""
    return (
        _gamma(rf"{source}\.norm", "middle/attention/norm", (1, 2)),
        *layer(rf"{source}\.to_qkv", "middle/attention/qkv", _MATRIX),
        *layer(rf"{source}\.proj", "middle/attention/proj", _MATRIX),
    )


def _ends(part: str, names: Mapping[str, str], block: tuple[str, ...]) -> list[Rule]:
    """First and last layers, the middle, and what belongs to the other network."""
    other = "decoder" if part == "encoder" else "encoder"
    source = {name: rf"{part}\.{_literal(key)}" for name, key in names.items()}
    return [
        *layer(names[f"{part}_quant"], "quant", _POINT),
        *layer(source["conv_in"], "conv_in", CONV3D),
        *_residual(source["block_1"], "middle/block_1", block),
        *_attention(source["attention"]),
        *_residual(source["block_2"], "middle/block_2", block),
        _gamma(source["norm_out"], "norm_out"),
        *layer(source["conv_out"], "conv_out", CONV3D),
        Rule(
            rf"({other}|{names[f'{other}_quant']})\..*",
            Drop(f"belongs to the {other}"),
        ),
    ]


def _flat_stages(
    prefix: str, part: str, step: str, names: tuple[str, ...]
) -> tuple[Rule, ...]:
    """Stages whose blocks and steps share one running number, as in Wan 2.1."""
    rules: list[Rule] = []
    blocks = _BLOCKS[part]
    for stage in range(_STAGES):
        start = stage * (blocks + 1)
        for block in range(blocks):
            source = rf"{prefix}\.{start + block}"
            rules += _residual(source, f"stages_{stage}/blocks_{block}", names)
        if stage < _STAGES - 1:
            rules += _resample(rf"{prefix}\.{start + blocks}", f"stages_{stage}/{step}")
    return tuple(rules)


def _nested_stages(
    blocks: str, steps: str, step: str, names: tuple[str, ...]
) -> tuple[Rule, ...]:
    """Stages that number their own blocks; `blocks` has two groups, `steps` one."""
    return (
        *_residual(blocks, r"stages_\1/blocks_\2", names),
        *_resample(steps, rf"stages_\1/{step}"),
    )


OFFICIAL_21_ENCODER = (
    *_ends("encoder", _OFFICIAL_ENDS, _OFFICIAL_BLOCK),
    *_flat_stages(r"encoder\.downsamples", "encoder", "down", _OFFICIAL_BLOCK),
)
OFFICIAL_21_DECODER = (
    *_ends("decoder", _OFFICIAL_ENDS, _OFFICIAL_BLOCK),
    *_flat_stages(r"decoder\.upsamples", "decoder", "up", _OFFICIAL_BLOCK),
)
OFFICIAL_22_ENCODER = (
    *_ends("encoder", _OFFICIAL_ENDS, _OFFICIAL_BLOCK),
    *_nested_stages(
        r"encoder\.downsamples\.(\d+)\.downsamples\.(\d+)",
        r"encoder\.downsamples\.(\d+)\.downsamples\.2",
        "down",
        _OFFICIAL_BLOCK,
    ),
)
OFFICIAL_22_DECODER = (
    *_ends("decoder", _OFFICIAL_ENDS, _OFFICIAL_BLOCK),
    *_nested_stages(
        r"decoder\.upsamples\.(\d+)\.upsamples\.(\d+)",
        r"decoder\.upsamples\.(\d+)\.upsamples\.3",
        "up",
        _OFFICIAL_BLOCK,
    ),
)
DIFFUSERS_21_ENCODER = (
    *_ends("encoder", _DIFFUSERS_ENDS, _DIFFUSERS_BLOCK),
    *_flat_stages(r"encoder\.down_blocks", "encoder", "down", _DIFFUSERS_BLOCK),
)
DIFFUSERS_21_DECODER = (
    *_ends("decoder", _DIFFUSERS_ENDS, _DIFFUSERS_BLOCK),
    *_nested_stages(
        r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)",
        r"decoder\.up_blocks\.(\d+)\.upsamplers\.0",
        "up",
        _DIFFUSERS_BLOCK,
    ),
)
DIFFUSERS_22_ENCODER = (
    *_ends("encoder", _DIFFUSERS_ENDS, _DIFFUSERS_BLOCK),
    *_nested_stages(
        r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)",
        r"encoder\.down_blocks\.(\d+)\.downsampler",
        "down",
        _DIFFUSERS_BLOCK,
    ),
)
DIFFUSERS_22_DECODER = (
    *_ends("decoder", _DIFFUSERS_ENDS, _DIFFUSERS_BLOCK),
    *_nested_stages(
        r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)",
        r"decoder\.up_blocks\.(\d+)\.upsampler",
        "up",
        _DIFFUSERS_BLOCK,
    ),
)


_KNOWN = {
    ("encoder", 96): "Wan 2.1 VAE encoder",
    ("encoder", 24): "LightVAE (pruned Wan 2.1 VAE) encoder",
    ("encoder", 160): "Wan 2.2 TI2V-5B VAE encoder",
    ("decoder", 384): "Wan 2.1 VAE decoder",
    ("decoder", 96): "LightVAE (pruned Wan 2.1 VAE) decoder",
    ("decoder", 1024): "Wan 2.2 TI2V-5B VAE decoder",
}


def _describe_part(part: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name of the network by the width of its first convolution."""
    found = [
        shapes[key]
        for key in (f"{part}.conv1.weight", f"{part}.conv_in.weight")
        if key in shapes
    ]
    width = found[0][0] if found else 0
    return _KNOWN.get((part, width), f"Wan VAE {part}, first width {width}")


def _describe_encoder(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return _describe_part("encoder", shapes)


def _describe_decoder(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return _describe_part("decoder", shapes)


def _layout(name: str, part: str, rules: tuple[Rule, ...], *keys: str) -> Layout:
    describe = _describe_encoder if part == "encoder" else _describe_decoder
    return Layout(name, f"wan_vae_{part}", rules, has_keys(*keys), describe)


LAYOUTS = (
    _layout(
        "official 2.1",
        "encoder",
        OFFICIAL_21_ENCODER,
        "encoder.downsamples.0.residual.0.gamma",
    ),
    _layout(
        "official 2.1",
        "decoder",
        OFFICIAL_21_DECODER,
        "decoder.upsamples.0.residual.0.gamma",
    ),
    _layout(
        "official 2.2",
        "encoder",
        OFFICIAL_22_ENCODER,
        "encoder.downsamples.0.downsamples.0.residual.0.gamma",
    ),
    _layout(
        "official 2.2",
        "decoder",
        OFFICIAL_22_DECODER,
        "decoder.upsamples.0.upsamples.0.residual.0.gamma",
    ),
    _layout(
        "diffusers 2.1",
        "encoder",
        DIFFUSERS_21_ENCODER,
        "encoder.down_blocks.0.norm1.gamma",
    ),
    _layout(
        "diffusers 2.1",
        "decoder",
        DIFFUSERS_21_DECODER,
        "decoder.up_blocks.0.upsamplers.0.resample.1.weight",
    ),
    _layout(
        "diffusers 2.2",
        "encoder",
        DIFFUSERS_22_ENCODER,
        "encoder.down_blocks.0.resnets.0.norm1.gamma",
    ),
    _layout(
        "diffusers 2.2",
        "decoder",
        DIFFUSERS_22_DECODER,
        "decoder.up_blocks.0.upsampler.resample.1.weight",
    ),
)
