"""CLIP's image tower as a component: first frames in, patch embeddings out."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params
from fdjax.config import DTypeName
from fdjax.contract.conditioner import ImageEncoder, ImageEncoderConfig
from fdjax.nn.random_params import random_params
from fdjax_models.networks.clip.model import VisionTransformer
from fdjax_models.networks.clip.preprocess import crop_frame, normalize, squash_frame

_PREPROCESSING = {"crop": crop_frame, "squash": squash_frame}


class ClipImageEncoder(ImageEncoder):
    """CLIP ViT: the hidden state that Wan's image cross-attention reads."""

    architecture: ClassVar[str] = "clip"
    weight_fields: ClassVar[tuple[str, ...]] = ("num_heads", "epsilon")
    config: "ClipImageEncoderConfig"

    @functools.cached_property
    def module(self) -> VisionTransformer:
        """The network."""
        config = self.config
        return VisionTransformer(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.width,
            mlp_dim=config.mlp_dim,
            num_layers=config.num_layers,
            output_layer=config.output_layer,
            num_heads=config.num_heads,
            epsilon=config.epsilon,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.dtype),
        )

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters in the config's dtype."""
        size = self.config.image_size
        image = jnp.zeros((1, size, size, 3))
        shapes = jax.eval_shape(self.module.init, key, image)["params"]
        return random_params(shapes, key)

    @functools.partial(jax.jit, static_argnums=0)
    def preprocess(self, image: jax.Array) -> Array:
        """The frame as the network sees it.

        Args:
            image: In [-1, 1]. float[B, H, W, 3], pixels of any size.

        Returns:
            Normalised. float32[B, image_size, image_size, 3].
        """
        resize = _PREPROCESSING[self.config.preprocessing]
        return normalize(resize(image.astype(jnp.float32), self.config.image_size))

    @functools.partial(jax.jit, static_argnums=0)
    def encode(self, params: Params, image: jax.Array) -> Array:
        """Embeddings of first frames.

        Args:
            params: Weights.
            image: In [-1, 1]. float[B, H, W, 3], pixels of any size.

        Returns:
            The class token, then patches row by row: dtype[B, P, width].
        """
        # [B, H, W, 3] -> [B, image_size, image_size, 3] -> [B, P, width]
        rows: Any = self.module.apply({"params": params}, self.preprocess(image))
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipImageEncoderConfig(ImageEncoderConfig):
    """CLIP ViT-H/14, as Wan 2.1 I2V uses it."""

    _target: type = ClipImageEncoder

    checkpoint_path: str | None = None
    """Where the weights are; None for random ones."""

    preprocessing: Literal["crop", "squash"] = "crop"
    """How a frame becomes a square.

    "crop": short side to `image_size` with antialiasing, then the centre, as the
    reference and diffusers do. "squash": both sides, without antialiasing, as the
    official Wan code does."""

    image_size: int = 224
    """Side of the square that the network sees, in pixels."""

    patch_size: int = 14
    """Side of a patch, in pixels."""

    width: int = 1280
    """Model width."""

    mlp_dim: int = 5120
    """Width inside the MLP."""

    num_layers: int = 32
    """Blocks of the published tower."""

    output_layer: int = 31
    """Number of blocks that run; Wan reads the last hidden state but one."""

    num_heads: int = 16
    """Attention heads."""

    epsilon: float = 1e-5
    """Added to the variance in the norms."""

    dtype: DTypeName = "bfloat16"
    """Type of weights and activations; softmax and norm statistics use float32."""

    def __post_init__(self) -> None:
        if self.preprocessing not in _PREPROCESSING:
            raise ValueError(
                f"preprocessing must be one of {sorted(_PREPROCESSING)}, got "
                f"{self.preprocessing!r}."
            )
        # The patch convolution would drop a rest without a word.
        if self.image_size % self.patch_size or self.width % self.num_heads:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of "
                f"patch_size={self.patch_size}, and width={self.width} of "
                f"num_heads={self.num_heads}."
            )
        if not 1 <= self.output_layer <= self.num_layers:
            raise ValueError(
                f"output_layer must lie in [1, {self.num_layers}], got "
                f"{self.output_layer}."
            )
