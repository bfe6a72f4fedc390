"""The cache of keys and values: sink slots that stay, then a ring.

    slot     0 ... sink-1 | sink ......................... sink+window-1
    holds    the first    | the newest `window` tokens after the sink,
             tokens, kept | token p in slot sink + (p - sink) % window

Softmax does not care about the order of its keys, so nothing is ever moved: a new chunk
overwrites the oldest one. Attention sees the first `valid_length` slots. They hold the
tokens that `BlockKVCache` of NVIDIA/flashdreams shows (core/attention/kvcache.py); that
one keeps its slots in chronological order by shifting them.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fdjax.axes import Array


@dataclasses.dataclass(frozen=True)
class KVLayout:
    """Which token lives in which slot.

    All numbers count the same unit: tokens for the cache itself, latent frames for
    frame positions (a layout divided by the tokens per frame gives those).

    `num_tokens`, the argument of every method, is how many tokens were committed before
    the current chunk: a multiple of `chunk`, int32[], traced or not.

    Attributes:
        sink: Tokens at the start of the sequence that are never dropped, >= 0.
        window: Newest tokens that are kept besides the sink, the current chunk
            included, >= 1.
        chunk: Tokens of one chunk, >= 1. It divides `sink + window`; it need divide
            neither of them, and may exceed the window.

    Raises:
        ValueError: The numbers cannot work together.
    """

    sink: int
    window: int
    chunk: int

    def __post_init__(self) -> None:
        if self.sink < 0:
            raise ValueError(f"sink must be >= 0, got {self.sink}; 0 keeps no sink.")
        if self.window < 1:
            raise ValueError(
                f"window must be >= 1, got {self.window}; it holds the current chunk."
            )
        if self.chunk < 1:
            raise ValueError(f"chunk must be >= 1, got {self.chunk}.")
        if excess := self.capacity % self.chunk:
            raise ValueError(
                "sink + window must be a multiple of chunk, got "
                f"{self.sink} + {self.window} = {self.capacity} with chunk "
                f"{self.chunk}; make the window {self.window + self.chunk - excess}"
                + (f" or {self.window - excess}." if self.window > excess else ".")
            )

    @property
    def capacity(self) -> int:
        """Number of slots, S."""
        return self.sink + self.window

    def slots(self, num_tokens: ArrayLike) -> Array:
        """Slot of each token of the current chunk; `capacity` for one that is dropped.

        Tokens are dropped only where the window is shorter than a chunk: its first
        tokens are out of the window before the chunk is complete.

        Returns:
            int32[chunk].
        """
        position = _int32(num_tokens) + jnp.arange(self.chunk, dtype=jnp.int32)
        dropped = (position >= self.sink) & (position < self._oldest(num_tokens))
        return jnp.where(dropped, self.capacity, self._slot(position))

    def valid_length(self, num_tokens: ArrayLike) -> Array:
        """Number of leading slots that attention sees, the current chunk included.

        Returns:
            int32[].
        """
        return jnp.minimum(_int32(num_tokens) + self.chunk, self.capacity)

    def slot_positions(self, num_tokens: ArrayLike) -> Array:
        """Rank of each slot's token among the visible ones, oldest first.

        The current chunk counts as written. These are the positions of cached keys in
        cache-relative RoPE. A slot without a token gets its own index.

        Returns:
            int32[S], a permutation of 0 ... S-1.
        """
        slot = jnp.arange(self.capacity, dtype=jnp.int32)
        oldest = self._oldest(num_tokens)
        rank_in_window = (slot - oldest) % self.window
        return jnp.where(slot < self.sink, slot, self.sink + rank_in_window)

    def chunk_positions(self, num_tokens: ArrayLike) -> Array:
        """Rank of each token of the current chunk among the visible ones.

        The positions of the queries in cache-relative RoPE: the last `chunk` ranks,
        for dropped tokens too.

        Returns:
            int32[chunk].
        """
        first = self.valid_length(num_tokens) - self.chunk
        return first + jnp.arange(self.chunk, dtype=jnp.int32)

    def write(self, buffer: Array, values: Array, num_tokens: ArrayLike) -> Array:
        """Puts the current chunk into its slots.

        The same slots at every call within a chunk, so that each denoising step
        overwrites the one before. In place where the buffer is donated or carried.

        Args:
            buffer: Keys or values of one layer.  [B, S, N, D].
            values: Those of the current chunk, cast to the buffer's dtype.
                [B, chunk, N, D].
            num_tokens: Tokens committed before the chunk.

        Returns:
            The new buffer.
        """
        values = values.astype(buffer.dtype)
        if self.window % self.chunk == 0:  # and so is the sink: the slots are in a row
            first = self._slot(_int32(num_tokens))
            return jax.lax.dynamic_update_slice_in_dim(buffer, values, first, 1)
        return buffer.at[:, self.slots(num_tokens)].set(
            values, mode="drop", unique_indices=self.window >= self.chunk
        )

    def _slot(self, position: Array) -> Array:
        """Slot of the token at a position in the sequence."""
        ring_slot = self.sink + (position - self.sink) % self.window
        return jnp.where(position < self.sink, position, ring_slot)

    def _oldest(self, num_tokens: ArrayLike) -> Array:
        """Position of the oldest token outside the sink, the current chunk counted."""
        end = _int32(num_tokens) + self.chunk
        return jnp.maximum(end - self.window, self.sink)


@flax.struct.dataclass(kw_only=True)
class KVCache:
    """Keys and values of every layer, and how many tokens they come from.

    A tuple over layers, not one stacked array: a stack costs a copy per layer.

    Attributes:
        keys: One buffer per layer.  [B, S, N, D].
        values: One buffer per layer.  [B, S, N, D].
        num_tokens: Tokens committed since the start, not only those still held; good
            for 2**31 of them (four days of 480 x 832 video at 16 frames/s).  int32[].
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    num_tokens: Array

    @classmethod
    def create(
        cls,
        layout: KVLayout,
        *,
        num_layers: int,
        batch: int,
        num_heads: int,
        head_dim: int,
        dtype: jnp.dtype,
    ) -> "KVCache":
        """An empty cache.

        Zeros rather than uninitialised memory: attention multiplies what lies behind
        the valid length by a weight of zero, which a NaN would survive.
        """
        shape = (batch, layout.capacity, num_heads, head_dim)

        def buffers() -> tuple[Array, ...]:
            return tuple(jnp.zeros(shape, dtype) for _ in range(num_layers))

        return cls(
            keys=buffers(), values=buffers(), num_tokens=jnp.zeros((), jnp.int32)
        )


def _int32(number: ArrayLike) -> Array:
    return jnp.asarray(number, jnp.int32)
