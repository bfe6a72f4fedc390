"""The first frame as one latent frame, once per rollout."""

import dataclasses
import functools

import jax

from fdjax.axes import Array, Params
from fdjax.contract.conditioner import ImageEncoder, ImageEncoderConfig
from fdjax_models.networks.wan_vae.vae import (
    LIGHTVAE_ENCODER,
    WanVaeEncoder,
    WanVaeEncoderConfig,
)


class FirstFrameEncoder(ImageEncoder):
    """A causal VAE's encoder over a video of one frame; its parameters are its own."""

    config: "FirstFrameEncoderConfig"
    architecture = WanVaeEncoder.architecture

    @functools.cached_property
    def vae(self) -> WanVaeEncoder:
        """The VAE's encoder."""
        return self.config.encoder.setup()

    @property
    def params_owner(self) -> WanVaeEncoder:
        """The VAE's encoder."""
        return self.vae

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters of the VAE's encoder."""
        return self.vae.init_params(key)

    def encode(self, params: Params, image: Array, /) -> Array:
        """Latents of first frames.

        Args:
            params: Weights.
            image: In [-1, 1], float[B, H', W', 3], or with views
                float[B, V, H', W', 3].

        Returns:
            Normalised, float32[B, 1, H, W, C] or float32[B, V, 1, H, W, C].
        """
        *batch, height, width, colours = image.shape
        # [B V, 1, H', W', 3]
        frames = image.reshape(-1, 1, height, width, colours)
        _, latent = _encode(self.vae, params, frames)
        return latent.reshape(*batch, *latent.shape[1:])


@functools.partial(jax.jit, static_argnums=0)
def _encode(vae: WanVaeEncoder, params: Params, video: Array) -> tuple[object, Array]:
    return vae.encode(params, vae.initialize_cache(params), video)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstFrameEncoderConfig(ImageEncoderConfig):
    """Config of `FirstFrameEncoder`."""

    _target: type = FirstFrameEncoder

    encoder: WanVaeEncoderConfig = LIGHTVAE_ENCODER
    """The VAE that the network's latents come from."""
