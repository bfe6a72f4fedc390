"""Encoded clips on the device, renewed a slice at a time."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Params
from fdjax_models.methods.maze_world.training import autoencoder, data, parallel
from fdjax_models.methods.maze_world.training.data import Clip
from fdjax_models.networks.taehv.encoder import TaehvEncoder

# Of these the video is in memory too; the pool keeps latents only.
_CLIPS_AT_ONCE = 32


@flax.struct.dataclass(kw_only=True)
class ClipPool:
    """Clips to train on; each one is seen a few times before it is replaced.

    Attributes:
        clips: Latents, controls and tokens with a leading axis, split over devices.
        params: Weights of the encoder.
        next: Index of the oldest clip of each device.
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
        """An empty pool of `size` clips on each device."""
        shapes = clip_shapes(encoder, size * jax.local_device_count(), num_chunks)
        split = parallel.sharding(parallel.SPLIT)
        clips = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype, device=split), shapes
        )
        return cls(clips=clips, params=params, next=0, encoder=encoder)

    def refill(self, key: jax.Array, count: int) -> "ClipPool":
        """Replaces the `count` oldest clips of each device; a divisor of the size."""
        clips = _refill(self.encoder, count, self.clips, self.params, key, self.next)
        size = len(self.clips.tokens) // jax.local_device_count()
        return dataclasses.replace(self, clips=clips, next=(self.next + count) % size)


def clip_shapes(encoder: TaehvEncoder, count: int, num_chunks: int) -> Clip:
    """Returns the shapes and dtypes of `count` encoded clips."""
    params = jax.eval_shape(encoder.init_params, jax.random.key(0))
    return jax.eval_shape(
        lambda key: encoded_clips(encoder, params, key, count, num_chunks),
        jax.random.key(0),
    )


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
    # [count / at_once, at_once, ...] -> [count, ...]
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), clips)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _refill(
    encoder: TaehvEncoder,
    count: int,
    clips: Clip,
    params: Params,
    key: jax.Array,
    start: int,
) -> Clip:
    def local(clips: Clip, params: Params, key: jax.Array, start: jax.Array) -> Clip:
        num_chunks = clips.controls.shape[1]
        key = parallel.own_key(key)
        fresh = encoded_clips(encoder, params, key, count, num_chunks)
        # [count, ...] into [pool, ...]; never across the end, as count divides it.
        return jax.tree.map(
            lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, start, 0),
            clips,
            fresh,
        )

    same, split = parallel.SAME, parallel.SPLIT
    run = parallel.per_device(
        local, in_specs=(split, same, same, same), out_specs=split
    )
    return run(clips, params, key, start)
