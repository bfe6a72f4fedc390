"""Runs Wan 2.1, which makes all frames of a video in one chunk."""

import dataclasses

from fdjax_models.methods.wan21.base_runner import (
    WanImageRunnerConfig,
    WanRunnerConfig,
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
class Wan21ImageRunnerConfig(WanImageRunnerConfig):
    """Config of an image-to-video run."""

    total_blocks: int = 1
    """Chunks to make: one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_chunk(self)
