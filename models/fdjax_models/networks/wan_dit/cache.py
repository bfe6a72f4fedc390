"""What a Wan rollout carries from chunk to chunk, and within one."""

import flax.struct

from fdjax.attention.kv_cache import KVCache
from fdjax.attention.rope import RopeTable
from fdjax.axes import Array
from fdjax_models.networks.wan_dit.block import CameraModulation, ContextKV


@flax.struct.dataclass(kw_only=True)
class WanCache:
    """What a rollout carries from chunk to chunk.

    With guidance the leading axis of `kv` and `context` is 2 B: first conditional,
    then unconditional.

    Attributes:
        kv: Self-attention keys and values. No buffers where a chunk sees only itself.
        context: Cross-attention keys and values per layer.
        batch: Sessions B.
        height: Latent rows.
        width: Latent columns.
    """

    kv: KVCache
    context: tuple[ContextKV | None, ...]
    batch: int = flax.struct.field(pytree_node=False)
    height: int = flax.struct.field(pytree_node=False)
    width: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass(kw_only=True)
class WanWorkspace:
    """A cache, and what is computed once per chunk.

    Attributes:
        cache: The chunk's own slots are scratch, the rest is untouched.
        rotated_keys: Cached keys turned to their present positions, per layer, in
            cache-relative mode; else empty.  [B, S, N, D].
        table: Rotation of the chunk's tokens.
        camera: Modulation per layer from the chunk's rays, or None.
    """

    cache: WanCache
    rotated_keys: tuple[Array, ...]
    table: RopeTable
    camera: tuple[CameraModulation, ...] | None
