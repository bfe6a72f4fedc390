"""The control that image-to-video encoders hand to the Wan transformer."""

import flax.struct

from fdjax.axes import Array


@flax.struct.dataclass(kw_only=True)
class ImageControl:
    """A chunk of image latents, and where they hold.

    Attributes:
        latent: Normalised latents of the first frame followed by grey frames.
            float32[B, T, H, W, C].
        mask: 1 where `latent` is the given frame, else 0: ones on latent frame 0 of
            the first chunk. All channels are equal.  float32[B, T, H, W, C].
    """

    latent: Array
    mask: Array
