"""The control encoder of image-to-video: the first frame's latent, in its place."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import EncoderConfig, StreamingEncoder
from fdjax_models.networks.wan_dit.control import ImageControl


@flax.struct.dataclass(kw_only=True)
class FirstFrameCache:
    """What the encoder carries from chunk to chunk.

    Attributes:
        image: Latent of the first frame, float32[B, 1, H, W, C].
        is_first: Whether a session's next chunk is its first.  bool[B].
    """

    image: Array
    is_first: Array


class FirstFrameControlEncoder(StreamingEncoder):
    """Puts the first frame's latent into latent frame 0 of the first chunk.

    It owns no weights: the conditioner's image encoder has made the latent.
    """

    config: "FirstFrameControlEncoderConfig"

    def init_params(self, key: jax.Array) -> Params:
        """No parameters."""
        del key
        return {}

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> FirstFrameCache:
        """The state before the first chunk, for latents of `height` x `width`.

        Args:
            params: None.
            conditions: `image_embedding` holds the first frame's latent,
                float[B, 1, H, W, C].
            height: Latent rows.
            width: Latent columns.

        Raises:
            ValueError: There is no first frame, or its size does not fit.
        """
        del params
        image, shape = conditions.image_embedding, (1, height, width)
        channels = self.config.latent_channels
        if image is None or image.ndim != 5 or image.shape[1:] != (*shape, channels):
            raise ValueError(
                "Image-to-video starts from a first frame: conditions.image_embedding "
                f"must be (B, {', '.join(map(str, (*shape, channels)))}), got "
                f"{None if image is None else image.shape}; encode an image of the "
                "video's size."
            )
        is_first = jnp.ones((len(image),), bool)
        return FirstFrameCache(image=image.astype(jnp.float32), is_first=is_first)

    def encode(
        self, params: Params, cache: FirstFrameCache, input: PyTree
    ) -> tuple[FirstFrameCache, ImageControl]:
        """The state after this chunk, and its control; there is no input."""
        del params, input
        # Traced, so that one program serves every age.  [B] -> [B, 1, 1, 1, 1]
        here = cache.is_first.astype(jnp.float32)[:, None, None, None, None]
        rest = [(0, 0), (0, self.config.len_t - 1), (0, 0), (0, 0), (0, 0)]
        # [B, 1, H, W, C] -> [B, T, H, W, C], zeros behind the first
        latent = jnp.pad(cache.image * here, rest)
        mask = jnp.pad(jnp.ones_like(cache.image) * here, rest)
        later = jnp.zeros_like(cache.is_first)
        cache = FirstFrameCache(image=cache.image, is_first=later)
        return cache, ImageControl(latent=latent, mask=mask)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstFrameControlEncoderConfig(EncoderConfig):
    """Config of `FirstFrameControlEncoder`."""

    _target: type = FirstFrameControlEncoder

    len_t: int = 24
    """Latent frames in a chunk; must equal the transformer's."""

    latent_channels: int = 16
    """Channels of the video's latents."""

    def __post_init__(self) -> None:
        for name in ("len_t", "latent_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
