"""What a streaming network carries from chunk to chunk, and within one."""

import flax.struct
import jax.numpy as jnp

from fdjax.attention.rope import RopeTable
from fdjax.axes import Array, PyTree
from fdjax.streaming.layout import StreamLayout


@flax.struct.dataclass(kw_only=True)
class KVCache:
    """Keys and values of every layer, and how many chunks they come from.

    A tuple over layers, not one stacked array: a stack costs a copy per layer.

    With guidance or several views a second axis holds the rows of a session, first the
    views of the conditional branch: [B, G V, S, N, D].

    Attributes:
        keys: One buffer per layer.  [B, S, N, D], or [B, G V, S, N, D].
        values: As `keys`; in 8 bits [B, N, D, S] (`fdjax.attention.float8`).
        num_chunks: Each session's chunks committed since its start, not only those
            still held. Positions are computed from it without overflow or loss of
            accuracy up to 2**32 chunks (a century of chunks of 12 frames at 16
            frames/s).  uint32[B].
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    num_chunks: Array

    @classmethod
    def create(
        cls, layout: StreamLayout, *, batch: int, height: int, width: int
    ) -> "KVCache":
        """An empty cache; without buffers where a chunk sees only itself.

        Zeros rather than uninitialised memory: attention multiplies what lies behind
        the valid length by a weight of zero, which a NaN would survive.

        Args:
            layout: Of the network.
            batch: Sessions B.
            height: Latent rows.
            width: Latent columns.
        """
        # Without guidance and views the axis is left out, not 1.
        branches = () if layout.num_rows == 1 else (layout.num_rows,)
        layers = layout.tokens(height, width) if layout.has_memory else ()

        heads, rows = (layout.kv_heads, layout.rope.head_dim), (batch, *branches)

        def buffers(values: bool) -> tuple[Array, ...]:
            # [B, (G V,) S, N, D] per layer; values in 8 bits [B, (G V,) N, D, S]
            slots = [layer.num_slots for layer in layers]
            last = values and layout.eight_bit
            shapes = [(*heads, count) if last else (count, *heads) for count in slots]
            dtype = layout.kv_dtype or layout.dtype
            return tuple(jnp.zeros((*rows, *shape), dtype) for shape in shapes)

        # uint32: an int32 would overflow at half of the age.
        num_chunks = jnp.zeros((batch,), jnp.uint32)
        return cls(keys=buffers(False), values=buffers(True), num_chunks=num_chunks)


@flax.struct.dataclass(kw_only=True)
class StreamCache:
    """What a rollout carries from chunk to chunk.

    Attributes:
        kv: Self-attention keys and values.
        context: What the network made of the conditions, e.g. cross-attention keys
            and values.  Leaves [B, ...], or [B, G V, ...] with guidance or views; G is
            conditional, then unconditional.
        height: Latent rows.
        width: Latent columns.
    """

    kv: KVCache
    context: PyTree
    height: int = flax.struct.field(pytree_node=False)
    width: int = flax.struct.field(pytree_node=False)

    @property
    def batch(self) -> int:
        """Sessions B."""
        return int(self.kv.num_chunks.shape[0])


@flax.struct.dataclass(kw_only=True)
class Workspace:
    """A cache, and what is computed once per chunk.

    Attributes:
        cache: The chunk's own slots are scratch, the rest is untouched. Branches are
            folded into the first axis, [B G V, ...].
        rotated_keys: Cached keys turned to their present positions, per layer, in
            cache-relative mode; else empty.  [B G V, S, N, D].
        tables: Rotation of the chunk's tokens, one per distinct layout of a layer.
        control: The chunk's control, checked.
        extras: What the network makes of the control once for all steps.
    """

    cache: StreamCache
    rotated_keys: tuple[Array, ...]
    tables: tuple[RopeTable, ...]
    control: PyTree
    extras: PyTree


@flax.struct.dataclass(kw_only=True)
class Residue:
    """What a commit needs of its chunk besides the clean latent.

    Tables, turned keys and what the network makes of the control are as large as the
    window or as all layers: they are made again.

    Attributes:
        control: The chunk's control, checked.
        chunk: Keys, then values of the last denoising step, by layer, where no more
            pass is made over the clean latent (`StreamLayout.skip_finalize`); else
            None.  [B, (G V,) chunk, N, D] each.
    """

    control: PyTree
    chunk: tuple[tuple[Array, ...], tuple[Array, ...]] | None = None
