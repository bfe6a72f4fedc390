"""OmniDreams' methods, small enough for any CPU: noise, by the whole path."""

from typing import Any

from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax_models.methods.cosmos.tiny import DIT, REASON1

HEIGHT, WIDTH = 64, 96

_LATENTS = 3  # of a method that makes all frames at once
_STEPS = 4
_CODEC = {"widths": (8, 8, 8, 8), "dtype": "float32", "checkpoint_path": None}


def changes(config: StreamInferencePipelineConfig) -> dict[str, Any]:
    """What `derive_config` is given to make a pipeline of this method small."""
    parts: Any = config
    transformer: dict[str, Any] = {"network": DIT, "checkpoint_path": None}
    if parts.diffusion_model.transformer.len_t > 4:
        transformer |= {"len_t": _LATENTS, "window_size_t": _LATENTS}
    model: dict[str, Any] = {"transformer": transformer}
    if parts.diffusion_model.scheduler.num_inference_steps > _STEPS:
        model["scheduler"] = {"num_inference_steps": _STEPS}
    image = parts.conditioner.image_encoder.encoder
    small: dict[str, Any] = {
        "diffusion_model": model,
        "conditioner": {
            "text_encoder": REASON1,
            "image_encoder": {"encoder": _codec(image)},
        },
    }
    decoder = parts.decoder
    if hasattr(decoder, "decoder"):
        small["decoder"] = {"decoder": _codec(decoder.decoder)}
    else:
        small["decoder"] = _codec(decoder)
    if hasattr(parts.encoder.hdmap, "encoder"):
        small["encoder"] = {"hdmap": {"encoder": _codec(parts.encoder.hdmap.encoder)}}
    return small


def _codec(config: Any) -> dict[str, Any]:
    """The VAE, or the small codec in its place."""
    blocks = "num_blocks" if hasattr(config, "num_blocks") else "blocks_per_stage"
    return {**_CODEC, blocks: 1}
