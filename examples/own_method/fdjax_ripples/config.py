"""The method as values."""

from fdjax import DiffusionModelConfig, StreamInferencePipelineConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax_ripples.decoder import BlockDecoderConfig
from fdjax_ripples.encoder import RippleEncoderConfig
from fdjax_ripples.runner import RippleRunnerConfig
from fdjax_ripples.transformer import RippleTransformerConfig

PIPELINE = StreamInferencePipelineConfig(
    name="ripples",
    diffusion_model=DiffusionModelConfig(
        transformer=RippleTransformerConfig(),
        scheduler=FlowMatchSchedulerConfig(
            num_inference_steps=2, denoising_timesteps=(1000, 500), shift=1.0
        ),
    ),
    encoder=RippleEncoderConfig(),
    decoder=BlockDecoderConfig(),
)

RUNNER_CONFIGS = {
    "ripples": RippleRunnerConfig(
        runner_name="ripples",
        description="Grey ripples that follow given levels, from another package.",
        pipeline=PIPELINE,
    )
}
