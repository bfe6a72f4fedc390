"""The pipelines that are timed: a method's own, with what the flags change."""

import dataclasses
import functools
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
        ValueError: The method needs other input per chunk than is made here.
    """
    from fdjax.config import derive_config
    from fdjax_models.networks.camera.encoder import CameraControlEncoderConfig

    config = runner_config(slug).pipeline
    known = isinstance(config.encoder, CameraControlEncoderConfig | None)
    if not known and not follows_map(config):
        raise ValueError(
            "--method must turn text into video, or follow a camera or an HD map, got "
            f"{slug!r}."
        )
    config = dataclasses.replace(config, conditioner=None)
    if decoder != "config":
        config = dataclasses.replace(
            config, decoder=_decoder_config(decoder), spatial_compression_ratio=8
        )
    network = {"dtype": dtype, "param_dtype": dtype}
    changes: dict[str, Any] = {"diffusion_model": {"transformer": {"network": network}}}
    config = derive_config(config, **changes)
    if follows_map(config):
        part = dataclasses.replace(config.encoder.hdmap.encoder, dtype=dtype)
        config = derive_config(config, encoder={"hdmap": {"encoder": part}})
    if config.decoder is not None:
        part = dataclasses.replace(config.decoder, dtype=dtype)
        config = dataclasses.replace(config, decoder=part)
    return derive_config(config, **overrides)


def follows_map(config: Any) -> bool:
    """Whether an HD-map video is the input of each chunk, and its VAE known."""
    from fdjax_models.methods.omnidreams.encoder import MapEncoderConfig

    return isinstance(config.encoder, MapEncoderConfig)


def reference_worker(config: Any) -> str:
    """Module of this folder that times the reference."""
    return "reference_omnidreams" if follows_map(config) else "reference"


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


def random_conditions(
    config: Any, key: Any, size: tuple[int, int], batch: int = 1
) -> Any:
    """Standard normal text embeddings, and negative ones where guidance is on.

    A method with an encoder gets a random image of `size`, pixels, in [-1, 1].
    """
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
    if follows_map(config):
        # One view, and the first frame as a latent: [B, V, ...]
        latent = (batch, 1, 1, size[0] // 8, size[1] // 8, network.out_dim)
        return Conditions(
            text=texts[0][:, None],
            negative_text=None if negative is None else negative[:, None],
            image_embedding=jax.random.normal(key, latent),
        )
    image = None
    if config.encoder is not None:
        image = jax.random.uniform(key, (batch, *size, 3), minval=-1.0)
    return Conditions(text=texts[0], negative_text=negative, image=image)


def chunk_input(config: Any, index: int, size: tuple[int, int]) -> Any:
    """The input of a chunk: None, a camera that walks straight on, or an HD map."""
    if config.encoder is None:
        return None
    if follows_map(config):
        len_t = config.diffusion_model.transformer.len_t
        return _random_map(4 * len_t - (0 if index else 3), size)
    from fdjax_models.methods.lingbot_world import paths, trajectory

    # A chunk's rays depend on the steps within it alone: any later one is the second.
    len_t = config.encoder.len_t
    poses = paths.walk(paths.read_controls("w*999", 16), 1 + 4 * (2 * len_t - 1))
    way = trajectory.written(poses, "", size=size)
    return way.chunk(min(index, 1), len_t)


@functools.cache
def _random_map(num_frames: int, size: tuple[int, int]) -> Any:
    """Uniform noise on the device, made once.  float32[1, 1, T, H, W, 3]."""
    import jax

    shape = (1, 1, num_frames, *size, 3)
    return jax.block_until_ready(
        jax.random.uniform(jax.random.key(3), shape, minval=-1.0)
    )


def placement(pipeline: Any, offload_share: float) -> Any:
    """Where the weights live: None, the device, or a share of them with the host.

    Raises:
        ValueError: A share is given, and the method has no experts that take turns.
    """
    from fdjax.checkpoint.placement import default_sharding
    from fdjax.sharding import in_host_memory

    if not offload_share:
        return None
    transformer = pipeline.diffusion_model.transformer
    if not transformer.parts:
        raise ValueError(
            "--offload_expert is for methods of two experts, got "
            f"{pipeline.config.name!r}."
        )
    shapes = transformer.param_shapes()
    return {"transformer": in_host_memory(default_sharding(), shapes, offload_share)}


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
    `FlowMatchSchedulerConfig` of flashdreams, or of its Cosmos classes.
    """
    transformer = config.diffusion_model.transformer
    scheduler = config.diffusion_model.scheduler
    if transformer.setup().parts:
        raise ValueError(
            "--reference and --compare_chunks are for methods of one network, got "
            f"{config.name!r}."
        )
    if follows_map(config):
        return _cosmos_spec(config)
    network = {name: getattr(transformer.network, name) for name in _NETWORK_FIELDS}
    network["apply_rope_before_kvcache"] = transformer.apply_rope_before_kvcache
    return {
        "network": network,
        "transformer": _window_spec(transformer),
        "scheduler": _schedule_spec(scheduler),
    }


def _window_spec(transformer: Any) -> dict[str, Any]:
    names = ("len_t", "window_size_t", "sink_size_t", "guidance_scale")
    return {name: getattr(transformer, name) for name in names}


def _schedule_spec(scheduler: Any) -> dict[str, Any]:
    return {
        "denoising_timesteps": list(scheduler.denoising_timesteps),
        "num_inference_steps": len(scheduler.denoising_timesteps),
        "shift": scheduler.shift,
    }


def _cosmos_spec(config: Any) -> dict[str, Any]:
    """As `reference_spec`; without the HD map's channels, see its worker."""
    model = config.diffusion_model
    network = model.transformer.network
    skipped = {"skip_finalize_kv_cache": model.transformer.skip_finalize_kv_cache}
    return {
        "network": {
            "model_channels": network.dim,
            "num_blocks": network.num_layers,
            "num_heads": network.num_heads,
            "mlp_ratio": network.ffn_dim / network.dim,
            "adaln_lora_dim": network.lora_dim,
            "crossattn_proj_in_channels": network.text_dim,
            "crossattn_emb_channels": network.context_dim,
        },
        "transformer": _window_spec(model.transformer) | skipped,
        "scheduler": _schedule_spec(model.scheduler),
        "context_noise": model.context_noise,
        "text_shape": [network.text_len, network.text_dim],
        # Its pruned VAE has a quarter of the base width.
        "vae_base_dim": 4 * config.encoder.hdmap.encoder.widths[0],
    }
