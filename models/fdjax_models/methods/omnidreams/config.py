"""OmniDreams as values: Cosmos-Predict2 2B, causal, steered by an HD map.

Schedules, windows and codecs: NVIDIA/flashdreams, integrations_v2/omnidreams/config.py,
and for the variants without public weights its release of August 2026.
"""

import dataclasses
from typing import Any

from fdjax.config import derive_config
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers import FlowMatchSchedulerConfig, UniPCSchedulerConfig
from fdjax_models.methods.omnidreams.encoder import MapEncoderConfig
from fdjax_models.methods.omnidreams.road.camera import CAMERAS, FRONT
from fdjax_models.methods.omnidreams.road.encoder import DriveEncoderConfig
from fdjax_models.methods.omnidreams.runner import OmniDreamsRunnerConfig
from fdjax_models.methods.omnidreams.views import (
    ViewsConditionerConfig,
    ViewsDecoderConfig,
)
from fdjax_models.methods.wan21 import published
from fdjax_models.networks.cosmos_dit.config import COSMOS_2B_HDMAP, COSMOS_2B_VIEWS
from fdjax_models.networks.cosmos_dit.transformer import CosmosTransformerConfig
from fdjax_models.networks.cosmos_reason1.published import (
    COSMOS_REASON1_7B,
    NEGATIVE_PROMPT,
)
from fdjax_models.networks.hdmap.pixel_shuffle import (
    NUM_CHANNELS,
    PixelShuffleEncoderConfig,
)
from fdjax_models.networks.hdmap.vae_encoder import HdMapVaeEncoderConfig
from fdjax_models.networks.wan_vae.first_frame import FirstFrameEncoderConfig

_WEIGHTS = (
    "hf://nvidia/omni-dreams-models/single_view/2b_res720p_30fps_i2v_hdmap_distilled.pt"
)
FOUR_CAMERAS = (
    "camera_cross_left_120fov",
    "camera_cross_right_120fov",
    "camera_front_tele_30fov",
    "camera_front_wide_120fov",
)
"""The views of the published multi-view runs, from left to right in the network."""


def _vaes(vae: Any) -> dict[str, Any]:
    """The same VAE for the map and for the first frame."""
    return {
        "encoder": MapEncoderConfig(hdmap=HdMapVaeEncoderConfig(encoder=vae)),
        "conditioner": ViewsConditionerConfig(
            text_encoder=COSMOS_REASON1_7B,
            image_encoder=FirstFrameEncoderConfig(encoder=vae),
        ),
    }


CHUNK2 = StreamInferencePipelineConfig(
    name="omnidreams-sv-2steps-chunk2-loc6-lightvae-lighttae",
    diffusion_model=DiffusionModelConfig(
        transformer=CosmosTransformerConfig(
            network=COSMOS_2B_HDMAP,
            checkpoint_path=_WEIGHTS,
            len_t=2,
            window_size_t=6,
        ),
        scheduler=FlowMatchSchedulerConfig(
            num_inference_steps=2, denoising_timesteps=(1000, 450), shift=5.0
        ),
        context_noise=128,
        seed=42,
    ),
    decoder=published.LIGHTTAE_DECODER,
    **_vaes(published.LIGHTVAE_ENCODER),
)
"""One view, chunks of two latent frames that see the last six, the small codecs."""


def _steps(*timesteps: int) -> dict[str, Any]:
    return {"scheduler": {"denoising_timesteps": timesteps}}


OMNIDREAMS = derive_config(CHUNK2, name="omnidreams", diffusion_model=_steps(1000, 500))
"""The second step earlier."""

PERF = derive_config(
    CHUNK2,
    name="omnidreams-perf",
    diffusion_model=_steps(1000, 100)
    | {"transformer": {"skip_finalize_kv_cache": True}},
)
"""Two passes a chunk instead of three: the last step's keys and values are kept."""

VAE = dataclasses.replace(
    CHUNK2,
    name="omnidreams-sv-2steps-chunk2-loc6-vae-vae",
    decoder=published.VAE_DECODER,
    **_vaes(published.VAE_ENCODER),
)
"""The Wan VAE throughout."""

_UNPUBLISHED = {"checkpoint_path": None}

CHUNK3 = derive_config(
    VAE,
    name="omnidreams-sv-2steps-chunk3-loc6-vae-vae",
    diffusion_model={"transformer": _UNPUBLISHED | {"len_t": 3}},
)
"""Chunks of three latent frames; no public weights."""

FOLDED = dataclasses.replace(
    derive_config(
        VAE,
        name="omnidreams-sv-2steps-chunk4-loc8-pshuffle-lighttae",
        diffusion_model={
            "transformer": {
                **_UNPUBLISHED,
                "network": {"control_dim": NUM_CHANNELS},
                "len_t": 4,
                "window_size_t": 8,
            }
        },
    ),
    encoder=MapEncoderConfig(hdmap=PixelShuffleEncoderConfig()),
    decoder=published.LIGHTTAE_DECODER,
)
"""The map by its pixels; no public weights."""


def with_cameras(
    config: StreamInferencePipelineConfig, cameras: tuple[str, ...]
) -> StreamInferencePipelineConfig:
    """A pipeline of these views.

    Args:
        config: Of a network that has cameras.
        cameras: Names of `CAMERAS`.
    """
    parts: Any = config
    decoder = parts.decoder
    if isinstance(decoder, ViewsDecoderConfig):
        decoder = decoder.decoder
    names = list(CAMERAS)
    return dataclasses.replace(
        derive_config(
            config,
            encoder={"num_views": len(cameras)},
            conditioner={"num_views": len(cameras)},
            diffusion_model={
                "transformer": {"cameras": tuple(map(names.index, cameras))}
            },
        ),
        decoder=ViewsDecoderConfig(decoder=decoder, cameras=cameras),
    )


VIEWS = with_cameras(
    derive_config(
        FOLDED,
        name="omnidreams-mv-2steps-chunk4-loc8-pshuffle-lighttae",
        diffusion_model={"transformer": {"network": COSMOS_2B_VIEWS}},
    ),
    FOUR_CAMERAS,
)
"""Four views that see each other; no public weights."""

_TEACHER = "cosmos2-2b-res720p-30fps-hdmap-vae-mads1m"

FORCING = dataclasses.replace(
    derive_config(
        VAE,
        name=f"omnidreams-sv-35steps-chunk2-loc24-{_TEACHER}",
        conditioner={"negative_prompt": NEGATIVE_PROMPT},
        diffusion_model={
            "transformer": {
                **_UNPUBLISHED,
                "window_size_t": 24,
                "guidance_scale": 3.0,
            },
            "scheduler": UniPCSchedulerConfig(num_inference_steps=35, shift=5.0),
            "seed": 1,
        },
    )
)
"""The teacher by diffusion forcing: 35 steps with guidance; no public weights."""

BIDIRECTIONAL = derive_config(
    FORCING,
    name=f"omnidreams-sv-35steps-chunk48-loc48-{_TEACHER}",
    diffusion_model={
        "transformer": {"len_t": 48, "window_size_t": 48},
        "context_noise": 0.0,
    },
)
"""The teacher of the teacher: 189 frames in one chunk; no public weights."""


def drivable(
    config: StreamInferencePipelineConfig,
    *,
    world_seed: int = 0,
    cameras: tuple[str, ...] = (FRONT,),
) -> StreamInferencePipelineConfig:
    """A pipeline whose input is steering and throttle instead of an HD map.

    Args:
        config: One of this method's pipelines.
        world_seed: Names the made-up world.
        cameras: Of the car, one per view.
    """
    parts: Any = config
    encoder = DriveEncoderConfig(
        hdmap=parts.encoder,
        len_t=parts.diffusion_model.transformer.len_t,
        world_seed=world_seed,
        cameras=cameras,
    )
    return dataclasses.replace(config, encoder=encoder)


_PROMPT = (
    "A dash camera looks ahead along a city street on a clear day. Cars keep to their "
    "lanes, people walk on the pavements, and sunlight falls between the buildings."
)


def _runner(
    config: StreamInferencePipelineConfig, description: str, **fields: Any
) -> OmniDreamsRunnerConfig:
    return OmniDreamsRunnerConfig(
        runner_name=config.name,
        description=description,
        pipeline=config,
        prompt=_PROMPT,
        **fields,
    )


RUNNER_CONFIGS = {
    config.runner_name: config
    for config in (
        _runner(OMNIDREAMS, "OmniDreams 2B: a driving world that follows an HD map."),
        _runner(PERF, "OmniDreams 2B, the fast preset: no pass to finalize a chunk."),
        _runner(CHUNK2, "OmniDreams 2B, the second step at 450."),
        _runner(VAE, "OmniDreams 2B with the Wan VAE instead of the small codecs."),
        _runner(CHUNK3, "OmniDreams, chunks of three latents; no public weights."),
        _runner(FOLDED, "OmniDreams, the map by its pixels; no public weights."),
        _runner(
            VIEWS, "OmniDreams, four views; no public weights.", cameras=FOUR_CAMERAS
        ),
        _runner(FORCING, "OmniDreams' teacher, 35 steps; no public weights."),
        _runner(
            BIDIRECTIONAL,
            "OmniDreams' teacher, 189 frames at once; no public weights.",
            total_blocks=1,
        ),
    )
}
