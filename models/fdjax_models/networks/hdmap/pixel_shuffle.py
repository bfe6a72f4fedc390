"""HD-map video by its pixels: some frames, 8 x 8 pixels folded into channels."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import EncoderConfig, StreamingEncoder
from fdjax_models.networks.hdmap.video import (
    FRAMES_PER_LATENT,
    PIXELS_PER_LATENT,
    HdMapCache,
    check_chunk,
)

NUM_CHANNELS = 3 * PIXELS_PER_LATENT**2


class PixelShuffleEncoder(StreamingEncoder):
    """Keeps one frame of those that a latent spans; it has no parameters.

    NVIDIA/flashdreams, integrations_v2/omnidreams/impl/encoder/pixel_shuffle.py.
    """

    config: "PixelShuffleEncoderConfig"

    def init_params(self, key: jax.Array) -> Params:
        """No parameters."""
        del key
        return {}

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> HdMapCache:
        """The state before the first chunk, for latents of `height` x `width`."""
        del params, conditions
        return HdMapCache(size=(height, width))

    def encode(
        self, params: Params, cache: HdMapCache, input: PyTree
    ) -> tuple[HdMapCache, Array]:
        """The state after this chunk, and its folded frames.

        Args:
            params: None.
            cache: From `initialize_cache`, or from the call before.
            input: As `HdMapVaeEncoder.encode` takes it.

        Returns:
            The new state, and float[B, T, H, W, 192] or float[B, V, T, H, W, 192];
            channels by colour, row and column.

        Raises:
            ValueError: See `check_chunk`.
        """
        del params
        video = check_chunk(input, cache)
        kept = self._kept(video.shape[-4], first=cache.state is None)
        frames = jnp.take(video, jnp.array(kept), axis=-4)
        # Its being there marks a later chunk; nothing has to be remembered.
        state = jnp.zeros((len(video),), jnp.int32)
        return HdMapCache(state=state, size=cache.size), fold(frames)

    def _kept(self, num_frames: int, *, first: bool) -> list[int]:
        """Frames of a chunk that are kept, one per latent."""
        # The first frame of a stream is a latent of its own.
        begin = 1 if first else 0
        if self.config.frame_selection_mode == "last_frame":
            begin += FRAMES_PER_LATENT - 1
        own = [0] if first else []
        return own + list(range(begin, num_frames, FRAMES_PER_LATENT))


def fold(video: Array) -> Array:
    """Folds 8 x 8 pixels into channels.

    Args:
        video: float[..., H', W', 3].

    Returns:
        float[..., H' / 8, W' / 8, 192]; channels by colour, row and column.
    """
    side = PIXELS_PER_LATENT
    *batch, height, width, colours = video.shape
    # [..., H, 8, W, 8, 3]
    blocks = video.reshape(*batch, height // side, side, width // side, side, colours)
    # [..., H, W, 3, 8, 8]
    blocks = jnp.moveaxis(blocks, (-4, -2, -1), (-2, -1, -3))
    return blocks.reshape(*batch, height // side, width // side, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelShuffleEncoderConfig(EncoderConfig):
    """Config of `PixelShuffleEncoder`."""

    _target: type = PixelShuffleEncoder

    frame_selection_mode: Literal["last_frame", "first_frame"] = "last_frame"
    """Which of the four frames of a latent is kept."""
