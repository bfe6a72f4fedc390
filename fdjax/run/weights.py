"""The weights of a run: where they live, and what is said while they come."""

import time
from collections.abc import Callable, Sequence

import jax

from fdjax.axes import Params
from fdjax.checkpoint.store import param_shapes
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.run import memory
from fdjax.sharding import Placement


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
    since = time.perf_counter()
    say(
        "%s: %s ...", "Making random weights" if random else "Loading", ", ".join(sizes)
    )
    if random:
        params = pipeline.init_params(jax.random.key(0), only=only, sharding=placement)
    else:
        params = pipeline.load_params(only=only, sharding=placement)
    say("... done in %.1f s.", time.perf_counter() - since)
    return params
