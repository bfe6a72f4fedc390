"""Makes the published methods of the Wan family small enough for a test."""

import dataclasses
from typing import Any

from fdjax.config import derive_config

HEIGHT, WIDTH = 32, 48

_UMT5 = {
    "vocab_size": 64,
    "width": 24,
    "mlp_dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "head_dim": 4,
    "max_length": 8,
    "dtype": "float32",
}
_CLIP = {
    "image_size": 28,
    "width": 16,
    "mlp_dim": 16,
    "num_layers": 2,
    "output_layer": 1,
    "num_heads": 2,
    "dtype": "float32",
}
_VAE = {"widths": (8, 8, 8, 8), "num_blocks": 1, "dtype": "float32"}
_TAEHV = {"widths": (8, 8, 8, 8), "blocks_per_stage": 1, "dtype": "float32"}
_DIT = {
    "dim": 24,
    "ffn_dim": 32,
    "num_heads": 2,
    "num_layers": 2,
    "text_dim": 24,
    "text_len": 8,
    "freq_dim": 16,
    "dtype": "float32",
    "param_dtype": "float32",
}


def shrink(config: Any, output_dir: Any, *, len_t: int | None = None, **changes: Any):
    """A runner config of the same structure with tiny networks and random weights."""
    pipeline = config.pipeline
    network = dict(_DIT)
    conditioner: dict[str, Any] = {"text_encoder": _UMT5}
    if pipeline.conditioner.negative_prompt is not None:
        conditioner["negative_prompt"] = "bad"  # as short as the tiny prompts
    if pipeline.conditioner.image_encoder is not None:
        conditioner["image_encoder"] = _CLIP
        network["image_dim"] = _CLIP["width"]
    transformer: dict[str, Any] = {"network": network}
    if len_t is not None:
        transformer |= {"len_t": len_t, "window_size_t": len_t}
    small: dict[str, Any] = {
        "conditioner": conditioner,
        "decoder": _TAEHV if "Taehv" in type(pipeline.decoder).__name__ else _VAE,
        "diffusion_model": {"transformer": transformer},
    }
    if pipeline.encoder is not None:
        small["encoder"] = {"encoder": _VAE, "len_t": len_t or pipeline.encoder.len_t}
    return dataclasses.replace(
        derive_config(config, pipeline=small),
        output_dir=str(output_dir),
        pixel_height=HEIGHT,
        pixel_width=WIDTH,
        random_weights=True,
        **changes,
    )
