"""Causal Wan 2.2 as values: two causal 14B experts, eight steps between them.

Sizes, schedule and boundary: NVIDIA/flashdreams,
integrations_v2/fastvideo_causal_wan22/config.py; weights of FastVideo.
"""

from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers import FlowMatchSchedulerConfig
from fdjax_models.methods.causal_wan22.runner import CausalWan22RunnerConfig
from fdjax_models.methods.wan21 import published
from fdjax_models.networks.wan_dit.config import WAN_14B_T2V
from fdjax_models.networks.wan_dit.experts import WanExpertsConfig

_REPOSITORY = "hf://FastVideo/CausalWan2.2-I2V-A14B-Preview-Diffusers"
_INDEX = "diffusion_pytorch_model.safetensors.index.json"

T2V_14B = StreamInferencePipelineConfig(
    name="fastvideo-causal-wan2.2-t2v-14b",
    diffusion_model=DiffusionModelConfig(
        transformer=WanExpertsConfig(
            network=WAN_14B_T2V,
            checkpoint_path=f"{_REPOSITORY}/transformer/{_INDEX}",
            low_noise_checkpoint_path=f"{_REPOSITORY}/transformer_2/{_INDEX}",
            len_t=3,
            window_size_t=21,
        ),
        scheduler=FlowMatchSchedulerConfig(
            num_inference_steps=8,
            denoising_timesteps=(1000, 850, 700, 550, 350, 275, 200, 125),
            shift=5.0,
        ),
        seed=42,
    ),
    decoder=published.VAE_DECODER,
    conditioner=TextImageConditionerConfig(text_encoder=published.UMT5_XXL),
)
"""Three steps of the expert for high noise, five of the other one."""

_PROMPT = (
    "A night train pulls into a small mountain station under falling snow. Warm light "
    "from its windows slides over the platform, steam rises from the engine, and a "
    "station master in a long coat raises a lantern. The camera pans slowly along the "
    "carriages."
)

RUNNER_CONFIGS = {
    T2V_14B.name: CausalWan22RunnerConfig(
        runner_name=T2V_14B.name,
        description="Causal Wan 2.2 14B: two experts, streaming text to video.",
        pipeline=T2V_14B,
        prompt=_PROMPT,
    )
}
