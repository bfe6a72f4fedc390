"""The control encoder of image-to-video: the first frame as VAE latents, by chunks."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import EncoderConfig, StreamingEncoder
from fdjax_models.networks.wan_dit.control import ImageControl
from fdjax_models.networks.wan_vae.vae import (
    WAN21_VAE_ENCODER,
    WanVaeCache,
    WanVaeEncoder,
    WanVaeEncoderConfig,
)

ENCODED_CHUNKS = 5
"""Chunks that are encoded; later ones reuse the last of them.

NVIDIA/flashdreams, recipes/wan/autoencoder/i2v.py. An approximation: the encoder sees
113 video frames back, and five chunks of three latents end at frame 57.
"""


@flax.struct.dataclass(kw_only=True)
class ImageControlCache:
    """What the encoder carries from chunk to chunk.

    Attributes:
        vae: State of the VAE's encoder.
        image: The first frame, float[B, H', W', 3]; None after the first chunk.
        latent: Latent of the last chunk, float32[B, T, H, W, C]; None before it.
        num_chunks: Chunks that each session has seen, good for 2**32.  uint32[B].
    """

    vae: WanVaeCache
    image: Array | None
    latent: Array | None
    num_chunks: Array


class ImageControlEncoder(StreamingEncoder):
    """Encodes the first frame followed by zeros, as many as the video has frames.

    The mask is one on the first latent frame of the first chunk and zero elsewhere.
    After `ENCODED_CHUNKS` chunks the VAE does not run any more.
    """

    config: "ImageControlEncoderConfig"
    architecture = WanVaeEncoder.architecture

    @functools.cached_property
    def encoder(self) -> WanVaeEncoder:
        """The VAE's encoder; parameters are its own."""
        return self.config.encoder.setup()

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters of the VAE's encoder."""
        return self.encoder.init_params(key)

    @property
    def params_owner(self) -> WanVaeEncoder:
        """The VAE's encoder."""
        return self.encoder

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> ImageControlCache:
        """The state before the first chunk, for latents of `height` x `width`.

        Raises:
            ValueError: There is no first frame, or its size does not fit.
        """
        image, ratio = conditions.image, self.config.encoder.spatial_ratio
        if image is None:
            raise ValueError(
                "Image-to-video needs a first frame: give image=, float[B, H, W, 3]."
            )
        size = (height * ratio, width * ratio)
        if image.shape[1:] != (*size, 3):
            raise ValueError(
                f"The first frame must be [B, {size[0]}, {size[1]}, 3] for latents of "
                f"{height}x{width}, got {image.shape}; resize it."
            )
        return ImageControlCache(
            vae=self.encoder.initialize_cache(params),
            image=image,
            latent=None,
            num_chunks=jnp.zeros((len(image),), jnp.uint32),
        )

    def encode(
        self, params: Params, cache: ImageControlCache, input: PyTree
    ) -> tuple[ImageControlCache, ImageControl]:
        """The state after this chunk, and its control; there is no input."""
        del input
        if cache.image is not None:
            vae, latent = self._encode_image(params, cache.vae, cache.image)
            # [B, T, H, W, C], ones on latent frame 0
            mask = jnp.zeros_like(latent).at[:, 0].set(1)
        else:
            # Traced, so that one program serves every age; the VAE runs as long as any
            # session of the batch needs it.
            growing = cache.num_chunks < ENCODED_CHUNKS  # [B]
            vae, latent = jax.lax.cond(
                growing.any(),
                functools.partial(self._encode_zeros, params, growing),
                lambda vae, latent: (vae, latent),
                cache.vae,
                cache.latent,
            )
            mask = jnp.zeros_like(latent)
        # Without the image the tree is a later chunk's, and the memory is free.
        cache = ImageControlCache(
            vae=vae, image=None, latent=latent, num_chunks=cache.num_chunks + 1
        )
        return cache, ImageControl(latent=latent, mask=mask)

    def _encode_image(
        self, params: Params, vae: WanVaeCache, image: Array
    ) -> tuple[WanVaeCache, Array]:
        """Encodes the first frame and the zeros that fill up its chunk."""
        # The first latent frame is one video frame, each later one temporal_ratio.
        rest = self.config.encoder.temporal_ratio * (self.config.len_t - 1)
        pad = [(0, 0), (0, rest), (0, 0), (0, 0), (0, 0)]
        # [B, H', W', 3] -> [B, 1 + rest, H', W', 3]; zero is mid grey in [-1, 1]
        return self.encoder.encode(params, vae, jnp.pad(image[:, None], pad))

    def _encode_zeros(
        self, params: Params, growing: Array, vae: WanVaeCache, latent: Array
    ) -> tuple[WanVaeCache, Array]:
        """Encodes a later chunk, which holds zeros only; `latent` tells its size.

        Sessions that are not `growing` keep what they have, bool[B].
        """
        config = self.config.encoder
        batch, frames, height, width, _ = latent.shape
        time, space = config.temporal_ratio, config.spatial_ratio
        shape = (batch, frames * time, height * space, width * space, 3)
        new = self.encoder.encode(params, vae, jnp.zeros(shape, config.dtype))

        def choose(new: Array, old: Array) -> Array:
            # [B] -> [B, 1, ...], with as many axes as the leaf
            return jnp.where(growing.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, new, (vae, latent))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageControlEncoderConfig(EncoderConfig):
    """Control encoder of image-to-video."""

    _target: type = ImageControlEncoder

    encoder: WanVaeEncoderConfig = WAN21_VAE_ENCODER
    """The VAE that the network's latents come from."""

    len_t: int = 3
    """Latent frames in a chunk; must equal the transformer's."""

    def __post_init__(self) -> None:
        if self.len_t < 1:
            raise ValueError(f"len_t must be >= 1, got {self.len_t}.")
