"""Methods of the Wan family, small enough for any CPU: noise, by the whole path."""

from typing import Any

from fdjax.engine.pipeline import StreamInferencePipelineConfig

HEIGHT, WIDTH = 64, 96
STAND_IN = "package://fdjax_models.methods.wan21/ramp.png"
"""A start image for whoever has none at hand."""

_LATENTS = 3  # of a method that makes all frames at once
_STEPS = 4
_DIT = {
    "dim": 48,
    "ffn_dim": 64,
    "num_heads": 2,
    "num_layers": 2,
    "text_dim": 32,
    "freq_dim": 32,
    "dtype": "float32",
    "param_dtype": "float32",
}
_UMT5 = {
    "checkpoint_path": None,
    "tokenizer_path": None,
    "vocab_size": 320,
    "width": 32,
    "mlp_dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "head_dim": 8,
    "dtype": "float32",
}
_CLIP = {
    "checkpoint_path": None,
    "image_size": 56,
    "width": 32,
    "mlp_dim": 32,
    "num_layers": 2,
    "output_layer": 1,
    "num_heads": 2,
    "dtype": "float32",
}
_CODEC = {"widths": (8, 8, 8, 8), "dtype": "float32"}


def changes(config: StreamInferencePipelineConfig) -> dict[str, Any]:
    """What `derive_config` is given to make a pipeline of the family small."""
    parts: Any = config
    network, conditioner = dict(_DIT), {}
    if parts.conditioner is not None and parts.conditioner.text_encoder is not None:
        conditioner["text_encoder"] = _UMT5
    if parts.conditioner is not None and parts.conditioner.image_encoder is not None:
        conditioner["image_encoder"] = _CLIP
        network["image_dim"] = _CLIP["width"]
    transformer: dict[str, Any] = {"network": network}
    whole: Any = parts.diffusion_model.transformer
    at_once = whole.len_t > _LATENTS and not whole.layout.has_memory
    if at_once:
        transformer |= {"len_t": _LATENTS, "window_size_t": _LATENTS}
    model: dict[str, Any] = {"transformer": transformer}
    scheduler = parts.diffusion_model.scheduler
    # A distilled model's own list of steps stays whole.
    listed = getattr(scheduler, "denoising_timesteps", None)
    if not listed and scheduler.num_inference_steps > _STEPS:
        model["scheduler"] = {"num_inference_steps": _STEPS}
    small: dict[str, Any] = {"diffusion_model": model, "conditioner": conditioner}
    if parts.decoder is not None:
        small["decoder"] = _codec(parts.decoder)
    if hasattr(parts.encoder, "encoder"):
        small["encoder"] = {"encoder": _codec(parts.encoder.encoder)}
        if at_once:
            small["encoder"]["len_t"] = _LATENTS
    return small


def _codec(config: Any) -> dict[str, Any]:
    """The VAE, or the small codec in its place."""
    blocks = "num_blocks" if hasattr(config, "num_blocks") else "blocks_per_stage"
    return {**_CODEC, blocks: 1, "checkpoint_path": None}
