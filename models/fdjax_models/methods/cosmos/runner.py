"""Runs Cosmos-Predict2.5, which makes all frames of a video in one chunk."""

import dataclasses

from fdjax.config import derive_config
from fdjax.run.runner import RunnerConfig
from fdjax_models.methods.cosmos import tiny
from fdjax_models.methods.wan21.base_runner import (
    WanImageRunnerConfig,
    WanRunnerConfig,
    check_one_chunk,
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

    def tiny(self) -> RunnerConfig:
        """The same path through small networks, to a small picture."""
        return _tiny(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosImageRunnerConfig(WanImageRunnerConfig):
    """Config of an image-to-video run."""

    total_blocks: int = 1
    """Chunks to make: one."""

    pixel_height: int = 720
    """Rows of the video."""

    pixel_width: int = 1280
    """Columns of the video."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_chunk(self)

    def tiny(self) -> RunnerConfig:
        """As that of text to video, with an image for whoever has none."""
        return derive_config(_tiny(self), image=self.image or tiny.STAND_IN)
