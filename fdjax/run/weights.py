"""The weights of a run: whether they can be had, and what is said while they come."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from fdjax import checkpoint
from fdjax.axes import Params
from fdjax.checkpoint.store import param_shapes
from fdjax.contract.component import ParametricComponent, leaves
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.run import downloads, memory, needs
from fdjax.sharding import Placement


def check(
    pipeline: StreamInferencePipeline, parts: Mapping[str, ParametricComponent]
) -> None:
    """Finds what is wrong with files on this machine before any weight is read.

    Of what streams also whether its checkpoint fits: it is read last, after encoders
    that take minutes.

    Args:
        pipeline: What runs.
        parts: Those whose weights are read, by their names in `params`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A checkpoint does not fit.
    """
    downloads.check_local(leaves(parts).values())
    for name in needs.streaming(pipeline):
        if name in parts:
            checkpoint.check_local(parts[name])


def make(
    pipeline: StreamInferencePipeline,
    only: Sequence[str],
    placement: Placement | None,
    *,
    random: bool,
    say: Callable[..., None],
) -> Params:
    """Weights of some components, read or random.

    Args:
        pipeline: Whose components they are.
        only: Names of the components.
        placement: Where they live; see `StreamInferencePipeline.init_params`.
        random: Whether they are made up.
        say: Takes a format and its values.
    """
    if not only:
        return {}
    sizes = [
        f"{name} {memory.size_text(memory.num_bytes(param_shapes(part)))}"
        for name, part in pipeline.components.items()
        if name in only
    ]
    where: dict[str, Any] = {} if placement is None else {"sharding": placement}
    since = time.perf_counter()
    say(
        "%s: %s ...", "Making random weights" if random else "Loading", ", ".join(sizes)
    )
    if random:
        params = pipeline.init_params(jax.random.key(0), only=only, **where)
    else:
        params = pipeline.load_params(only=only, **where)
    say("... done in %.1f s.", time.perf_counter() - since)
    return params
