"""Makes the `flashdreams` 0.1.0 package run on a CPU in float32.

Import this module before any module of `flashdreams`. It replaces the two things that
need a GPU: the Triton kernel that rotates queries and keys (and its import), and the
cuDNN and flash attention entry points. Compilation and CUDA graphs are switched off in
the configs: see `EAGER`.
"""

import contextlib
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from unittest import mock

import numpy as np
import torch

EAGER = {"compile_network": False, "use_cuda_graph": False, "dtype": torch.float32}
"""Config fields of every network and autoencoder that runs here."""


def _rotate(
    x: torch.Tensor,
    freqs: torch.Tensor,
    *,
    interleaved: bool = False,
    inplace: bool = True,
    **_,
) -> torch.Tensor:
    """Stands in for `rope_kernel.apply_rotary_pos_emb`.  [B, S, H, D], [S, 1, 1, D]."""
    angles = freqs[:, 0, 0].float()[None, :, None]
    if interleaved:
        first, second = x[..., 0::2].float(), x[..., 1::2].float()
        angles = angles[..., 0::2]
    else:
        first, second = x.float().chunk(2, dim=-1)
        angles = angles[..., : x.shape[-1] // 2]
    cos, sin = angles.cos(), angles.sin()
    parts = (first * cos - second * sin, second * cos + first * sin)
    rotated = (
        torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, -1)
    )
    return x.copy_(rotated.to(x.dtype)) if inplace else rotated.to(x.dtype)


def _attend(query, key, value, return_lse=False):
    """Stands in for the attention entry points: softmax attention, [B, H, S, D]."""
    del return_lse
    return torch.nn.functional.scaled_dot_product_attention(query, key, value), None


def _install() -> None:
    kernel = types.ModuleType("flashdreams.core.attention.rope_kernel")
    kernel.apply_rotary_pos_emb = _rotate
    sys.modules[kernel.__name__] = kernel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flashdreams.core.attention import cp
    cp.torch_sdpa_cudnn = cp.torch_sdpa_flash = _attend


_install()


@contextlib.contextmanager
def draws(arrays: Iterable[np.ndarray]) -> Iterator[None]:
    """Within it, the package's random draws are `arrays`, in order.

    Raises:
        AssertionError: A draw has another shape, or there are too many or too few.
    """
    queue = iter(arrays)

    def draw(shape: Iterable[int]) -> torch.Tensor:
        array = next(queue, None)
        assert array is not None, f"an unexpected draw of shape {tuple(shape)}"
        assert array.shape == tuple(shape), (array.shape, tuple(shape))
        return torch.from_numpy(np.array(array, np.float32))

    with (
        mock.patch("torch.randn", lambda shape, **_: draw(shape)),
        mock.patch.object(
            torch.Tensor, "normal_", lambda x, **_: x.copy_(draw(x.shape))
        ),
    ):
        yield
    assert next(queue, None) is None, "fewer draws than expected"
