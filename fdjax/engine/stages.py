"""The compiled parts of a pipeline.

Each is static in its component, so that equal configs share executables. Diffusion is
apart from the codecs: only those have a special first chunk, so the network is compiled
once.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def initialize(pipeline, params, conditions, height, width):
    """The three components' empty caches, by field name of the pipeline's cache.

    And the index of the first chunk: made here, it is committed to a device if the
    parameters are, as every later one is. Otherwise `diffuse` would compile twice.
    """
    transformer = pipeline.diffusion_model.transformer
    encoder, decoder = pipeline.encoder, pipeline.decoder
    return {
        "transformer_cache": transformer.initialize_cache(
            params["transformer"], conditions, height, width
        ),
        "encoder_cache": ()
        if encoder is None
        else encoder.initialize_cache(params["encoder"], conditions, height, width),
        "decoder_cache": ()
        if decoder is None
        else decoder.initialize_cache(
            params["decoder"], conditions.batch_size, height, width
        ),
        "autoregressive_index": jnp.zeros((), jnp.int32),
    }


@functools.partial(jax.jit, static_argnums=0)
def update_conditions(pipeline, params, transformer_cache, conditions):
    """The transformer's cache with new conditions."""
    transformer = pipeline.diffusion_model.transformer
    return transformer.update_conditions(params, transformer_cache, conditions)


@functools.partial(jax.jit, static_argnums=0)
def encode(encoder, params, cache, input):
    """`StreamingEncoder.encode`."""
    return encoder.encode(params, cache, input)


def _diffuse_any(model, params, cache, control, noise, index, key):
    """`DiffusionModel.generate`, and the latent as the decoder takes it."""
    noise_key, _ = _chunk_keys(key, index)
    new_cache, state = model.generate(params, cache, control, noise, key=noise_key)
    latent = model.transformer.unpatchify(state.clean_latent, cache)
    return new_cache, state, latent


@functools.partial(jax.jit, static_argnums=0)
def diffuse(*args):
    """A chunk's final state and latent; None in place of the unchanged cache."""
    # Returning the untouched cache from a jit would cost a copy of it.
    return None, *_diffuse_any(*args)[1:]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def diffuse_in_place(*args):
    """As `diffuse`, with the donated cache handed back."""
    return _diffuse_any(*args)


@functools.partial(jax.jit, static_argnums=0)
def decode(decoder, params, cache, latent):
    """`StreamingDecoder.decode`."""
    return decoder.decode(params, cache, latent)


def _finalize_any(model, params, cache, final_state, noise, index, key):
    """The transformer's cache with the chunk committed, and the next chunk's index."""
    _, noise_key = _chunk_keys(key, index)
    cache = model.finalize(params, cache, final_state, noise, key=noise_key)
    return cache, index + 1


finalize = jax.jit(_finalize_any, static_argnums=0)
finalize_in_place = jax.jit(_finalize_any, static_argnums=0, donate_argnums=2)


def _chunk_keys(key, index):
    """Keys of chunk `index`: for the solver's noise, and for the context noise."""
    return jax.random.split(jax.random.fold_in(key, index))
