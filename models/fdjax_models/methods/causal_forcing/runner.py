"""Runs Causal-Forcing: text or a first frame to video, piece by piece."""

import dataclasses
import functools

from fdjax.config import derive_config
from fdjax.contract.scheduler import SchedulerConfig
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax_models.methods.wan21.base_runner import (
    WanRunner,
    WanRunnerConfig,
    WanStartRunnerConfig,
)


class CausalForcingRunner(WanRunner):
    """Text to video; the first chunk may take solver steps of its own."""

    config: "CausalForcingRunnerConfig"

    @functools.cached_property
    def first_pipeline(self) -> StreamInferencePipeline:
        """`pipeline` with the solver of the first chunk."""
        config = self.config
        return derive_config(
            config.resolved_pipeline,
            diffusion_model={"scheduler": config.first_scheduler},
        ).setup()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalForcingRunnerConfig(WanRunnerConfig):
    """Config of a text-to-video run."""

    _target: type = CausalForcingRunner

    first_denoising_timesteps: tuple[int, ...] | None = None
    """Timesteps of the first chunk, before warping; None: those of every chunk."""

    total_blocks: int = 21
    """Chunks to make, of 12 video frames or of 4; the first is 3 frames shorter."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.first_scheduler.setup()
        except ValueError as error:
            error.add_note("in first_denoising_timesteps")
            raise

    @property
    def first_scheduler(self) -> SchedulerConfig:
        """The solver of the first chunk.

        Raises:
            ValueError: Its timesteps are no timesteps.
        """
        scheduler = self.pipeline.diffusion_model.scheduler
        timesteps = self.first_denoising_timesteps
        if timesteps is None:
            return scheduler
        return derive_config(
            scheduler,
            denoising_timesteps=timesteps,
            num_inference_steps=len(timesteps),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalForcingImageRunnerConfig(WanStartRunnerConfig):
    """Config of an image-to-video run."""

    total_blocks: int = 21
    """Chunks to make, of 4 video frames; the first is the image alone."""
