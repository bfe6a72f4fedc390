"""Runs Self-Forcing: text to video, chunk by chunk."""

import dataclasses

from fdjax_models.methods.wan21.base_runner import WanRunnerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfForcingRunnerConfig(WanRunnerConfig):
    """Config of a text-to-video run."""

    total_blocks: int = 60
    """Chunks to make; the first has 9 frames, each later one 12."""
