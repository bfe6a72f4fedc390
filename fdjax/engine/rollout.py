"""A whole rollout as one scan: exportable, differentiable, vmappable."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree


def rollout(
    generate: Callable[[Params, PyTree, PyTree], tuple[PyTree, PyTree]],
    finalize: Callable[[Params, PyTree], PyTree],
    params: Params,
    cache: PyTree,
    inputs: PyTree = None,
    num_chunks: int = 1,
) -> tuple[PyTree, PyTree]:
    """Generates and finalizes `num_chunks` chunks.

    The first chunk is peeled off, since a causal codec's first chunk is shorter; the
    rest is one `lax.scan`. Not jitted itself: wrap it in `jax.jit`, `jax.grad`,
    `jax.vmap` or `jax.export` as needed.

    Args:
        generate: A pipeline's `generate`.
        finalize: A pipeline's `finalize`.
        params: Weights.
        cache: A ready cache.
        inputs: None; or a list or tuple with each chunk's input, those after the first
            alike in shape; or a tree whose leaves have a leading axis of `num_chunks`.
        num_chunks: How many chunks, at least 1.

    Returns:
        The ready cache after the last chunk, and the outputs, each joined along its
        axis 1: video float[B, T, H, W, 3].

    Raises:
        ValueError: `num_chunks` is below 1, or the inputs are of another number.
    """
    if num_chunks < 1:
        raise ValueError(f"num_chunks must be at least 1, got {num_chunks}.")
    first, rest = _split_inputs(inputs, num_chunks)

    def step(cache: PyTree, input: PyTree) -> tuple[PyTree, PyTree]:
        cache, output = generate(params, cache, input)
        return finalize(params, cache), output

    cache, output = step(cache, first)
    if num_chunks == 1:
        return cache, output
    cache, outputs = jax.lax.scan(step, cache, rest, length=num_chunks - 1)
    return cache, jax.tree.map(_join, output, outputs)


def _join(first: Array, rest: Array) -> Array:
    """[B, T, ...] and [K, B, T, ...] to [B, all T, ...]."""
    rest = jnp.moveaxis(rest, 0, 1)  # [B, K, T, ...]
    # [B, K T, ...]
    rest = rest.reshape(rest.shape[0], -1, *rest.shape[3:])
    return jnp.concatenate([first, rest], axis=1)


def _split_inputs(inputs: PyTree, num_chunks: int) -> tuple[PyTree, PyTree]:
    if inputs is None:
        return None, None
    if type(inputs) in (list, tuple):
        if len(inputs) != num_chunks:
            raise ValueError(
                f"inputs must hold one entry per chunk, {num_chunks}; got "
                f"{len(inputs)}."
            )
        if num_chunks == 1:
            return inputs[0], None
        # The chunks after the first, stacked for the scan: [num_chunks - 1, B, ...]
        return inputs[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *inputs[1:])
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(inputs)}
    if lengths != {num_chunks}:
        raise ValueError(
            f"Every leaf of inputs must have a leading axis of num_chunks="
            f"{num_chunks}, got {sorted(lengths)}."
        )
    first = jax.tree.map(lambda leaf: leaf[0], inputs)
    return first, jax.tree.map(lambda leaf: leaf[1:], inputs)
