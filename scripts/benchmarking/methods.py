"""The pipelines that are timed: a method's own, with what the flags change."""

import dataclasses
from typing import Any

DECODERS = ("config", "wan_vae", "taehv", "none")

_NETWORK_FIELDS = (
    *("patch_size", "dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim"),
    *("text_len", "text_dim", "freq_dim", "eps"),
)


def pipeline_config(
    slug: str, *, decoder: str, dtype: str, overrides: dict[str, Any]
) -> Any:
    """The method's pipeline without encoders of conditions, weights random.

    Args:
        slug: Name of an installed method, text to video.
        decoder: One of `DECODERS`; "config" is the method's own.
        dtype: Of weights and activations.
        overrides: Nested changes of the pipeline's config.

    Raises:
        ValueError: The method needs per-chunk input, which is not made here.
    """
    from fdjax.config import derive_config

    config = runner_config(slug).pipeline
    if config.encoder is not None:
        raise ValueError(
            f"--method must be a text-to-video method, got {slug!r}, which has an "
            "encoder of per-chunk input."
        )
    config = dataclasses.replace(config, conditioner=None)
    if decoder != "config":
        config = dataclasses.replace(
            config, decoder=_decoder_config(decoder), spatial_compression_ratio=8
        )
    network = {"dtype": dtype, "param_dtype": dtype}
    changes: dict[str, Any] = {"diffusion_model": {"transformer": {"network": network}}}
    config = derive_config(config, **changes)
    if config.decoder is not None:
        part = dataclasses.replace(config.decoder, dtype=dtype)
        config = dataclasses.replace(config, decoder=part)
    return derive_config(config, **overrides)


def runner_config(slug: str) -> Any:
    """The config of an installed method.

    Raises:
        ValueError: There is none of this name.
    """
    import fdjax

    configs = fdjax.runner_configs()
    if slug not in configs:
        raise ValueError(f"--method must be one of {sorted(configs)}, got {slug!r}.")
    return configs[slug]


def random_conditions(config: Any, key: Any, batch: int = 1) -> Any:
    """Standard normal text embeddings, and negative ones where guidance is on."""
    import jax
    import jax.numpy as jnp

    from fdjax.contract.conditioner import Conditions

    transformer = config.diffusion_model.transformer
    network = transformer.network
    shape = (batch, network.text_len, network.text_dim)
    texts = [
        jax.random.normal(part, shape, jnp.bfloat16) for part in jax.random.split(key)
    ]
    negative = texts[1] if transformer.guidance_scale > 1 else None
    return Conditions(text=texts[0], negative_text=negative)


def first_steady_chunk(config: Any) -> int:
    """Index of the first chunk that finds a full window."""
    [layout, *_] = config.diffusion_model.transformer.layout.frames
    return layout.capacity // layout.chunk


def _decoder_config(name: str) -> Any:
    from fdjax_models.networks.taehv.decoder import LIGHTTAE
    from fdjax_models.networks.wan_vae.vae import WanVaeDecoderConfig

    return {"none": None, "taehv": LIGHTTAE, "wan_vae": WanVaeDecoderConfig()}[name]


def reference_spec(config: Any) -> dict[str, Any]:
    """What the PyTorch reference needs to build the same model.

    The names are its own: fields of `WanDiTNetworkConfig`, `Wan21TransformerConfig` and
    `FlowMatchSchedulerConfig` of flashdreams.
    """
    transformer = config.diffusion_model.transformer
    scheduler = config.diffusion_model.scheduler
    network = {name: getattr(transformer.network, name) for name in _NETWORK_FIELDS}
    network["apply_rope_before_kvcache"] = transformer.apply_rope_before_kvcache
    return {
        "network": network,
        "transformer": {
            name: getattr(transformer, name)
            for name in ("len_t", "window_size_t", "sink_size_t", "guidance_scale")
        },
        "scheduler": {
            "denoising_timesteps": list(scheduler.denoising_timesteps),
            "num_inference_steps": len(scheduler.denoising_timesteps),
            "shift": scheduler.shift,
        },
    }
