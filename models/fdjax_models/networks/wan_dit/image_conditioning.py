"""The three ways in which a Wan network is given the first frame."""

from collections.abc import Sequence

import jax.numpy as jnp

from fdjax.axes import Array
from fdjax.streaming.patches import patchify
from fdjax_models.networks.wan_dit.control import ImageControl

MASK_CHANNELS = 4
"""Of the I2V network's input: one per video frame of a latent frame."""


def stamp(latent: Array, image: ImageControl, patch: Sequence[int]) -> Array:
    """Puts the given frame's latent where the mask is 1.

    Args:
        latent: Patchified.  float32[B, L, C * patch volume].
        image: Latent and mask.
        patch: The patch size.
    """
    given, mask = _tokens(image, patch)
    return latent * (1 - mask) + given * mask


def concatenate(latent: Array, image: ImageControl, patch: Sequence[int]) -> Array:
    """Appends 4 mask channels and the image latent to the channels.

    Args:
        latent: As in `stamp`.
        image: As in `stamp`.
        patch: As in `stamp`.

    Returns:
        float32[B, L, (2 C + 4) * patch volume].
    """
    given, mask = _tokens(image, patch)
    volume = latent.shape[-1] // image.latent.shape[-1]
    return jnp.concatenate([latent, mask[..., : MASK_CHANNELS * volume], given], -1)


def per_token_timestep(
    timestep: Array, image: ImageControl, value: float, patch: Sequence[int]
) -> Array:
    """A timestep for every token: `value` where the mask is 1.

    Wan 2.2 TI2V: the tokens of the given frame are clean.

    Args:
        timestep: float32[] or [B].
        image: As in `stamp`.
        value: In [0, 1000].
        patch: As in `stamp`.

    Returns:
        float32[B, L].
    """
    mask = _tokens(image, patch)[1][..., 0]
    timestep = timestep[:, None] if timestep.ndim else timestep
    return timestep * (1 - mask) + value * mask


def _tokens(image: ImageControl, patch: Sequence[int]) -> tuple[Array, Array]:
    """Patchified latent and mask, float32[B, L, C * patch volume]."""
    latent = image.latent.astype(jnp.float32)
    mask = jnp.broadcast_to(image.mask.astype(jnp.float32), latent.shape)
    return patchify(latent, patch), patchify(mask, patch)
