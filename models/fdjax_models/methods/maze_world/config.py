"""maze-world as a method: its pipeline and its slug."""

from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers.flow_match import FlowMatchSchedulerConfig
from fdjax_models.methods.maze_world.conditioner import WordEncoderConfig
from fdjax_models.methods.maze_world.encoder import MazeEncoderConfig
from fdjax_models.methods.maze_world.runner import MazeRunnerConfig
from fdjax_models.methods.maze_world.sizes import (
    DECODER,
    ENCODER,
    NETWORK,
    WINDOW_CHUNKS,
    weights_path,
)
from fdjax_models.networks.wan_dit.image_conditioning import Stamp
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig

PIPELINE = StreamInferencePipelineConfig(
    name="maze-world",
    diffusion_model=DiffusionModelConfig(
        transformer=WanTransformerConfig(
            network=NETWORK,
            checkpoint_path=weights_path("transformer"),
            # Four frames of video: keys act within a third of a second.
            len_t=1,
            window_size_t=WINDOW_CHUNKS,
            image_conditioning=(Stamp(),),
        ),
        scheduler=FlowMatchSchedulerConfig(
            num_inference_steps=3,
            denoising_timesteps=(1000, 667, 333),
            shift=3.0,
        ),
        context_noise=0.0,
        seed=0,
    ),
    encoder=MazeEncoderConfig(
        image_encoder=ENCODER, checkpoint_path=weights_path("encoder")
    ),
    decoder=DECODER,
    conditioner=TextImageConditionerConfig(
        text_encoder=WordEncoderConfig(checkpoint_path=weights_path("text_encoder"))
    ),
)
"""maze-world: 96 x 160 pixels, 12 frames a second, chunks of 4 frames."""

RUNNER_CONFIGS = {
    "maze-world": MazeRunnerConfig(
        runner_name="maze-world",
        description="Walk through a maze by keyboard; trained, ships with its weights.",
        pipeline=PIPELINE,
    ),
}
"""The method by its slug."""
