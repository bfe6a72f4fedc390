"""Self-Forcing as values (arXiv:2506.08009): Wan 2.1 1.3B as a four-step causal model.

Sizes and schedule: NVIDIA/flashdreams, recipes/self_forcing. Its shift of 8 is the
class default of the official code, whose inference config passes 5.
"""

from fdjax.config import derive_config
from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers import FlowMatchSchedulerConfig
from fdjax_models.methods.self_forcing.runner import SelfForcingRunnerConfig
from fdjax_models.methods.wan21 import published
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig

T2V_1_3B = StreamInferencePipelineConfig(
    name="self-forcing-wan2.1-t2v-1.3b",
    diffusion_model=DiffusionModelConfig(
        transformer=WanTransformerConfig(
            checkpoint_path="hf://gdhe17/Self-Forcing/checkpoints/self_forcing_dmd.pt",
            len_t=3,
            window_size_t=21,
        ),
        scheduler=FlowMatchSchedulerConfig(
            num_inference_steps=4, denoising_timesteps=(1000, 750, 500, 250), shift=8.0
        ),
        seed=42,
    ),
    decoder=published.VAE_DECODER,
    conditioner=TextImageConditionerConfig(text_encoder=published.UMT5_XXL),
)
"""Chunks of three latent frames that see the last 21."""

T2V_1_3B_TAEHV = derive_config(
    T2V_1_3B,
    name="self-forcing-wan2.1-t2v-1.3b-taehv",
    decoder=published.LIGHTTAE_DECODER,
)
"""The same latents, decoded by a network a tenth of the VAE's cost."""

T2V_1_3B_RELATIVE = derive_config(
    T2V_1_3B,
    name="self-forcing-wan2.1-t2v-1.3b-sink5-window7-rerope",
    diffusion_model={
        "transformer": {
            "window_size_t": 7,
            "sink_size_t": 5,
            "apply_rope_before_kvcache": False,
        },
        "seed": 0,
    },
)
"""Sees the first five and the last seven latent frames, at times counted inside the
cache: positions stay within what the model was trained on, however long it runs."""

_PROMPT = (
    "A small wooden sailing boat crosses a calm bay in the late afternoon. Its patched "
    "red sail fills and slackens with the wind, sunlight breaks into sparks on the "
    "ripples around the hull, and gulls circle above the mast. The camera follows "
    "low over the water, drifting slowly from the stern towards the bow."
)

RUNNER_CONFIGS = {
    config.name: SelfForcingRunnerConfig(
        runner_name=config.name,
        description=description,
        pipeline=config,
        prompt=_PROMPT,
        total_blocks=total_blocks,
    )
    for config, total_blocks, description in (
        (T2V_1_3B, 60, "Self-Forcing on Wan 2.1 1.3B: streaming text to video, 480p."),
        (T2V_1_3B_TAEHV, 60, "Self-Forcing with the small LightTAE decoder: fastest."),
        (
            T2V_1_3B_RELATIVE,
            80,
            "Self-Forcing with five sink frames and cache-relative time: long videos.",
        ),
    )
}
