"""Cosmos-Predict2.5 2B as values: one chunk of 24 latents, 93 frames at 16/s.

Solver, guidance and sizes: NVIDIA/flashdreams, integrations_v2/cosmos_predict2. The
model's own code writes c + 7 (c - u) where this is u + 8 (c - u): the same.
"""

from fdjax.config import derive_config
from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers import UniPCSchedulerConfig
from fdjax_models.methods.cosmos.runner import (
    CosmosImageRunnerConfig,
    CosmosRunnerConfig,
)
from fdjax_models.methods.wan21 import published
from fdjax_models.networks.cosmos_dit.first_frame import FirstFrameControlEncoderConfig
from fdjax_models.networks.cosmos_dit.transformer import CosmosTransformerConfig
from fdjax_models.networks.cosmos_reason1.published import (
    COSMOS_REASON1_7B,
    NEGATIVE_PROMPT,
)
from fdjax_models.networks.wan_vae.first_frame import FirstFrameEncoderConfig

T2V_2B = StreamInferencePipelineConfig(
    name="cosmos2-t2v-2b-720p",
    diffusion_model=DiffusionModelConfig(
        transformer=CosmosTransformerConfig(
            checkpoint_path=(
                "hf://nvidia/Cosmos-Predict2.5-2B/base/post-trained/"
                "81edfebe-bd6a-4039-8c1d-737df1a790bf_ema_bf16.pt"
            ),
            guidance_scale=8.0,
        ),
        # 36 steps: Karras' levels have one more. The shift is of no effect with them.
        scheduler=UniPCSchedulerConfig(
            num_inference_steps=35, shift=5.0, use_kerras_sigma=True
        ),
        seed=42,
    ),
    decoder=published.VAE_DECODER,
    conditioner=TextImageConditionerConfig(
        text_encoder=COSMOS_REASON1_7B, negative_prompt=NEGATIVE_PROMPT
    ),
)
"""Text to video."""

I2V_2B = derive_config(
    T2V_2B,
    name="cosmos2-i2v-2b-720p",
    diffusion_model={"transformer": {"conditional_frame_timestep": 0.1}},
    encoder=FirstFrameControlEncoderConfig(),
    conditioner={
        "image_encoder": FirstFrameEncoderConfig(encoder=published.VAE_ENCODER)
    },
)
"""Image to video: the same weights."""

RUNNER_CONFIGS = {
    "cosmos2-t2v-2b-720p": CosmosRunnerConfig(
        runner_name="cosmos2-t2v-2b-720p",
        description="Cosmos-Predict2.5 text to video, 2B: six seconds at 720p.",
        pipeline=T2V_2B,
        prompt=(
            "A forklift carries a stack of crates down the aisle of a bright "
            "warehouse. Dust hangs in the light of the high windows, a worker steps "
            "aside, and the camera follows slowly at the height of the load."
        ),
    ),
    "cosmos2-i2v-2b-720p": CosmosImageRunnerConfig(
        runner_name="cosmos2-i2v-2b-720p",
        description="Cosmos-Predict2.5 image to video, 2B: six seconds at 720p.",
        pipeline=I2V_2B,
        prompt=(
            "What the picture shows begins to move as it would in the world: things "
            "have weight, light stays where it is, and the camera holds still."
        ),
    ),
}
