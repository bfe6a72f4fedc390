"""Runs Wan 2.2 TI2V-5B, whose one set of weights serves with an image and without."""

import dataclasses

from fdjax.config import derive_config
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.run.runner import RunnerConfig
from fdjax_models.methods.wan21.base_runner import WanStartRunnerConfig, check_one_chunk


def without_image(
    pipeline: StreamInferencePipelineConfig,
) -> StreamInferencePipelineConfig:
    """The pipeline for a prompt alone: no image encoder, no given frame."""
    return derive_config(
        pipeline,
        encoder=None,
        diffusion_model={"transformer": {"image_conditioning": ()}},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wan22RunnerConfig(WanStartRunnerConfig):
    """Config of a run that starts from a first frame if `image` names one.

    Without it the pipeline runs as `without_image` has it: as Wan-Video/Wan2.2,
    wan/textimage2video.py, all latent frames are noise at one timestep.
    """

    total_blocks: int = 1
    """Chunks to make: one."""

    pixel_height: int = 640
    """Rows of the video, a multiple of 32."""

    pixel_width: int = 1280
    """Columns of the video, a multiple of 32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_chunk(self)

    def tiny(self) -> RunnerConfig:
        """The same path through small networks: with an image if there is one."""
        return derive_config(super().tiny(), image=self.image)

    @property
    def resolved_pipeline(self) -> StreamInferencePipelineConfig:
        """The pipeline that runs, with or without an image."""
        pipeline = super().resolved_pipeline
        return pipeline if str(self.image) else without_image(pipeline)
