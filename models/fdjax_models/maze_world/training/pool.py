"""Encoded clips on the device, renewed a slice at a time."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Params
from fdjax_models.maze_world.training import autoencoder, data
from fdjax_models.maze_world.training.data import Clip
from fdjax_models.taehv.encoder import TaehvEncoder

_CLIPS_AT_ONCE = 32


@flax.struct.dataclass(kw_only=True)
class ClipPool:
    """Clips to train on; each one is seen a few times before it is replaced.

    Attributes:
        clips: Latents, controls and tokens with a leading axis.
        params: Weights of the encoder.
        next: Index of the oldest clip.
        encoder: The encoder.
    """

    clips: Clip
    params: Params
    next: int = flax.struct.field(pytree_node=False)
    encoder: TaehvEncoder = flax.struct.field(pytree_node=False)

    @classmethod
    def create(
        cls, encoder: TaehvEncoder, params: Params, size: int, num_chunks: int
    ) -> "ClipPool":
        """An empty pool."""
        shapes = jax.eval_shape(
            lambda key: encoded_clips(encoder, params, key, 1, num_chunks),
            jax.random.key(0),
        )
        clips = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), shapes)
        return cls(clips=clips, params=params, next=0, encoder=encoder)

    def refill(self, key: jax.Array, count: int) -> "ClipPool":
        """The pool with its `count` oldest clips replaced; `count` divides its size."""
        size, num_chunks = self.clips.controls.shape[:2]
        fresh = encoded_clips(self.encoder, self.params, key, count, num_chunks)
        clips = _write(self.clips, fresh, self.next)
        return dataclasses.replace(self, clips=clips, next=(self.next + count) % size)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def encoded_clips(
    encoder: TaehvEncoder, params: Params, key: jax.Array, count: int, num_chunks: int
) -> Clip:
    """Returns `count` random walks with latents, bfloat16, in place of video."""
    at_once = min(_CLIPS_AT_ONCE, count)

    def some(key: jax.Array) -> Clip:
        clips = data.make_clips(key, at_once, num_chunks)
        latent = autoencoder.encode_raw(encoder, params, clips.video)
        return dataclasses.replace(clips, video=latent.astype(jnp.bfloat16))

    if at_once == count:
        return some(key)
    clips = jax.lax.map(some, jax.random.split(key, count // at_once))
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), clips)


@functools.partial(jax.jit, donate_argnums=0)
def _write(clips: Clip, fresh: Clip, start: int) -> Clip:
    return jax.tree.map(
        lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, start, 0),
        clips,
        fresh,
    )
