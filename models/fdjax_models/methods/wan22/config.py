"""Wan 2.2 TI2V-5B as values: one chunk of 21 latents, 81 frames.

Sizes, solver, guidance and files: NVIDIA/flashdreams, integrations_v2/wan22. The
model's own defaults are others (Wan-Video/Wan2.2, wan/configs/wan_ti2v_5B.py: 704 x
1280, 121 frames at 24 per second, 50 steps); `docs/models/wan22.md` has flags for them.
"""

from fdjax.config import derive_config
from fdjax_models.methods.wan21 import config as wan21
from fdjax_models.methods.wan21 import published
from fdjax_models.methods.wan22.runner import Wan22RunnerConfig
from fdjax_models.networks.wan_dit.config import WAN_TI2V_5B
from fdjax_models.networks.wan_dit.i2v_encoder import ImageControlEncoderConfig
from fdjax_models.networks.wan_dit.image_conditioning import FirstFrameTimestep, Stamp

TI2V_5B = derive_config(
    wan21.T2V_1_3B,
    name="wan22-ti2v-5b",
    diffusion_model={
        "transformer": {
            "network": WAN_TI2V_5B,
            "checkpoint_path": (
                "hf://Wan-AI/Wan2.2-TI2V-5B-Diffusers/transformer/"
                "diffusion_pytorch_model.safetensors.index.json"
            ),
            "guidance_scale": 5.0,
            "image_conditioning": (Stamp(), FirstFrameTimestep()),
        },
        "scheduler": {"num_inference_steps": 40, "shift": 5.0},
    },
    encoder=ImageControlEncoderConfig(encoder=published.VAE_22_ENCODER, len_t=21),
    decoder=published.VAE_22_DECODER,
)
"""Text and a first frame to video; `runner.without_image` gives text to video."""

RUNNER_CONFIGS = {
    TI2V_5B.name: Wan22RunnerConfig(
        runner_name=TI2V_5B.name,
        description=(
            "Wan 2.2 TI2V-5B: five seconds at 640x1280 from a prompt, or from a first "
            "frame too."
        ),
        pipeline=TI2V_5B,
        prompt=(
            "A fishing boat leaves a small harbour at dawn. Gulls lift from the pier, "
            "the water breaks into ripples of orange light, and the camera follows the "
            "boat slowly from behind."
        ),
    ),
}
