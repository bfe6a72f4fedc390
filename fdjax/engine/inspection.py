"""What a session holds and what it will draw, for comparisons with other programs."""

import functools

import jax
import jax.numpy as jnp

from fdjax.axes import Array
from fdjax.engine import stages
from fdjax.engine.cache import StreamInferencePipelineCache, require
from fdjax.engine.diffusion import DiffusionModel, split_noise
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.streaming import view
from fdjax.streaming.dit import StreamingDiT


def ordered_kv(
    pipeline: StreamInferencePipeline,
    cache: StreamInferencePipelineCache,
    layer: int = 0,
) -> view.OrderedKV:
    """One layer's keys and values, sink first, then oldest to newest.

    Args:
        pipeline: Whose transformer is a `StreamingDiT`.
        cache: A ready cache: a pending one may hold scratch in its oldest slots.
        layer: Which layer; negative ones count from the end.

    Raises:
        ValueError: The cache is pending or used up, the transformer keeps no such
            cache, or there is no such layer.
    """
    require(cache, ready=True, caller="ordered_kv")
    transformer = pipeline.diffusion_model.transformer
    if not isinstance(transformer, StreamingDiT):
        raise ValueError(
            "ordered_kv reads the cache of a StreamingDiT, got a "
            f"{type(transformer).__name__}, whose cache is its own affair."
        )
    return view.ordered_kv(transformer.layout, cache.transformer_cache, layer)


def chunk_noise(
    pipeline: StreamInferencePipeline, cache: StreamInferencePipelineCache
) -> Array:
    """All noise of the next chunk, or of the pending one, as latents.

    What `generate` and `finalize` draw by themselves. Both take an array like this as
    `noise=`, such as the one that another implementation drew:

        noise = fdjax.chunk_noise(pipeline, cache)
        cache, video = pipeline.generate(params, cache, control, noise=noise)
        cache = pipeline.finalize(params, cache, noise=noise)

    Args:
        pipeline: Says how many draws a chunk needs.
        cache: Gives each session's key and age.

    Returns:
        The initial latent, the solver's further draws in the order of use, and last
        that of the commit, which is used with `context_noise` only.
        float32[num_draws + 1, B, T, H, W, C].
    """
    model = pipeline.diffusion_model
    return _draw(
        model.first if cache.is_first else model,
        cache.transformer_cache,
        cache.autoregressive_index,
        cache.key,
    )


@functools.partial(jax.jit, static_argnums=0)
def _draw(model: DiffusionModel, cache: object, index: Array, key: Array) -> Array:
    transformer, keys = model.transformer, stages.chunk_keys(key, index)
    shape, num_draws = transformer.latent_shape(cache), model.scheduler.num_draws
    # Of the chunk's two keys the first is the solver's, as in `stages`.
    initial, draws = split_noise(None, shape, num_draws, keys[:, 0])
    commit, _ = split_noise(None, shape, 1, keys[:, 1])
    # [draw, B, L, C]
    tokens = jnp.concatenate([initial[None], draws, commit[None]])
    # [draw, B, T, H, W, C]
    return jax.vmap(lambda each: transformer.unpatchify(each, cache))(tokens)
