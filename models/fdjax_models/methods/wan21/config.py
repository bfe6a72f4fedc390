"""Wan 2.1 as values (arXiv:2503.20314): one chunk of 21 latents, 81 frames at 16/s.

Solver, shift and guidance: NVIDIA/flashdreams, recipes/wan; for the 14B text-to-video
model, which it does not ship, the defaults of Wan-Video/Wan2.1's generate.py.
"""

from fdjax.config import derive_config
from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers import UniPCSchedulerConfig
from fdjax_models.methods.wan21 import published
from fdjax_models.methods.wan21.runner import Wan21ImageRunnerConfig, Wan21RunnerConfig
from fdjax_models.networks.wan_dit.config import WAN_14B_I2V, WAN_14B_T2V
from fdjax_models.networks.wan_dit.i2v_encoder import ImageControlEncoderConfig
from fdjax_models.networks.wan_dit.image_conditioning import Concatenate
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig

T2V_1_3B = StreamInferencePipelineConfig(
    name="wan21-t2v-1.3b-480p",
    diffusion_model=DiffusionModelConfig(
        transformer=WanTransformerConfig(
            checkpoint_path=(
                "hf://Wan-AI/Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors"
            ),
            guidance_scale=6.0,
        ),
        scheduler=UniPCSchedulerConfig(num_inference_steps=50, shift=8.0),
        seed=42,
    ),
    decoder=published.VAE_DECODER,
    conditioner=TextImageConditionerConfig(
        text_encoder=published.UMT5_XXL, negative_prompt=published.NEGATIVE_PROMPT
    ),
)
"""Text to video, 1.3B."""

T2V_14B = derive_config(
    T2V_1_3B,
    name="wan21-t2v-14b-480p",
    diffusion_model={
        "transformer": {
            "network": WAN_14B_T2V,
            "checkpoint_path": (
                "hf://Wan-AI/Wan2.1-T2V-14B/"
                "diffusion_pytorch_model.safetensors.index.json"
            ),
            "guidance_scale": 5.0,
        },
        "scheduler": {"shift": 5.0},
    },
)
"""Text to video, 14B."""

I2V_14B = derive_config(
    T2V_14B,
    name="wan21-i2v-14b-480p",
    diffusion_model={
        "transformer": WanTransformerConfig(
            network=WAN_14B_I2V,
            checkpoint_path=(
                "hf://Wan-AI/Wan2.1-I2V-14B-480P/"
                "diffusion_pytorch_model.safetensors.index.json"
            ),
            guidance_scale=5.0,
            image_conditioning=(Concatenate(),),
        ),
        "scheduler": {"num_inference_steps": 40, "shift": 3.0},
    },
    encoder=ImageControlEncoderConfig(encoder=published.VAE_ENCODER, len_t=21),
    conditioner={"image_encoder": published.CLIP_VIT_H},
)
"""Image to video, 14B."""

_FOX = (
    "A red fox trots along a snowy ridge at dawn, powder rising from its paws. Low "
    "golden light comes from behind and every hair of its coat is rimmed with it. The "
    "camera glides beside the fox while blue mountains pass slowly in the distance."
)

RUNNER_CONFIGS = {
    "wan21-t2v-1.3b-480p": Wan21RunnerConfig(
        runner_name="wan21-t2v-1.3b-480p",
        description="Wan 2.1 text to video, 1.3B: five seconds at 480p in one chunk.",
        pipeline=T2V_1_3B,
        prompt=_FOX,
    ),
    "wan21-t2v-14b-480p": Wan21RunnerConfig(
        runner_name="wan21-t2v-14b-480p",
        description="Wan 2.1 text to video, 14B: five seconds at 480p in one chunk.",
        pipeline=T2V_14B,
        prompt=_FOX,
    ),
    "wan21-i2v-14b-480p": Wan21ImageRunnerConfig(
        runner_name="wan21-i2v-14b-480p",
        description="Wan 2.1 image to video, 14B: five seconds from a first frame.",
        pipeline=I2V_14B,
        prompt=(
            "The picture comes to life: a light wind moves through it, clouds drift, "
            "and the camera pushes in slowly and steadily."
        ),
        pixel_height=832,
        pixel_width=480,
    ),
}
