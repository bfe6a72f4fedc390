"""A matched checkpoint onto the devices: read, placed, turned and cast there.

The tensors of one leaf go to a device as they are in the file; there they are checked,
turned and cast, and the result is spread as its sharding says. While one leaf is made,
the next one is read, so that the host holds the tensors of two, and a device no more
than that beside the params. Small ones are made on the host, where nothing has to be
compiled for their shapes.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from fdjax.axes import Array, Params
from fdjax.checkpoint import placement
from fdjax.checkpoint.tensors import is_float
from fdjax_convert.rules import matching
from fdjax_convert.rules.conversion import Conversion, Step
from fdjax_convert.rules.transforms import Transform

_SMALL = 1 << 20
# Bytes. Compiling for one more shape takes longer than numpy for dozens of these.


def place(
    conversion: Conversion,
    shardings: Mapping[str, Any],
    progress: Callable[[int], None] = lambda num_bytes: None,
) -> Params:
    """Makes all leaves.

    Args:
        conversion: The checkpoint, matched with what has to be filled; the leaves get
            the dtypes of that.
        shardings: A `jax.sharding.Sharding` for every leaf, as a nested dict.
        progress: Called with the bytes that have been read from the file.

    Raises:
        ConversionError: A tensor holds NaNs or overflows, or an alias differs.
    """
    flat = traverse_util.flatten_dict(shardings, sep="/")
    leaves: dict[str, Array] = {}
    checks: list[tuple[Step, Any, Any]] = []

    def complete(step: Step) -> None:
        jax.block_until_ready([leaves[path] for path in step.paths])
        conversion.release(step)
        progress(conversion.num_bytes(step))

    # One step behind: the next leaf is read while the devices make this one.
    before = None
    for step in conversion.steps:
        places = [flat[path] for path in step.paths]
        if conversion.num_bytes(step) < _SMALL:
            made = _make_on_host(conversion, step, places)
        else:
            made, finite, fits = _make(conversion, step, places[0])
            # Flags stay on the device until the end, so that no leaf waits for them.
            checks.append((step, finite, fits))
        spread = map(placement.spread, made, places)
        leaves |= zip(step.paths, spread, strict=True)
        if before is not None:
            complete(before)
        before = step
    if before is not None:
        complete(before)
    for step, finite, fits in checks:
        _report(conversion, step, jax.device_get(finite), jax.device_get(fits))
    conversion.finish()
    return traverse_util.unflatten_dict(leaves, sep="/")


def _make_on_host(
    conversion: Conversion, step: Step, shardings: Sequence[jax.sharding.Sharding]
) -> list[Array]:
    made = conversion.make(step, _dtypes(conversion, step))
    return list(map(placement.to_device, made, shardings))


def _dtypes(conversion: Conversion, step: Step) -> tuple[Any, ...]:
    return tuple(jnp.dtype(conversion.targets[path].dtype) for path in step.paths)


def _make(conversion: Conversion, step: Step, sharding: jax.sharding.Sharding) -> Any:
    """The leaves of one step, whole, on one device of the first leaf's sharding."""
    tensors = [conversion.source[key].read() for key in step.keys]
    return _turn(
        tuple(placement.to_device(tensor, sharding) for tensor in tensors),
        transform=step.rule.transform,
        one=isinstance(step.rule.source, str),
        shapes=conversion.shapes_of(step),
        dtypes=_dtypes(conversion, step),
    )


@functools.partial(jax.jit, static_argnames=("transform", "one", "shapes", "dtypes"))
def _turn(
    arrays: tuple[Array, ...],
    *,
    transform: Transform,
    one: bool,
    shapes: matching.Shapes,
    dtypes: tuple[Any, ...],
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...]]:
    """The leaves; whether each tensor is finite, and each leaf after its cast."""
    turned = matching.turn(transform, one, arrays, shapes)
    leaves = tuple(a.astype(d) for a, d in zip(turned, dtypes, strict=True))
    narrower = [
        _largest(after.dtype) < _largest(before.dtype)
        for before, after in zip(turned, leaves, strict=True)
    ]
    # A cast to a type as wide or wider cannot overflow.
    fits = tuple(
        _is_finite(leaf) if narrow else jnp.bool_(True)
        for leaf, narrow in zip(leaves, narrower, strict=True)
    )
    return leaves, tuple(map(_is_finite, arrays)), fits


def _largest(dtype: Any) -> float:
    return float(jnp.finfo(dtype).max) if is_float(dtype) else float("inf")


def _is_finite(array: Array) -> Array:
    if not is_float(array.dtype):
        return jnp.bool_(True)
    return jnp.isfinite(array).all()


def _report(
    conversion: Conversion, step: Step, finite: Sequence[Any], fits: Sequence[Any]
) -> None:
    """Notes which tensors hold what they must not."""
    for key, good in zip(step.keys, finite, strict=True):
        if not good:
            conversion.problems.add(key, "holds NaN or infinite values")
    for path, good in zip(step.paths, fits, strict=True):
        if not good and all(finite):
            dtype = conversion.targets[path].dtype
            conversion.problems.add(step.keys[0], f"overflows in {dtype}")
