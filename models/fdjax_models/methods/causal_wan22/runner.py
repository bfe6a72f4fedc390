"""Runs causal Wan 2.2: text to video, chunk by chunk."""

import dataclasses

from fdjax_models.methods.wan21.base_runner import WanRunnerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalWan22RunnerConfig(WanRunnerConfig):
    """Config of a text-to-video run.

    `checkpoint_path` is that of the expert for high noise; the other one's is
    `pipeline.diffusion_model.transformer.low_noise_checkpoint_path`.
    """

    total_blocks: int = 21
    """Chunks to make, of 12 video frames; the first is 3 frames shorter."""
