"""What every HD-map encoder asks of a chunk of video."""

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Array, PyTree

FRAMES_PER_LATENT = 4
PIXELS_PER_LATENT = 8


@flax.struct.dataclass(kw_only=True)
class HdMapCache:
    """What an HD-map encoder carries from chunk to chunk.

    Attributes:
        state: Of the encoder, arrays with B first (and V, where there are views); None
            before the first chunk.
        size: Height and width of the latents.
    """

    state: PyTree = None
    size: tuple[int, int] = flax.struct.field(pytree_node=False)


def num_frames(num_latents: int, *, first: bool) -> int:
    """Video frames of a chunk: 1 + 4 (T - 1) in the first one, else 4 T."""
    return FRAMES_PER_LATENT * num_latents - (FRAMES_PER_LATENT - 1) * first


def check_chunk(video: PyTree, cache: HdMapCache) -> Array:
    """A chunk of HD-map video as an array.

    Args:
        video: In [-1, 1], float[B, T', H', W', 3] or float[B, V, T', H', W', 3].
        cache: Of the stream.

    Raises:
        ValueError: It is missing, no video, of another size, or of a length that
            gives no whole latents.
    """
    if video is None:
        raise ValueError(
            "The HD map of this chunk is missing: give generate() its video, "
            "float[B, T, H, W, 3] in [-1, 1]."
        )
    if not isinstance(video, jax.Array):
        video = jnp.asarray(video)
    shape = video.shape
    if len(shape) not in (5, 6) or shape[-1] != 3:
        raise ValueError(
            "The HD map of a chunk must be video, [B, T, H, W, 3], or with views "
            f"[B, V, T, H, W, 3]; got shape {shape}."
        )
    if not jnp.issubdtype(video.dtype, jnp.floating):
        raise ValueError(
            f"The HD map must be floating point in [-1, 1], got {video.dtype}; bytes "
            "from 0 to 255 become map / 127.5 - 1."
        )
    wanted = tuple(PIXELS_PER_LATENT * side for side in cache.size)
    if shape[-3:-1] != wanted:
        raise ValueError(
            f"The HD map must be {wanted[0]} x {wanted[1]} pixels as the video, got "
            f"{shape[-3]} x {shape[-2]}; resize it."
        )
    first, frames = cache.state is None, shape[-4]
    if frames < 1 or (frames - first) % FRAMES_PER_LATENT:
        rule = "1 + 4 k frames in the first chunk" if first else "4 k frames"
        raise ValueError(f"The HD map must have {rule}, got {frames}.")
    return video
