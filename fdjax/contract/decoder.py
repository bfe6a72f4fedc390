"""The contract of a streaming decoder: latents in, video out."""

import abc
import dataclasses

from fdjax.axes import Array, Params, PyTree
from fdjax.config import InstantiateConfig
from fdjax.contract.component import ParametricComponent


class StreamingDecoder(ParametricComponent):
    """Turns the clean latent of each chunk into video.

    What is special about the first chunk must show in the tree structure of the cache:
    one structure before the first chunk, one after it.

    Attributes:
        video_range: Least and greatest value of what it gives. None if that is no
            picture, or has no bounds; whoever shows it must scale it then.
    """

    video_range: tuple[float, float] | None = (-1.0, 1.0)

    @property
    @abc.abstractmethod
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent row or column."""

    @property
    @abc.abstractmethod
    def temporal_compression_ratio(self) -> int:
        """Video frames per latent frame, after the first chunk."""

    @abc.abstractmethod
    def initialize_cache(
        self, params: Params, batch_size: int, height: int, width: int
    ) -> PyTree:
        """The state before the first chunk, for latents of `height` x `width`."""

    @abc.abstractmethod
    def decode(
        self, params: Params, cache: PyTree, latent: Array
    ) -> tuple[PyTree, PyTree]:
        """The state after this chunk, and its video.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            latent: Clean chunk.  float32[B, T, H, W, C].

        Returns:
            The new state, and video in `video_range`, float[B, T', H', W', 3]; or a
            tree of such, one per view.
        """

    def num_output_frames(self, num_latents: int, first: bool) -> int:
        """Video frames that a chunk of `num_latents` gives.

        A causal decoder's first latent of a stream gives one frame: override where
        that does not hold.
        """
        frames = num_latents * self.temporal_compression_ratio
        return frames - (self.temporal_compression_ratio - 1 if first else 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(InstantiateConfig[StreamingDecoder]):
    """Base of the configs of decoders."""
