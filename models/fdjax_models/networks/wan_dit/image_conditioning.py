"""Ways in which a Wan network is given the first frame; a network may use several."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp

from fdjax.axes import Array
from fdjax.streaming.patches import patchify
from fdjax_models.networks.wan_dit.control import ImageControl
from fdjax_models.networks.wan_dit.time_embedding import TokenTimesteps

MASK_CHANNELS = 4
"""Of the I2V network's input: one per video frame of a latent frame."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConditioning:
    """One way; the base does nothing."""

    needs_image: ClassVar[bool] = True

    def extra_channels(self, channels: int) -> int:
        """Channels that it adds to the network's input, for a latent of `channels`."""
        del channels
        return 0

    def latent(self, latent: Array, image: ImageControl, patch: Sequence[int]) -> Array:
        """The network's input.

        Args:
            latent: Patchified.  float32[B, L, C * patch volume].
            image: Latent and mask.
            patch: The patch size.
        """
        del image, patch
        return latent

    def timestep(
        self, timestep: Array, image: ImageControl, first: Array, patch: Sequence[int]
    ) -> TokenTimesteps | None:
        """Timesteps that differ from token to token; None: the scheduler's holds.

        Args:
            timestep: float32[] or [B].
            image: Latent and mask.
            first: Which sessions are at their first chunk.  bool[B].
            patch: The patch size.
        """
        del timestep, image, first, patch
        return None

    def result(self, latent: Array, image: ImageControl, patch: Sequence[int]) -> Array:
        """The clean latent as it is kept; arguments as in `latent`."""
        del image, patch
        return latent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stamp(ImageConditioning):
    """The given frame's latent replaces the noisy one at every step, and the result."""

    def latent(self, latent: Array, image: ImageControl, patch: Sequence[int]) -> Array:
        """The given latent where the mask is 1."""
        # [B, L, C * patch volume] each
        given, mask = _tokens(image, patch)
        return latent * (1 - mask) + given * mask

    def result(self, latent: Array, image: ImageControl, patch: Sequence[int]) -> Array:
        """As `latent`."""
        # The sampler's own latent is not stamped between steps, so its last one is.
        return self.latent(latent, image, patch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concatenate(ImageConditioning):
    """4 mask channels and the given latent are appended to the network's input."""

    def extra_channels(self, channels: int) -> int:
        """The mask's, and those of the latent."""
        return MASK_CHANNELS + channels

    def latent(self, latent: Array, image: ImageControl, patch: Sequence[int]) -> Array:
        """float32[B, L, (2 C + 4) * patch volume]."""
        given, mask = _tokens(image, patch)
        # Patch positions of a channel. Features are ordered (channel, t, h, w), so that
        # the first 4 * volume of them are four channels of the mask, all of them equal.
        volume = given.shape[-1] // image.latent.shape[-1]
        # [B, L, (C + 4 + C) * patch volume]
        return jnp.concatenate(
            [latent, mask[..., : MASK_CHANNELS * volume], given], axis=-1
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstFrameTimestep(ImageConditioning):
    """The given frame's tokens have a timestep of their own in the first chunk.

    Wan 2.2 TI2V: those tokens are clean.
    """

    needs_image: ClassVar[bool] = False

    value: float = 0.0
    """That timestep, in [0, 1000]."""

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1000:
            raise ValueError(
                f"FirstFrameTimestep.value must be in [0, 1000], got {self.value}."
            )

    def timestep(
        self, timestep: Array, image: ImageControl, first: Array, patch: Sequence[int]
    ) -> TokenTimesteps:
        """`value` where the mask is 1 and the session at its start."""
        # [B, L]: one feature tells, as a token is given whole, in all channels
        given = _tokens(image, patch)[1][..., 0] > 0.5
        # [] or [B] -> [B]
        timestep = jnp.broadcast_to(timestep, first.shape)
        return TokenTimesteps(
            # [B, 2]: the time embedding has two rows, not one for each token.
            values=jnp.stack([timestep, jnp.full_like(timestep, self.value)], axis=1),
            second=given & first[:, None],
        )


def _tokens(image: ImageControl, patch: Sequence[int]) -> tuple[Array, Array]:
    """Patchified latent and mask, float32[B, L, C * patch volume]."""
    latent = image.latent.astype(jnp.float32)
    mask = jnp.broadcast_to(image.mask.astype(jnp.float32), latent.shape)
    # [B, T, H, W, C] -> [B, L, C * patch volume]
    return patchify(latent, patch), patchify(mask, patch)
