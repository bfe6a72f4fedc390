"""A live session as one immutable tree, and the check of its state."""

import flax.struct
import jax

from fdjax.axes import Array, PyTree
from fdjax.engine.diffusion import FinalState


@flax.struct.dataclass(kw_only=True)
class StreamInferencePipelineCache:
    """A live session: everything a rollout carries from chunk to chunk.

    Attributes:
        transformer_cache: Keys and values of the committed chunks, and conditions.
        encoder_cache: The control encoder's state; () without an encoder.
        decoder_cache: The decoder's state; () without a decoder.
        final_state: None when ready; the generated chunk when pending.
        autoregressive_index: Index of the next chunk to generate, or of the pending
            one.  int32[].
        key: The rollout's key; chunk n uses `fold_in(key, n)`.  key[].
    """

    transformer_cache: PyTree
    encoder_cache: PyTree
    decoder_cache: PyTree
    final_state: FinalState | None
    autoregressive_index: Array
    key: Array


def require(cache: StreamInferencePipelineCache, *, ready: bool, caller: str):
    """Refuses a cache in the wrong state, or one that was donated.

    Args:
        cache: The caller's cache.
        ready: The state that is needed: ready, or else pending.
        caller: Name of the refusing function, for the message.

    Raises:
        ValueError: With the cure.
    """
    if ready != (cache.final_state is None):
        state, cure = (
            ("pending", "finalize() the chunk that was generated first")
            if ready
            else ("ready", "generate() a chunk first")
        )
        raise ValueError(
            f"{caller} needs a {'ready' if ready else 'pending'} cache, got a {state} "
            f"one; {cure}."
        )
    for leaf in jax.tree.leaves((cache.transformer_cache, cache.final_state)):
        if not isinstance(leaf, jax.core.Tracer) and (
            isinstance(leaf, jax.Array) and leaf.is_deleted()
        ):
            raise ValueError(
                f"{caller} was given a cache that was used up by donate=True; keep "
                "the cache that the donating call returned, or call it with "
                "donate=False if the old one is still needed."
            )
