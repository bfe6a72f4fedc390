"""The axis letters, and the array types that docstrings name by them.

Every einsum, shape comment and docstring of fdjax obeys this legend.

  B      batch: sessions or prompts
  T      latent frames of one chunk (video frames where the text says so)
  H, W   latent rows and columns (pixels where the text says so)
  C      channels
  L      query tokens: T * H * W after patching
  S      key/value tokens that a cache has room for
  N      attention heads
  D      head width
  M      model width
  F      MLP width
  P      prompt tokens
  K      solver steps

Video is channels-last everywhere: `[B, T, H, W, C]`, floating point in [-1, 1].
Convolution kernels are `(t, h, w, in, out)`.
"""

from typing import Any

import jax

Array = jax.Array
"""An array, on a device or traced."""

PyTree = Any
"""A nest of tuples, dicts and struct dataclasses whose leaves are arrays."""

Params = PyTree
"""A nested dict of weights."""
