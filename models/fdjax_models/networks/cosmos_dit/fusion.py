"""Published kernels as the network has them, and back.

A checkpoint is that of training. There a padding mask is joined to latent and mask as
the last channel: at inference it is zero, so that its rows of the patch embedding are
left out. And the head gives its features in the order (t, h, w, channel), though the
patch embedding reads (channel, t, h, w): its columns are put in that order, so that
flow and latent are alike (`update_parameters_after_loading_checkpoint` of
NVIDIA/flashdreams, recipes/cosmos/transformer/impl/network.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

_PATCH = (1, 2, 2)


class Kernels(NamedTuple):
    """The two kernels that are changed.

    Attributes:
        patch: Of the patch embedding.  [features in, M].
        head: Of the head's projection.  [M, features out].
    """

    patch: Any
    head: Any


def fuse(published: Kernels, patch_size: Sequence[int] = _PATCH) -> Kernels:
    """The kernels without the padding mask, the head's columns channel first.

    Args:
        published: [(C + 2) * volume, M] and [M, volume * C] in the order (t, h, w,
            channel).
        patch_size: Latent frames, rows and columns of a token.

    Returns:
        [(C + 1) * volume, M] and [M, C * volume] in the order (channel, t, h, w).
    """
    frames, rows, columns = patch_size
    volume = frames * rows * columns
    width, features = published.head.shape
    # [M, t h w C] -> [M, t, h, w, C] -> [M, C, t, h, w] -> [M, C t h w]
    head = published.head.reshape(width, frames, rows, columns, -1)
    head = head.transpose(0, 4, 1, 2, 3).reshape(width, features)
    return Kernels(published.patch[: len(published.patch) - volume], head)


def unfuse(fused: Kernels, patch_size: Sequence[int] = _PATCH) -> Kernels:
    """The inverse of `fuse`, with zeros for what the padding mask was multiplied by.

    Those weights are not kept: as long as the mask is zero they make no difference.
    """
    frames, rows, columns = patch_size
    volume = frames * rows * columns
    width, features = fused.head.shape
    # [M, C t h w] -> [M, C, t, h, w] -> [M, t, h, w, C] -> [M, t h w C]
    head = fused.head.reshape(width, -1, frames, rows, columns)
    head = head.transpose(0, 2, 3, 4, 1).reshape(width, features)
    patch = fused.patch
    numpy = patch.__array_namespace__()  # numpy's functions, or JAX's
    padding = numpy.zeros((volume, patch.shape[1]), dtype=patch.dtype)
    return Kernels(numpy.concat([patch, padding]), head)
