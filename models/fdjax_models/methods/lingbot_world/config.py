"""LingBot-World as values: Wan 2.1 networks, causal, steered by a camera.

Sizes, schedule and windows: NVIDIA/flashdreams, integrations_v2/lingbot/config.py.
"""

from typing import Any

from fdjax.config import derive_config
from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers import FlowMatchSchedulerConfig
from fdjax_models.methods.lingbot_world.runner import LingBotRunnerConfig
from fdjax_models.methods.wan21 import published
from fdjax_models.networks.camera.encoder import CameraControlEncoderConfig
from fdjax_models.networks.wan_dit.config import LINGBOT_WORLD_1_3B, LINGBOT_WORLD_14B
from fdjax_models.networks.wan_dit.image_conditioning import Concatenate
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig

FAST = StreamInferencePipelineConfig(
    name="lingbot-world-fast",
    diffusion_model=DiffusionModelConfig(
        transformer=WanTransformerConfig(
            network=LINGBOT_WORLD_14B,
            checkpoint_path=(
                "hf://robbyant/lingbot-world-fast/"
                "diffusion_pytorch_model.safetensors.index.json"
            ),
            len_t=3,
            window_size_t=63,
            image_conditioning=(Concatenate(),),
        ),
        scheduler=FlowMatchSchedulerConfig(
            num_inference_steps=4,
            denoising_timesteps=(1000, 821, 642, 321),
            shift=10.0,
            sigma_max=0.999,
            timestep_dtype="int64",
        ),
        seed=42,
    ),
    encoder=CameraControlEncoderConfig(encoder=published.VAE_ENCODER, len_t=3),
    decoder=published.VAE_DECODER,
    conditioner=TextImageConditionerConfig(text_encoder=published.UMT5_XXL),
)
"""Chunks of three latent frames that see the last 63: a minute and more."""

_SHORT = {
    "decoder": published.LIGHTTAE_DECODER,
    "diffusion_model": {"transformer": {"window_size_t": 15, "sink_size_t": 3}},
}

FAST_SHORT = derive_config(
    FAST, name="lingbot-world-fast-taehv-window15-sink3", **_SHORT
)
"""Sees the first three and the last 15 latent frames; the small decoder."""

V2 = derive_config(
    FAST,
    name="lingbot-world-v2-14b-causal-fast",
    diffusion_model={
        "transformer": {
            "checkpoint_path": (
                "hf://robbyant/lingbot-world-v2-14b-causal-fast/transformers/"
                "diffusion_pytorch_model.safetensors.index.json"
            )
        }
    },
)
"""The second training of the same network."""

V2_SHORT = derive_config(
    V2, name="lingbot-world-v2-14b-causal-fast-taehv-window15-sink3", **_SHORT
)
"""Its short window and small decoder."""

V2_SMALL = derive_config(
    FAST,
    name="lingbot-world-v2-1.3b-causal-fast",
    diffusion_model={
        "transformer": {
            "network": LINGBOT_WORLD_1_3B,
            "checkpoint_path": (
                "hf://robbyant/lingbot-world-v2-1.3b-causal-fast/"
                "model.safetensors.index.json"
            ),
            "len_t": 4,
            "window_size_t": 12,
            "sink_size_t": 6,
        },
        "scheduler": {"denoising_timesteps": (1000, 750, 500, 250), "shift": 5.0},
    },
    encoder={"len_t": 4},
)
"""The small network: chunks of four latent frames, which see the first six and the last
twelve. The reference calls it lingbot-world-v2-1p3b-causal-fast-max-perf."""

V2_SMALL_TAEHV = derive_config(
    V2_SMALL, name=f"{V2_SMALL.name}-taehv", decoder=published.LIGHTTAE_DECODER
)
"""The small network with the small decoder."""

_PROMPT = (
    "A quiet stone courtyard in the morning, moss between the flagstones, a dry "
    "fountain in the middle and arcades all around. The camera moves slowly at eye "
    "level through the still air."
)


def _repository(pipeline: StreamInferencePipelineConfig) -> str:
    """The name in hf://robbyant/NAME/path."""
    transformer: Any = pipeline.diffusion_model.transformer
    return str(transformer.checkpoint_path).split("/")[3]


RUNNER_CONFIGS = {
    config.name: LingBotRunnerConfig(
        runner_name=config.name,
        description=description,
        pipeline=config,
        weights=_repository(config),
        prompt=_PROMPT,
    )
    for config, description in (
        (FAST, "LingBot-World 14B: walk through an image with a camera, long memory."),
        (FAST_SHORT, "LingBot-World 14B, short window, small decoder: the faster one."),
        (V2, "LingBot-World v2 14B: as the first, trained further."),
        (V2_SHORT, "LingBot-World v2 14B, short window, small decoder."),
        (V2_SMALL, "LingBot-World v2 1.3B: a tenth of the size, 16 frames a chunk."),
        (V2_SMALL_TAEHV, "LingBot-World v2 1.3B, small decoder: the fastest one."),
    )
}
