"""Latents to tokens and back; views that lie side by side."""

from collections.abc import Sequence

from fdjax.axes import Array


def patchify(latent: Array, patch: Sequence[int]) -> Array:
    """One token per patch, tokens in the order (frame, row, column).

    Args:
        latent: [B, T, H, W, C].
        patch: Frames, rows and columns of a patch; they divide T, H and W.

    Returns:
        [B, L, C * patch volume], features in the order (channel, t, h, w).
    """
    batch, *sizes, channels = latent.shape
    grid = [size // part for size, part in zip(sizes, patch, strict=True)]
    split = [size for pair in zip(grid, patch, strict=True) for size in pair]
    # Channel first, as a convolution's weight [out, in, t, h, w] is flattened.
    # [B, T', H', W', C, t, h, w]
    x = latent.reshape(batch, *split, channels).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    # [B, T' H' W', C t h w]
    return x.reshape(batch, grid[0] * grid[1] * grid[2], -1)


def unpatchify(tokens: Array, sizes: Sequence[int], patch: Sequence[int]) -> Array:
    """The inverse of `patchify`.

    Args:
        tokens: [B, L, C * patch volume].
        sizes: T, H and W of the latent.
        patch: As in `patchify`.

    Returns:
        [B, T, H, W, C].
    """
    grid = [size // part for size, part in zip(sizes, patch, strict=True)]
    # [B, L, C t h w] -> [B, T', H', W', C, t, h, w]
    x = tokens.reshape(len(tokens), *grid, -1, *patch)
    # [B, T', t, H', h, W', w, C]
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    # [B, T, H, W, C]
    return x.reshape(len(tokens), *sizes, -1)


def split_views(tokens: Array, num_views: int, columns: int) -> Array:
    """Tokens of views that lie side by side, view by view.

    Args:
        tokens: In the order (frame, row, view, column).  [B, V L, ...].
        num_views: V.
        columns: Tokens of a row of one view.

    Returns:
        In the order (frame, row, column).  [B, V, L, ...].
    """
    batch, _, *rest = tokens.shape
    # [B, T' H', V, W', ...] -> [B, V, T' H', W', ...]
    x = tokens.reshape(batch, -1, num_views, columns, *rest).swapaxes(1, 2)
    return x.reshape(batch, num_views, -1, *rest)


def join_views(tokens: Array, columns: int) -> Array:
    """The inverse of `split_views`: [B, V, L, ...] to [B, V L, ...]."""
    batch, views, _, *rest = tokens.shape
    # [B, V, T' H', W', ...] -> [B, T' H', V, W', ...]
    x = tokens.reshape(batch, views, -1, columns, *rest).swapaxes(1, 2)
    return x.reshape(batch, -1, *rest)
