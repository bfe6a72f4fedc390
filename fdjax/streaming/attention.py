"""Ways in which the self-attention of a streaming network meets its keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import flax.struct
import jax

from fdjax import sharding
from fdjax.attention import float8, split
from fdjax.attention.attend import attend
from fdjax.attention.kv_cache import KVLayout
from fdjax.attention.rope import Rope3D, RopeTable
from fdjax.axes import Array, PyTree
from fdjax.streaming import storage


class SelfAttentionFn(Protocol):
    """How queries meet keys: rotates, caches, attends. Given anew at every call."""

    def __call__(
        self, query: Array, key: Array, value: Array, state: PyTree
    ) -> tuple[PyTree, Array]:
        """Attends to the chunk's own keys and to whatever `state` holds.

        Args:
            query: Normalised, not yet rotated.  [B, L, N, D].
            key: As `query`, with as many heads or fewer: a divisor of N.
            value: As `key`.
            state: This layer's own state, e.g. its key/value buffers; may be None.

        Returns:
            The layer's new state, and the attention's output [B, L, N, D].
        """


@flax.struct.dataclass
class LayerKV:
    """One layer's keys and values.

    Attributes:
        keys: Rotated, ready to be attended to.  [B, S, N, D].
        values: [B, S, N, D].
        layout: Which slot holds which token.
        raw_keys: Before rotation, if they are to be kept.  [B, S, N, D].
    """

    keys: Array
    values: Array
    layout: KVLayout = flax.struct.field(pytree_node=False)
    raw_keys: Array | None = None

    @property
    def head_axes(self) -> PyTree:
        """The axis of heads, in place of each array."""
        make: Any = LayerKV
        return make(
            2,
            1 if storage.eight_bit(self.values) else 2,
            self.layout,
            None if self.raw_keys is None else 2,
        )


@dataclasses.dataclass(frozen=True)
class StreamingAttention:
    """The chunk's keys go into its slots; queries see the filled part of the buffer.

    The slots of a chunk are the same in every denoising step, and hold what no later
    chunk reads: the oldest tokens, which leave the window now.

    Attributes:
        num_chunks: Chunks committed before this one.  uint32[1] or uint32[B].
        rope: How features turn.
        tables: Angles of the chunk's tokens, by the layer's layout.
    """

    num_chunks: Array
    rope: Rope3D
    tables: Mapping[KVLayout, RopeTable]

    def __call__(
        self, query: Array, key: Array, value: Array, state: LayerKV
    ) -> tuple[LayerKV, Array]:
        """See `SelfAttentionFn`."""
        shared = self.num_chunks, self.tables[state.layout]
        if not sharding.in_mesh():
            return self._attend(query, key, value, state, shared)
        return split.by_heads(
            self._attend, query, key, value, state, shared, head_axes=state.head_axes
        )

    def _attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        state: LayerKV,
        shared: tuple[Array, RopeTable],
    ) -> tuple[LayerKV, Array]:
        """All of it, for the heads that there are."""
        (num_chunks, table), layout = shared, state.layout
        num_tokens = layout.ring_tokens(num_chunks)
        rotated = self.rope.rotate(key, table)
        # [B, L, N, D] into [B, S, N, D]
        keys, values = storage.write(
            layout, state.keys, state.values, (rotated, value), num_tokens
        )
        raw_keys = state.raw_keys
        # Cache-relative mode keeps the keys unturned, as their ranks will change.
        if raw_keys is not None:
            raw_keys = layout.write(raw_keys, key, num_tokens)
        query = self.rope.rotate(query, table)
        length = layout.valid_length(num_tokens)
        # A chunk sees itself at least, so that no length is 0.
        if storage.eight_bit(keys):
            out = float8.attend(query, keys, values, length=length)
        else:
            out = attend(query, keys, values, length=length, nonempty=True)
        return LayerKV(keys, values, layout, raw_keys), out


@dataclasses.dataclass(frozen=True)
class SelfContainedAttention:
    """Every token of the sequence sees every other one, or those that a mask allows.

    Serves bidirectional generation, and training on whole sequences.

    Attributes:
        rope: How features turn.
        table: Angles of the tokens.
        mask: True where a query (row) may see a key; None allows all.  bool[L, L] or
            [B, 1, L, L].
    """

    rope: Rope3D
    table: RopeTable
    mask: Array | None = None

    def __call__(
        self, query: Array, key: Array, value: Array, state: None
    ) -> tuple[None, Array]:
        """See `SelfAttentionFn`; keeps no state."""
        if self.mask is None and sharding.in_mesh():
            return split.by_heads(
                self._attend, query, key, value, state, self.table, head_axes=None
            )
        if self.mask is None:
            return self._attend(query, key, value, state, self.table)
        query, key = (self.rope.rotate(x, self.table) for x in (query, key))
        # bool[L, L] -> [1, 1, L, L]; `attend` takes lengths and no mask.
        mask = self.mask if self.mask.ndim == 4 else self.mask[None, None]
        return state, jax.nn.dot_product_attention(query, key, value, mask=mask)

    def _attend(
        self, query: Array, key: Array, value: Array, state: None, table: RopeTable
    ) -> tuple[None, Array]:
        """All of it, for the heads that there are; the keys are the sequence's own."""
        query, key = (self.rope.rotate(x, table) for x in (query, key))
        # [B, L, N, D] each
        return state, attend(query, key, value)
