"""From one prompt to another over several chunks: conditions in between."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fdjax.axes import Array
from fdjax.contract.conditioner import Conditions

_PARALLEL = 1e-4  # radians; below, the straight line is the arc to float32's accuracy


def linear(first: Array, second: Array, weight: float) -> Array:
    """(1 - weight) * first + weight * second."""
    return (1 - weight) * first + weight * second


def slerp(first: Array, second: Array, weight: float) -> Array:
    """Along the arc between the vectors of the last axis; their lengths go linearly.

    sin((1 - w) a) / sin(a) u + sin(w a) / sin(a) v for unit vectors at an angle a (K.
    Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985). Where a
    vector is zero, or the two are parallel or opposite, there is no one arc: linear.
    """
    lengths = [
        jnp.linalg.norm(x, axis=-1, keepdims=True)  # [..., 1]
        for x in (first, second)
    ]
    units = [
        x / jnp.where(length > 0, length, 1)
        for x, length in zip((first, second), lengths, strict=True)
    ]
    # By the half-angle: arccos of a dot product loses half of its digits near 1.
    angle = 2 * jnp.arctan2(
        jnp.linalg.norm(units[0] - units[1], axis=-1, keepdims=True),
        jnp.linalg.norm(units[0] + units[1], axis=-1, keepdims=True),
    )
    defined = (lengths[0] > 0) & (lengths[1] > 0)
    defined &= (angle > _PARALLEL) & (angle < jnp.pi - _PARALLEL)
    safe = jnp.where(defined, angle, 1.0)
    arc = jnp.sin((1 - weight) * safe) * units[0] + jnp.sin(weight * safe) * units[1]
    arc = arc / jnp.sin(safe) * linear(lengths[0], lengths[1], weight)
    return jnp.where(defined, arc, linear(first, second, weight))


BLENDS: dict[str, Callable[[Array, Array, float], Array]] = {
    "linear": linear,
    "slerp": slerp,
}
"""Ways between two conditions, by name."""


def path(
    first: Conditions, second: Conditions, num_chunks: int, blend: str
) -> tuple[Conditions, ...]:
    """The conditions of `num_chunks` chunks, after `first` and up to `second`.

    Floating-point arrays are blended in float32; others are those of `second`, as is
    the first frame, which only a session's beginning reads.

    Args:
        first: Those of now.
        second: Those to come; the last element of the path, as they are.
        num_chunks: Length of the path, >= 1; 1 is a change at once.
        blend: A name of `BLENDS`.

    Raises:
        ValueError: An unknown blend, no chunk, or conditions of other shapes.
    """
    if blend not in BLENDS:
        raise ValueError(f"blend must be one of {sorted(BLENDS)}, got {blend!r}.")
    if num_chunks < 1:
        raise ValueError(
            f"num_chunks must be >= 1, got {num_chunks}; 1 changes at once."
        )
    shapes = [
        jax.tree.map(jnp.shape, dataclasses.replace(each, image=None))
        for each in (first, second)
    ]
    if shapes[0] != shapes[1] and num_chunks > 1:
        raise ValueError(
            "Conditions can be blended where their shapes are the same, got "
            f"{shapes[0]} and {shapes[1]}; use num_chunks=1, or encode both in the "
            "same way."
        )

    def between(weight: float) -> Conditions:
        def mix(a: Array, b: Array) -> Array:
            if not jnp.issubdtype(b.dtype, jnp.floating):
                return b
            mixed = BLENDS[blend](
                jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), weight
            )
            return mixed.astype(b.dtype)

        mixed = jax.tree.map(
            mix,
            dataclasses.replace(first, image=None),
            dataclasses.replace(second, image=None),
        )
        return dataclasses.replace(mixed, image=second.image)

    steps = range(1, num_chunks)
    return (*(between(step / num_chunks) for step in steps), second)
