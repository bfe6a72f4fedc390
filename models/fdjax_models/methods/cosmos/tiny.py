"""Cosmos-Predict2.5, small enough for any CPU: noise, by the whole path."""

from typing import Any

from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax_models.methods.wan21.tiny import HEIGHT, STAND_IN, WIDTH

__all__ = ["DIT", "HEIGHT", "REASON1", "STAND_IN", "WIDTH", "changes"]

_LATENTS, _STEPS = 3, 4
_TOKENS = 704  # bytes stand for tokens; the negative prompt and its chat are 671
_LAYERS, _TEXT = 2, 16  # of the text encoder, whose states are joined
REASON1 = {
    "checkpoint_path": None,
    "tokenizer_path": None,
    "vocab_size": 320,
    "width": _TEXT,
    "mlp_dim": 16,
    "num_layers": _LAYERS,
    "num_heads": 2,
    "num_kv_heads": 1,
    "dtype": "float32",
}
"""A small Cosmos-Reason1."""
DIT = {
    "dim": 48,
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 2,
    "text_dim": _LAYERS * _TEXT,
    "context_dim": 16,
    "lora_dim": 8,
    "dtype": "float32",
    "param_dtype": "float32",
}
"""A small Cosmos DiT."""
_VAE = {
    "checkpoint_path": None,
    "widths": (8, 8, 8, 8),
    "num_blocks": 1,
    "dtype": "float32",
}


def changes(config: StreamInferencePipelineConfig) -> dict[str, Any]:
    """What `derive_config` is given to make a pipeline of this method small."""
    conditioner: dict[str, Any] = {"text_encoder": REASON1 | {"max_length": _TOKENS}}
    small: dict[str, Any] = {
        "diffusion_model": {
            "transformer": {
                "network": DIT | {"text_len": _TOKENS},
                "checkpoint_path": None,
                "len_t": _LATENTS,
                "window_size_t": _LATENTS,
            },
            "scheduler": {"num_inference_steps": _STEPS},
        },
        "conditioner": conditioner,
        "decoder": _VAE,
    }
    if config.encoder is not None:
        conditioner["image_encoder"] = {"encoder": _VAE}
        small["encoder"] = {"len_t": _LATENTS}
    return small
