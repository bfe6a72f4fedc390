"""The compiled parts of a pipeline.

Each is static in its component, so that equal configs share executables. Diffusion is
apart from the codecs: only those have a special first chunk, so the network is compiled
once. Executables are per batch size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.contract.decoder import StreamingDecoder
from fdjax.contract.encoder import StreamingEncoder
from fdjax.engine.diffusion import DiffusionModel, FinalState
from fdjax.sharding import CACHE, Placement, constrain_tree, resolve

CACHES = {
    "transformer": ("transformer_cache", "autoregressive_index"),
    "encoder": ("encoder_cache",),
    "decoder": ("decoder_cache",),
}
"""Which fields of the pipeline's cache go with which component's weights."""


def empty_cache(
    name: str,
    pipeline: Any,
    params: Params,
    conditions: Conditions,
    height: int,
    width: int,
) -> dict[str, PyTree]:
    """One component's empty cache, by field name of the pipeline's cache.

    With that of the transformer the index of the first chunk: made here, it is
    committed to a device if the parameters are, as every later one is. Otherwise
    `diffuse` would compile twice.
    """
    batch = conditions.batch_size
    if name == "transformer":
        transformer = pipeline.diffusion_model.transformer
        return {
            "transformer_cache": transformer.initialize_cache(
                params, conditions, height, width
            ),
            "autoregressive_index": jnp.zeros((batch,), jnp.int32),
        }
    cache: PyTree = ()
    if name == "encoder" and pipeline.encoder is not None:
        cache = pipeline.encoder.initialize_cache(params, conditions, height, width)
    if name == "decoder" and pipeline.decoder is not None:
        cache = pipeline.decoder.initialize_cache(params, batch, height, width)
    return {f"{name}_cache": cache}


def empty_caches(
    pipeline: Any, params: Params, conditions: Conditions, height: int, width: int
) -> dict[str, PyTree]:
    """The three components' empty caches, by field name of the pipeline's cache."""
    caches: dict[str, PyTree] = {}
    for name in CACHES:
        weights = params.get(name, {})
        caches |= empty_cache(name, pipeline, weights, conditions, height, width)
    return caches


# Static besides the pipeline: the latent's rows and columns.
initialize = jax.jit(empty_caches, static_argnums=(0, 3, 4))


@functools.partial(jax.jit, static_argnums=(0, 1, 4, 5))
def initialize_part(*args: Any) -> dict[str, PyTree]:
    """`empty_cache`, cut over the mesh in force."""
    return constrain_tree(empty_cache(*args), CACHE)


def initialize_on(
    sharding: Placement,
    pipeline: Any,
    params: Params,
    conditions: Conditions,
    height: int,
    width: int,
) -> dict[str, PyTree]:
    """`initialize`, with each leaf where a sharding says."""

    def make(params: Params, conditions: Conditions) -> dict[str, PyTree]:
        return empty_caches(pipeline, params, conditions, height, width)

    placed = resolve(sharding, jax.eval_shape(make, params, conditions), CACHE)
    caches: dict[str, PyTree] = jax.jit(make, out_shardings=placed)(params, conditions)
    return caches


def _update_conditions(
    pipeline: Any, params: Params, transformer_cache: PyTree, conditions: Conditions
) -> PyTree:
    """The transformer's cache with new conditions."""
    transformer = pipeline.diffusion_model.transformer
    return transformer.update_conditions(params, transformer_cache, conditions)


update_conditions = jax.jit(_update_conditions, static_argnums=0)
# The keys and values of the window pass through, which would copy them.
update_conditions_in_place = jax.jit(
    _update_conditions, static_argnums=0, donate_argnums=2
)


@functools.partial(jax.jit, static_argnums=0)
def encode(
    encoder: StreamingEncoder, params: Params, cache: PyTree, input: PyTree
) -> tuple[PyTree, PyTree]:
    """`StreamingEncoder.encode`."""
    return encoder.encode(params, cache, input)


def _diffuse_any(
    model: DiffusionModel,
    params: Params,
    cache: PyTree,
    control: PyTree,
    noise: Array | None,
    index: Array,
    key: Array,
) -> tuple[PyTree, FinalState, Array]:
    """`DiffusionModel.generate`, and the latent as the decoder takes it."""
    new_cache, state = model.generate(
        params, cache, control, noise, key=chunk_keys(key, index)[:, 0]
    )
    # [B, L, C] -> [B, T, H, W, C]
    return new_cache, state, model.transformer.unpatchify(state.clean, cache)


@functools.partial(jax.jit, static_argnums=0)
def diffuse(*args: Any) -> tuple[None, FinalState, Array]:
    """A chunk's final state and latent; None in place of the unchanged cache."""
    # Returning the untouched cache from a jit would cost a copy of it.
    return None, *_diffuse_any(*args)[1:]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def diffuse_in_place(*args: Any) -> tuple[PyTree, FinalState, Array]:
    """As `diffuse`, with the donated cache handed back."""
    return _diffuse_any(*args)


@functools.partial(jax.jit, static_argnums=0)
def decode(
    decoder: StreamingDecoder, params: Params, cache: PyTree, latent: Array
) -> tuple[PyTree, PyTree]:
    """`StreamingDecoder.decode`."""
    return decoder.decode(params, cache, latent)


def _finalize_any(
    model: DiffusionModel,
    params: Params,
    cache: PyTree,
    final_state: FinalState,
    noise: Array | None,
    index: Array,
    key: Array,
) -> tuple[PyTree, Array]:
    """The transformer's cache with the chunk committed, and the next chunk's index."""
    cache = model.finalize(
        params, cache, final_state, noise, key=chunk_keys(key, index)[:, 1]
    )
    return cache, index + 1


finalize = jax.jit(_finalize_any, static_argnums=0)
finalize_in_place = jax.jit(_finalize_any, static_argnums=0, donate_argnums=2)


def chunk_keys(key: Array, index: Array) -> Array:
    """Each session's keys of its chunk: the solver's, and the context noise's.

    Returns:
        key[B, 2].
    """
    # Folded by index, so that a chunk's draws need none of the chunks before it.
    return jax.vmap(
        lambda key, index: jax.random.split(jax.random.fold_in(key, index))
    )(key, index)
