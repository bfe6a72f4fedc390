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
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdjax.axes import Array


@dataclasses.dataclass(frozen=True)
class KVLayout:
    """Which token lives in which slot.

    All numbers count the same unit: tokens for the cache itself, latent frames for
    frame positions (a layout divided by the tokens per frame gives those).

    `num_tokens`, the argument of most methods, is how many tokens were committed before
    the current chunk: a multiple of `chunk` that does not overflow, int32[] or one per
    session, int32[B], traced or not. `ring_tokens` makes it of a number of chunks, of
    any age. Results have the axis B in front where it has.

    Attributes:
        sink: Tokens at the start of the sequence that are never dropped, >= 0.
        window: Newest tokens that are kept besides the sink, the current chunk
            included, >= 1.
        chunk: Tokens of one chunk, >= 1. It divides `sink + window`; it need divide
            neither of them, and may exceed the window.
        slot_multiple: Buffers are padded to a multiple of this many slots, which some
            kernels like (128 on Hopper GPUs: 10 % of attention). What is padding stays
            zero and is never seen.

    Raises:
        ValueError: The numbers cannot work together.
    """

    sink: int
    window: int
    chunk: int
    slot_multiple: int = 1

    def __post_init__(self) -> None:
        if self.slot_multiple < 1:
            raise ValueError(f"slot_multiple must be >= 1, got {self.slot_multiple}.")
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
        # The largest count of `ring_tokens`, and a chunk behind it, must fit int32.
        if self.capacity + self._period * self.chunk >= 2**31:
            raise ValueError(
                f"sink {self.sink}, window {self.window} and chunk {self.chunk} repeat "
                f"after {self._period} chunks only, and 2**31 tokens are too many to "
                "count; make the window a multiple of the chunk."
            )

    @property
    def _period(self) -> int:
        """Chunks after which a full ring is written in the same way again."""
        return self.window // math.gcd(self.window, self.chunk)

    @property
    def contiguous(self) -> bool:
        """Whether the slots of a chunk always follow each other."""
        return self.window % self.chunk == 0  # and so the chunk divides the sink

    @property
    def capacity(self) -> int:
        """Number of tokens that are held: sink and window."""
        return self.sink + self.window

    @property
    def num_slots(self) -> int:
        """Number of slots in a buffer, S: the capacity, and padding."""
        return -(-self.capacity // self.slot_multiple) * self.slot_multiple

    def ring_tokens(self, num_chunks: ArrayLike) -> Array:
        """The least number of tokens whose slots and ranks are those of a session.

        A full ring comes around, so that its age counts modulo its period only: no
        session is too old for int32 arithmetic.

        Args:
            num_chunks: Chunks committed before the current one, from 0 to 2**32 - 1.
                uint32[] or uint32[B].

        Returns:
            What the other methods take as `num_tokens`.  int32[] or int32[B].
        """
        count = jnp.asarray(num_chunks, jnp.uint32)
        full = np.uint32(self.capacity // self.chunk)
        # What wraps below zero here is not taken: `where` takes `count` itself.
        again = full + (count - full) % np.uint32(self._period)
        count = jnp.where(count < full, count, again)
        return count.astype(jnp.int32) * self.chunk

    def slots(self, num_tokens: ArrayLike) -> Array:
        """Slot of each token of the current chunk; `num_slots` for one that is dropped.

        Tokens are dropped only where the window is shorter than a chunk: its first
        tokens are out of the window before the chunk is complete.

        Returns:
            int32[chunk] or int32[B, chunk].
        """
        # [(B,) 1] + [chunk] -> [(B,) chunk]
        first = _int32(num_tokens)[..., None]
        position = first + jnp.arange(self.chunk, dtype=jnp.int32)
        oldest = self._oldest(num_tokens)[..., None]
        dropped = (position >= self.sink) & (position < oldest)
        # One index behind the buffer: a scatter with mode="drop" leaves it out.
        return jnp.where(dropped, self.num_slots, self._slot(position))

    def valid_length(self, num_tokens: ArrayLike) -> Array:
        """Number of leading slots that attention sees, the current chunk included.

        Returns:
            int32[] or int32[B].
        """
        return jnp.minimum(_int32(num_tokens) + self.chunk, self.capacity)

    def slot_positions(self, num_tokens: ArrayLike) -> Array:
        """Rank of each slot's token among the visible ones, oldest first.

        The current chunk counts as written. These are the positions of cached keys in
        cache-relative RoPE. A slot without a token gets its own index.

        Returns:
            int32[S] or int32[B, S], a permutation of 0 ... S-1.
        """
        # [S], and with sessions [1, S] against [B, 1].
        slot = jnp.arange(self.num_slots, dtype=jnp.int32)
        oldest = self._oldest(num_tokens)[..., None]
        # Token p lies in slot sink + (p - sink) % window, so that this is p - oldest.
        rank_in_window = (slot - oldest) % self.window
        # The sink is in order; padding behind the capacity holds no token.
        kept = (slot < self.sink) | (slot >= self.capacity)
        return jnp.where(kept, slot, self.sink + rank_in_window)

    def chunk_positions(self, num_tokens: ArrayLike) -> Array:
        """Rank of each token of the current chunk among the visible ones.

        The positions of the queries in cache-relative RoPE: the last `chunk` ranks,
        for dropped tokens too.

        Returns:
            int32[chunk] or int32[B, chunk].
        """
        # [(B,) 1] + [chunk] -> [(B,) chunk]
        first = self.valid_length(num_tokens)[..., None] - self.chunk
        return first + jnp.arange(self.chunk, dtype=jnp.int32)

    def write(self, buffer: Array, values: Array, num_tokens: ArrayLike) -> Array:
        """Puts the current chunk into its slots.

        The same slots at every call within a chunk, so that each denoising step
        overwrites the one before. In place where the buffer is donated or carried.

        Args:
            buffer: Keys or values of one layer.  [B, S, N, D].
            values: Those of the current chunk, cast to the buffer's dtype.
                [B, chunk, N, D].
            num_tokens: Tokens committed before the chunk.  int32[] or int32[B].

        Returns:
            The new buffer.
        """
        values = values.astype(buffer.dtype)
        num_tokens = _int32(num_tokens)
        # Sessions of one age share their slots.
        if num_tokens.shape in ((), (1,)):
            num_tokens = num_tokens.reshape(())
            if self.contiguous:
                return _slice(buffer, values, self._slot(num_tokens))
            # [B, chunk, N, D] into [B, S, N, D]. Dropped tokens share an index, so that
            # indices are known to differ only where none is dropped.
            return buffer.at[:, self.slots(num_tokens)].set(
                values, mode="drop", unique_indices=self.window >= self.chunk
            )
        if self.contiguous:
            # A scatter costs a GPU no more than one slice for all (H100, 4,680 tokens
            # of 12 x 128: 49 us for B = 4 against 48); a CPU copies by slices faster.
            return jax.lax.platform_dependent(
                buffer,
                values,
                num_tokens,
                cpu=self._write_slices,
                default=self._scatter,
            )
        return self._scatter(buffer, values, num_tokens)

    def read(self, buffer: Array, num_tokens: ArrayLike) -> Array:
        """What lies in the current chunk's slots: `write` of it changes nothing.

        Args:
            buffer: Keys or values of one layer.  [B, S, N, D].
            num_tokens: Tokens committed before the chunk.  int32[] or int32[B].

        Returns:
            [B, chunk, N, D]; zeros for tokens that are dropped.
        """
        num_tokens = _int32(num_tokens)
        if num_tokens.shape in ((), (1,)):
            slots = self.slots(num_tokens.reshape(()))
            # [B, S, N, D] -> [B, chunk, N, D]
            return buffer.at[:, slots].get(mode="fill", fill_value=0)
        # [B, 1] and [B, chunk] together index [B, chunk, N, D].
        sessions = jnp.arange(len(buffer), dtype=jnp.int32)[:, None]
        slots = self.slots(num_tokens)
        return buffer.at[sessions, slots].get(mode="fill", fill_value=0)

    def _write_slices(self, buffer: Array, values: Array, num_tokens: Array) -> Array:
        """`write` of a contiguous chunk per session, one after the other."""
        for index in range(len(buffer)):
            # [1, chunk, N, D]
            row = values[index : index + 1]
            buffer = _slice(buffer, row, self._slot(num_tokens[index]), index)
        return buffer

    def _scatter(self, buffer: Array, values: Array, num_tokens: Array) -> Array:
        """`write` anywhere."""
        # [B, 1] and [B, chunk] together index [B, chunk, N, D].
        sessions = jnp.arange(len(buffer), dtype=jnp.int32)[:, None]
        return buffer.at[sessions, self.slots(num_tokens)].set(
            values, mode="drop", unique_indices=self.window >= self.chunk
        )

    def _slot(self, position: Array) -> Array:
        """Slot of the token at a position in the sequence."""
        # Below the sink this is some other slot, and not taken.
        ring_slot = self.sink + (position - self.sink) % self.window
        return jnp.where(position < self.sink, position, ring_slot)

    def _oldest(self, num_tokens: ArrayLike) -> Array:
        """Position of the oldest token outside the sink, the current chunk counted."""
        end = _int32(num_tokens) + self.chunk
        return jnp.maximum(end - self.window, self.sink)


def _slice(buffer: Array, values: Array, slot: Array, session: int = 0) -> Array:
    """Puts values into consecutive slots, from session `session` on."""
    zero = jnp.int32(0)
    # One index per axis of [B, S, N, D].
    start = (jnp.int32(session), slot, zero, zero)
    return jax.lax.dynamic_update_slice(buffer, values, start)


def _int32(number: ArrayLike) -> Array:
    return jnp.asarray(number, jnp.int32)
