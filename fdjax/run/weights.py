"""The weights of a run, loaded or random, and the word about it."""

import time
from collections.abc import Callable, Sequence

import jax

from fdjax.axes import Params
from fdjax.checkpoint.store import param_shapes
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.run import memory, needs
from fdjax.run.devices import Devices


def make(
    pipeline: StreamInferencePipeline,
    only: Sequence[str],
    devices: Devices,
    *,
    random: bool,
    say: Callable[..., None],
) -> Params:
    """Weights of some parts, on the devices of each.

    Args:
        pipeline: Whose parts they are.
        only: Names of the parts.
        devices: Where each part lives.
        random: Whether no checkpoint is read.
        say: Is told what is at hand, as a logger is.
    """
    if not only:
        return {}
    parts = pipeline.components
    sizes = [
        f"{name} {memory.size_text(memory.num_bytes(param_shapes(parts[name])))}"
        for name in only
    ]
    since = time.perf_counter()
    loads = "Making random weights" if random else "Loading"
    say("%s: %s ...", loads, ", ".join(sizes))
    placement = devices.placement(needs.streaming(pipeline))
    if random:
        key = jax.random.key(0)
        params = pipeline.init_params(key, only=only, sharding=placement)
    else:
        params = pipeline.load_params(only=only, sharding=placement)
    say("... done in %.1f s.", time.perf_counter() - since)
    return params
