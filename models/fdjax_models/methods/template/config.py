"""The template as values: two pipelines, and the slugs that run them."""

from fdjax.config import derive_config
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax_models.methods.template.decoder import TemplateDecoderConfig
from fdjax_models.methods.template.encoder import TemplateEncoderConfig
from fdjax_models.methods.template.runner import TemplateRunnerConfig
from fdjax_models.methods.template.transformer import TemplateTransformerConfig

AUTOREGRESSIVE = StreamInferencePipelineConfig(
    name="template-autoregressive",
    diffusion_model=DiffusionModelConfig(
        transformer=TemplateTransformerConfig(len_t=2, window_size_t=4),
        scheduler=FlowMatchSchedulerConfig(
            num_inference_steps=1, denoising_timesteps=(500,), shift=5.0
        ),
        seed=42,
    ),
    encoder=TemplateEncoderConfig(),
    decoder=TemplateDecoderConfig(),
)
"""Chunks of two latent frames that see the chunk before; one denoising step."""

OFFLINE = derive_config(
    AUTOREGRESSIVE,
    name="template-offline",
    diffusion_model={
        "transformer": {"len_t": 8, "window_size_t": 8},
        "scheduler": {"num_inference_steps": 2, "denoising_timesteps": (1000, 500)},
    },
)
"""All eight frames in one chunk; two denoising steps."""

RUNNER_CONFIGS = {
    "template-autoregressive": TemplateRunnerConfig(
        runner_name="template-autoregressive",
        description="The smallest streaming method, untrained: a start for your own.",
        pipeline=AUTOREGRESSIVE,
        total_blocks=2,
    ),
    "template-offline": TemplateRunnerConfig(
        runner_name="template-offline",
        description="The smallest method that makes all frames at once, untrained.",
        pipeline=OFFLINE,
        total_blocks=1,
    ),
}
