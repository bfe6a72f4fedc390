"""The control encoder of maze-world: keys held, and the start image."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import EncoderConfig, StreamingEncoder
from fdjax_models.methods.maze_world.controls import FRAMES_PER_CHUNK
from fdjax_models.networks.taehv.encoder import TaehvEncoder, TaehvEncoderConfig
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl

# Two numbers a frame, and the mark of the first chunk.
NUM_FEATURES = 2 * FRAMES_PER_CHUNK + 1


def control_features(controls: Array, is_first: Array) -> Array:
    """Flattens the keys held in each frame of a chunk, and marks the first chunk.

    Args:
        controls: (forward, turn left) per frame.  float32[..., 4, 2].
        is_first: Whether the chunk is the first of its stream.  bool[...], broadcast.

    Returns:
        float32[..., NUM_FEATURES].
    """
    # [..., 4, 2] -> [..., 8]
    flat = controls.reshape(*controls.shape[:-2], -1).astype(jnp.float32)
    first = jnp.broadcast_to(is_first, flat.shape[:-1]).astype(jnp.float32)
    # [..., 8] and [..., 1] -> [..., 9]
    return jnp.concatenate([flat, first[..., None]], axis=-1)


@flax.struct.dataclass(kw_only=True)
class MazeEncoderCache:
    """What the encoder carries from chunk to chunk.

    Attributes:
        image_latent: The start image as a latent frame; zeros without an image.
            float32[B, 1, H, W, C].
        has_image: 1 if there is a start image, else 0.  float32[B].
        index: Chunks encoded so far.  int32[B].
    """

    image_latent: Array
    has_image: Array
    index: Array


class MazeEncoder(StreamingEncoder):
    """Turns the keys held in each chunk into features of the time embedding.

    The start image is encoded once, when the rollout begins, and stamped onto the
    first chunk; the features of later chunks differ only in numbers, so that the
    network is compiled once. The parameters are those of the image encoder, a TAEHV.
    """

    config: "MazeEncoderConfig"
    architecture = "taehv_encoder"

    @functools.cached_property
    def image_encoder(self) -> TaehvEncoder:
        """Encodes the start image."""
        return self.config.image_encoder.setup()

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters of the image encoder."""
        return self.image_encoder.init_params(key)

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> MazeEncoderCache:
        """Encodes the start image, if there is one.

        Args:
            params: Weights.
            conditions: `image` is used.
            height: Latent rows.
            width: Latent columns.
        """
        batch, image = conditions.batch_size, conditions.image
        channels = self.config.image_encoder.latent_channels
        latent = jnp.zeros((batch, 1, height, width, channels))
        if image is not None:
            encoder = self.image_encoder
            cache = encoder.initialize_cache(params, batch, height, width)
            # One frame, which a causal encoder makes one latent frame of:
            # [B, H', W', 3] -> [B, 1, H', W', 3] -> [B, 1, H, W, C]
            _, latent = encoder.encode(params, cache, image[:, None])
        return MazeEncoderCache(
            image_latent=latent,
            has_image=jnp.full((batch,), image is not None, jnp.float32),
            index=jnp.zeros((batch,), jnp.int32),
        )

    def encode(
        self, params: Params, cache: MazeEncoderCache, input: Array | None
    ) -> tuple[MazeEncoderCache, WanControl]:
        """The state after this chunk, and its control.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            input: (forward, turn left) of each frame, in [-1, 1]; ignored in the first
                chunk, which is the start image. None: no key.  float[B, 4, 2] or
                float[4, 2].

        Raises:
            ValueError: The input has another shape.
        """
        del params
        batch = len(cache.image_latent)
        shape = (batch, FRAMES_PER_CHUNK, 2)
        controls = jnp.zeros(shape) if input is None else jnp.asarray(input)
        if controls.shape not in (shape, shape[1:]):
            raise ValueError(
                f"The controls of a chunk must have shape {shape} or {shape[1:]}, "
                f"(forward, turn left) for each frame, got {controls.shape}."
            )
        is_first = cache.index == 0  # [B]
        # [4, 2] or [B, 4, 2] -> [B, 4, 2]; sessions at their start hold no key.
        controls = jnp.broadcast_to(controls, shape)
        controls = jnp.where(is_first[:, None, None], 0.0, controls)
        # [B] -> [B, 1, 1, 1, 1] -> [B, 1, H, W, C]
        mask = jnp.where(is_first, cache.has_image, 0.0)[:, None, None, None, None]
        control = WanControl(
            image=ImageControl(
                latent=cache.image_latent,
                mask=jnp.broadcast_to(mask, cache.image_latent.shape),
            ),
            vector_features=control_features(controls, is_first),
        )
        return dataclasses.replace(cache, index=cache.index + 1), control


@dataclasses.dataclass(frozen=True, kw_only=True)
class MazeEncoderConfig(EncoderConfig):
    """Config of `MazeEncoder`."""

    _target: type = MazeEncoder

    image_encoder: TaehvEncoderConfig
    """Encoder of the start image."""

    checkpoint_path: str | None = None
    """Weights of the image encoder."""
