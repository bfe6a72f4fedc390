"""Runs Cosmos-Predict2.5, which makes all frames of a video in one chunk."""

import dataclasses
from typing import Any

from fdjax.config import derive_config
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.run.runner import RunnerConfig
from fdjax_models.methods.cosmos import tiny
from fdjax_models.methods.wan21.base_runner import (
    WanRunnerConfig,
    WanStartRunnerConfig,
    check_one_chunk,
)


def check_prompts(pipeline: StreamInferencePipelineConfig) -> None:
    """Refuses parts that would not fit together once a prompt is encoded.

    Raises:
        ValueError: The text encoder gives another number of tokens than the network
            reads, or guidance has no negative prompt.
    """
    conditioner: Any = pipeline.conditioner
    transformer: Any = pipeline.diffusion_model.transformer
    encoder = None if conditioner is None else conditioner.text_encoder
    if encoder is None:
        return
    if encoder.max_length != transformer.network.text_len:
        raise ValueError(
            "pipeline.conditioner.text_encoder.max_length must equal the transformer's "
            f"network.text_len, {transformer.network.text_len}, got "
            f"{encoder.max_length}."
        )
    if transformer.guidance_scale > 1 and conditioner.negative_prompt is None:
        raise ValueError(
            f"guidance_scale={transformer.guidance_scale} needs a negative prompt: set "
            "pipeline.conditioner.negative_prompt, or guidance_scale to 1."
        )


def _tiny(config: WanRunnerConfig) -> RunnerConfig:
    """The same path through small networks, to a small picture."""
    # Not that of the Wan family, whose networks are others.
    return derive_config(
        RunnerConfig.tiny(config),
        pipeline=tiny.changes(config.pipeline),
        pixel_height=tiny.HEIGHT,
        pixel_width=tiny.WIDTH,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosRunnerConfig(WanRunnerConfig):
    """Config of a text-to-video run."""

    total_blocks: int = 1
    """Chunks to make: one."""

    pixel_height: int = 720
    """Rows of the video."""

    pixel_width: int = 1280
    """Columns of the video."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_chunk(self)
        check_prompts(self.pipeline)

    def tiny(self) -> RunnerConfig:
        """The same path through small networks, to a small picture."""
        return _tiny(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosImageRunnerConfig(CosmosRunnerConfig, WanStartRunnerConfig):
    """Config of an image-to-video run."""

    def tiny(self) -> RunnerConfig:
        """As that of text to video, with an image for whoever has none."""
        return derive_config(_tiny(self), image=self.image or tiny.STAND_IN)
