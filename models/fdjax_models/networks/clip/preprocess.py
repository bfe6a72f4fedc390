"""From a video frame to the image that CLIP sees."""

import jax
import jax.numpy as jnp
import numpy as np

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the channels of CLIP's training images, in [0, 1]; openai/CLIP, clip/clip.py."""


def crop_frame(image: jax.Array, size: int) -> jax.Array:
    """Resizes the short side to `size` and keeps the centre.

    Bicubic with antialiasing (a = -0.5), the long side rounded down, as
    `CLIPImageProcessor` of transformers does on tensors.

    Args:
        image: float32[B, H, W, 3], pixels.
        size: Side of the result.

    Returns:
        float32[B, size, size, 3].
    """
    batch, height, width, channels = image.shape
    short = min(height, width)
    # Multiplied before it is divided, so that the short side is `size` exactly.
    tall, wide = size * height // short, size * width // short
    if (tall, wide) != (height, width):
        image = jax.image.resize(
            image, (batch, tall, wide, channels), method="bicubic", antialias=True
        )
    top, left = (tall - size) // 2, (wide - size) // 2
    # [B, tall, wide, 3] -> [B, size, size, 3]
    return image[:, top : top + size, left : left + size]


def squash_frame(image: jax.Array, size: int) -> jax.Array:
    """Resizes both sides to `size`, whatever the aspect ratio, without antialiasing.

    Bicubic with a = -0.75 and repeated borders, torch's `interpolate` without
    `antialias`, as `CLIPModel.visual` of Wan 2.1's wan/modules/clip.py calls it.

    Args:
        image: float32[B, H, W, 3], pixels.
        size: Side of the result.

    Returns:
        float32[B, size, size, 3].
    """
    rows = _bicubic_matrix(image.shape[1], size)
    columns = _bicubic_matrix(image.shape[2], size)
    # Else a GPU multiplies in tf32, which keeps three digits.
    highest = jax.lax.Precision.HIGHEST
    # [size, H] and [B, H, W, 3] -> [B, size, W, 3] -> [B, size, size, 3]
    image = jnp.einsum("YH,BHWC->BYWC", rows, image, precision=highest)
    return jnp.einsum("XW,BYWC->BYXC", columns, image, precision=highest)


def _bicubic_matrix(length: int, size: int, a: float = -0.75) -> np.ndarray:
    """float32[size, length]: cubic convolution at the centres of the new pixels.

    Keys, "Cubic convolution interpolation for digital image processing", 1981, eq. 4
    for general a. The scale and the centres are rounded to float32, as in torch: 800
    pixels into an image that alone moves a value by 1e-4.
    """
    scale = np.float64(np.float32(length / size))
    # [size], in pixels of the old image, whose centres here are whole numbers
    centres = (scale * (np.arange(size) + 0.5) - 0.5).astype(np.float32)
    # The first of the four pixels from which a new one is mixed.
    first = np.floor(centres).astype(int) - 1
    matrix = np.zeros((size, length))
    for tap in range(4):
        t = np.abs(centres - (first + tap))
        # The kernel for |t| <= 1, and for 1 < |t| < 2.
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = a * (((t - 5) * t + 8) * t - 4)
        # Borders repeat: a pixel outside stands for the last one inside. `add.at`
        # rather than +=, which counts an index once that occurs several times.
        index = np.clip(first + tap, 0, length - 1)
        np.add.at(matrix, (np.arange(size), index), np.where(t <= 1, near, far))
    return matrix.astype(np.float32)


def normalize(image: jax.Array) -> jax.Array:
    """Brings [-1, 1] to zero mean and unit variance per channel: [..., 3] -> same."""
    return ((image + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(STD)
