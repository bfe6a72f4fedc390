"""Runs causal Wan 2.2: text to video, chunk by chunk."""

import dataclasses

from fdjax.checkpoint.placement import default_sharding
from fdjax.checkpoint.store import param_shapes
from fdjax.sharding import Placement, in_host_memory
from fdjax_models.methods.wan21.base_runner import WanRunner, WanRunnerConfig


class CausalWan22Runner(WanRunner):
    """Text to video; the experts' weights live where the config says."""

    config: "CausalWan22RunnerConfig"

    def weights_placement(self) -> Placement | None:
        """With `offload_expert` a share of the experts' weights with the host."""
        if not self.config.offload_expert:
            return super().weights_placement()
        if self.devices.several:
            raise ValueError(
                "offload_expert is for one device; leave it out, or mesh and place."
            )
        shapes = param_shapes(self.pipeline.components["transformer"])
        share = self.config.offload_share
        return {"transformer": in_host_memory(default_sharding(), shapes, share)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalWan22RunnerConfig(WanRunnerConfig):
    """Config of a text-to-video run.

    `checkpoint_path` is that of the expert for high noise; the other one's is
    `pipeline.diffusion_model.transformer.low_noise_checkpoint_path`.
    """

    _target: type = CausalWan22Runner

    total_blocks: int = 21
    """Chunks to make, of 12 video frames; the first is 3 frames shorter."""

    offload_expert: bool = False
    """Keep the experts' weights in the host's memory, and bring each to the device for
    its steps: the same video with less of the device's memory, slower."""

    offload_share: float = 1.0
    """Of each expert's weights, in (0, 1], what `offload_expert` keeps with the host.
    The rest stays on the device: less is faster and takes more memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.offload_share <= 1:
            raise ValueError(
                f"offload_share must be above 0 and at most 1, got "
                f"{self.offload_share}."
            )
