"""Device time by kernel, from a profile of a few calls, and the program they run."""

import collections
import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def of_calls(call: Callable[[], Any], count: int, top: int = 40) -> dict[str, Any]:
    """Runs `call` and sums the device's events by name.

    Args:
        call: Waits for what it starts.
        count: How often it is called.
        top: Kernels to list.

    Returns:
        `busy_ms` of the device per call, and the kernels with the most time: their
        milliseconds and launches per call.
    """
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(count):
                call()
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    seconds: dict[str, float] = collections.Counter()
    launches: dict[str, int] = collections.Counter()
    for plane in data.planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                seconds[event.name] += event.duration_ns
                launches[event.name] += 1
    names = sorted(seconds, key=seconds.__getitem__, reverse=True)
    return {
        "busy_ms": round(sum(seconds.values()) / 1e6 / count, 3),
        "kernels": [
            {
                "name": name,
                "ms": round(seconds[name] / 1e6 / count, 4),
                "launches": launches[name] / count,
            }
            for name in names[:top]
        ],
    }


def program(pipeline: Any, params: Any, cache: Any, input: Any) -> str:
    """The optimised HLO of the denoising loop, for a ready cache and an input."""
    from fdjax import sharding
    from fdjax.engine import homes, stages

    control = None
    if pipeline.encoder is not None:
        own = params["encoder"], cache.encoder_cache, input
        _, control = homes.run(stages.encode, pipeline.encoder, *own)
    arguments = sharding.moved(
        (cache.transformer_cache, control, None, cache.autoregressive_index, cache.key),
        params["transformer"],
    )
    with sharding.home(params["transformer"], arguments):
        lowered = stages.diffuse_in_place.lower(
            pipeline.diffusion_model, params["transformer"], *arguments
        )
        return lowered.compile().as_text()


def save_program(text: str, path: Path) -> None:
    """Writes a program, to find a kernel's source in."""
    with gzip.open(path, "wt") as file:
        file.write(text)
