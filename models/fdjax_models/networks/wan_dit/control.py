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


@flax.struct.dataclass(kw_only=True)
class WanControl:
    """Everything that a Wan transformer can be steered by in one chunk.

    An encoder fills in what its network takes; a bare `ImageControl` stands for
    `WanControl(image=...)`.

    Attributes:
        image: The first frame, for image-to-video.
        rays: Camera rays, 8 x 8 pixels folded into channels, for a network with
            `control_dim`.  float[B, T, H, W, control_dim].
        token_features: Extra channels of every token, for a network with
            `token_feature_dim`.  float[B, L, token_feature_dim].
        vector_features: Added to the time embedding, for a network with
            `vector_feature_dim`: one vector per chunk, or one per frame.
            float[B, vector_feature_dim] or [B, T, vector_feature_dim].
    """

    image: ImageControl | None = None
    rays: Array | None = None
    token_features: Array | None = None
    vector_features: Array | None = None
