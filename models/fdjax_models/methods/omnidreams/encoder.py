"""What the network is steered by in a chunk: the HD map, and once the first frame."""

import dataclasses

import flax.struct
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import EncoderConfig
from fdjax_models.networks.cosmos_dit.control import CosmosControl
from fdjax_models.networks.hdmap.wrapper import HdmapWrapper
from fdjax_models.networks.wan_dit.control import ImageControl


@flax.struct.dataclass(kw_only=True)
class MapCache:
    """What the encoder carries from chunk to chunk.

    Attributes:
        hdmap: State of the HD-map encoder.
        image: Latents of the first frames, float32[B, 1, H, V W, C]; None after the
            first chunk.
    """

    hdmap: PyTree
    image: Array | None


class MapEncoder(HdmapWrapper):
    """Encodes HD-map video, and gives the first frame with the first chunk.

    Views lie side by side in the width, as the transformer has them. The parameters
    are those of the HD-map encoder.
    """

    config: "MapEncoderConfig"

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> MapCache:
        """The state before the first chunk, for latents of `height` x `width`.

        Args:
            params: Weights.
            conditions: `image_embedding` holds the first frames' latents,
                float[B, V, 1, H, W, C].
            height: Latent rows.
            width: Latent columns of all views.

        Raises:
            ValueError: There is no first frame, or its size does not fit.
        """
        views, image = self.config.num_views, conditions.image_embedding
        shape = (views, 1, height, width // views)
        if width % views:
            raise ValueError(
                f"{views} views side by side need as many latent columns each, got "
                f"{width} in all."
            )
        if image is None or image.ndim != 6 or image.shape[1:-1] != shape:
            raise ValueError(
                "A driving world starts from first frames: conditions.image_embedding "
                f"must be (B, {', '.join(map(str, shape))}, C), got "
                f"{None if image is None else image.shape}; encode images of the "
                "video's size."
            )
        hdmap = self.hdmap.initialize_cache(params, conditions, *shape[2:])
        return MapCache(hdmap=hdmap, image=side_by_side(image.astype(jnp.float32)))

    def encode(
        self, params: Params, cache: MapCache, input: PyTree
    ) -> tuple[MapCache, CosmosControl]:
        """The state after this chunk, and its control.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            input: The map, in [-1, 1]: float[B, V, T', H', W', 3], of one view also
                float[B, T', H', W', 3]; T' is 1 + 4 (T - 1) in the first chunk, then
                4 T.

        Raises:
            ValueError: It is missing or does not fit.
        """
        if input is not None and jnp.ndim(input) == 5:
            input = input[:, None]
        views = self.config.num_views
        if input is not None and jnp.ndim(input) == 6 and input.shape[1] != views:
            raise ValueError(
                f"The HD map must have {views} views, [B, {views}, T, H, W, 3], got "
                f"shape {input.shape}."
            )
        hdmap, latent = self.hdmap.encode(params, cache.hdmap, input)
        # [B, V, T, H, W, C] -> [B, T, H, V W, C]
        latent = side_by_side(latent)
        control = CosmosControl(image=self._image(cache, latent), hdmap=latent)
        return MapCache(hdmap=hdmap, image=None), control

    def _image(self, cache: MapCache, latent: Array) -> ImageControl:
        """The first frame in latent frame 0 of the first chunk, and nowhere else."""
        batch, length, height, width, _ = latent.shape
        mask = jnp.zeros((batch, length, height, width, 1))
        given = jnp.zeros((*mask.shape[:-1], self.config.latent_channels))
        if cache.image is not None:
            mask, given = mask.at[:, 0].set(1), given.at[:, :1].set(cache.image)
        return ImageControl(latent=given, mask=mask)


def side_by_side(latent: Array) -> Array:
    """Views next to each other: [B, V, T, H, W, C] to [B, T, H, V W, C]."""
    batch, views, length, height, width, channels = latent.shape
    # [B, T, H, V, W, C]
    latent = jnp.moveaxis(latent, 1, 3)
    return latent.reshape(batch, length, height, views * width, channels)


def apart(latent: Array, num_views: int) -> Array:
    """The inverse of `side_by_side`: [B, T, H, V W, C] to [B, V, T, H, W, C]."""
    batch, length, height, width, channels = latent.shape
    shape = (batch, length, height, num_views, width // num_views, channels)
    return jnp.moveaxis(latent.reshape(shape), 3, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapEncoderConfig(EncoderConfig):
    """Config of `MapEncoder`."""

    _target: type = MapEncoder

    hdmap: EncoderConfig
    """Encodes the map."""

    num_views: int = 1
    """Views V."""

    latent_channels: int = 16
    """Channels of the video's latents."""

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ValueError(f"num_views must be >= 1, got {self.num_views}.")
