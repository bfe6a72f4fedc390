"""Runs Wan 2.1, which makes all frames of a video in one chunk."""

import dataclasses

from fdjax.run.start_image import Fit
from fdjax_models.methods.wan21.base_runner import (
    WanRunnerConfig,
    WanStartRunnerConfig,
    check_one_chunk,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wan21RunnerConfig(WanRunnerConfig):
    """Config of a text-to-video run."""

    total_blocks: int = 1
    """Chunks to make: one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_chunk(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wan21ImageRunnerConfig(WanStartRunnerConfig):
    """Config of an image-to-video run."""

    fit: Fit = "keep"
    """An image of other proportions: "stretch" changes them, "crop" cuts its middle
    out, "pad" puts black bars beside it, and "keep" gives the video the proportions of
    the image, with about as many pixels as pixel_height x pixel_width, as Wan's own
    script does."""

    total_blocks: int = 1
    """Chunks to make: one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_chunk(self)
