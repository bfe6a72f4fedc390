"""Runs Causal-Forcing: text or a first frame to video, piece by piece."""

import dataclasses

from fdjax_models.methods.wan21.base_runner import WanRunnerConfig, WanStartRunnerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalForcingRunnerConfig(WanRunnerConfig):
    """Config of a text-to-video run."""

    total_blocks: int = 21
    """Chunks to make, of 12 video frames or of 4; the first is 3 frames shorter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalForcingImageRunnerConfig(WanStartRunnerConfig):
    """Config of an image-to-video run."""

    total_blocks: int = 21
    """Chunks to make, of 4 video frames; the first is the image alone."""
