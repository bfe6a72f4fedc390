"""What a run will need of memory, from shapes alone."""

import dataclasses
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Mapping

import jax

from fdjax.axes import Params, PyTree
from fdjax.checkpoint import placement
from fdjax.checkpoint.store import param_shapes
from fdjax.contract.component import ParametricComponent
from fdjax.contract.conditioner import Conditions
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.run import memory
from fdjax.run.devices import Devices
from fdjax.sharding import CACHE, Placement, is_host_memory

_LARGE = 10**9  # bytes of memory from which a run is told about before it starts
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Needs:
    """Bytes that a run holds on its device at least.

    Attributes:
        one_shot: Weights of the encoders of conditions, by part; freed before the rest.
        weights: Weights of what streams, by component.
        cache: What a session starts from and carries from chunk to chunk, and one
            picture.
        num_devices: Devices of which each holds so much.
        host: Weights that wait in the host's memory, by component.
    """

    one_shot: Mapping[str, int]
    weights: Mapping[str, int]
    cache: int
    num_devices: int = 1
    host: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The larger of the two phases."""
        streaming = sum(self.weights.values()) + self.cache
        return max(sum(self.one_shot.values()), streaming)

    def of(self, names: Iterable[str]) -> "Needs":
        """What is needed where only the parts of these names are loaded.

        Without any that streams there is no session either.
        """
        kept = set(names)
        weights = {name: n for name, n in self.weights.items() if name in kept}
        return Needs(
            one_shot={name: n for name, n in self.one_shot.items() if name in kept},
            weights=weights,
            cache=self.cache if weights else 0,
            num_devices=self.num_devices,
            host={name: n for name, n in self.host.items() if name in kept},
        )

    def check(self) -> None:
        """Refuses what cannot fit, before any of it is allocated.

        Raises:
            ValueError: With both numbers, and what makes them smaller.
        """
        waiting, host = sum(self.host.values()), memory.host_memory()
        if host is not None and waiting > host:
            raise ValueError(
                f"This run keeps {memory.size_text(waiting)} of weights in the host's "
                f"memory; this machine has {memory.size_text(host)}."
            )
        available, where = memory.device_memory(self.num_devices)
        if available is None or self.peak <= available:
            return
        total, weights, cache, there = map(
            memory.size_text,
            (self.peak, sum(self.weights.values()), self.cache, available),
        )
        raise ValueError(
            f"This run needs at least {total} of memory: {weights} for weights and "
            f"{cache} for the session's cache and one picture; {where} has {there}. "
            "Make window_size_t, len_t or the picture smaller, take more devices "
            "(--mesh sequence=2), or --tiny."
        )

    def announce(self, name: str) -> None:
        """Says what a large method needs before minutes go by."""
        if self.peak < _LARGE:
            return
        available, where = memory.device_memory(self.num_devices)
        has = "" if available is None else f", it has {memory.size_text(available)}"
        needed = memory.size_text(self.peak)
        _log.info(
            "%s needs at least %s of the memory of %s%s.", name, needed, where, has
        )
        if jax.default_backend() == "cpu":
            _log.warning(
                "%s runs on the CPU, as jax sees no accelerator: expect minutes to "
                "hours for a chunk. --tiny shows the whole path in seconds.",
                name,
            )


def one_shot(pipeline: StreamInferencePipeline) -> dict[str, ParametricComponent]:
    """The parts that run once, for the conditions, by their names in `params`."""
    parts = () if pipeline.conditioner is None else pipeline.conditioner.parts
    return {name: x for name, x in pipeline.components.items() if name in parts}


def streaming(pipeline: StreamInferencePipeline) -> dict[str, ParametricComponent]:
    """The parts that run for every chunk, by their names in `params`."""
    once = one_shot(pipeline)
    return {name: x for name, x in pipeline.components.items() if name not in once}


def condition_shapes(
    pipeline: StreamInferencePipeline, encode: Callable[[Params], Conditions]
) -> Conditions | None:
    """Shapes of the conditions; None where they cannot be had without encoding.

    Args:
        pipeline: Whose conditioner's parts encode.
        encode: Maps the parts' weights to conditions.
    """
    shapes = {name: param_shapes(part) for name, part in one_shot(pipeline).items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when it is encoded
            return jax.eval_shape(encode, shapes)
    except (
        jax.errors.TracerArrayConversionError,
        jax.errors.ConcretizationTypeError,
    ):
        return None  # an encoder that works on the host in part


def of_rollout(
    pipeline: StreamInferencePipeline,
    initialize: Callable[[Params, Conditions], StreamInferencePipelineCache],
    conditions: Conditions,
    size: tuple[int, int],
    devices: Devices,
    sharding: Placement | None = None,
) -> Needs:
    """What a rollout needs, from shapes alone.

    Args:
        pipeline: What runs.
        initialize: Maps the weights that stream, and conditions, to an empty cache.
        conditions: Arrays, or their shapes.
        size: Rows and columns of the video.
        devices: On which it runs; a part that is placed elsewhere is not counted.
        sharding: Where the weights live.

    Raises:
        ValueError: A condition or a size does not fit.
    """
    shapes = {name: param_shapes(part) for name, part in pipeline.components.items()}
    weights = {name: shapes[name] for name in streaming(pipeline)}
    cache = jax.eval_shape(initialize, weights, conditions)
    devices.check_sessions(cache.num_sessions)
    transformer = pipeline.diffusion_model.transformer
    latent = 4 * math.prod(transformer.latent_shape(cache.transformer_cache))
    picture = 3 * 4 * math.prod(size)
    held = {
        name: _held(
            pipeline.components[name], leaves, placement.part_of(sharding, name)
        )
        for name, leaves in weights.items()
        if name not in devices.placed or name == "transformer"
    }
    return Needs(
        one_shot={
            name: memory.num_bytes(shapes[name])
            for name in one_shot(pipeline)
            if name not in devices.placed
        },
        weights={name: near for name, (near, _) in held.items()},
        cache=devices.num_bytes(cache, CACHE)
        + memory.num_bytes(conditions)
        + latent
        + picture,
        num_devices=1 if devices.mesh is None else devices.mesh.size,
        host={name: far for name, (_, far) in held.items() if far},
    )


def _held(
    component: ParametricComponent, shapes: PyTree, sharding: Placement | None
) -> tuple[int, int]:
    """Bytes of weights that the device holds at most, and bytes that the host holds.

    Of parts whose weights wait with the host, one at a time is on the device.
    """
    placed = placement.leaf_shardings(shapes, sharding)

    def size(sharding: jax.sharding.Sharding, leaf: jax.ShapeDtypeStruct) -> int:
        return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    def waits(sharding: jax.sharding.Sharding, leaf: jax.ShapeDtypeStruct) -> int:
        return size(sharding, leaf) if is_host_memory(sharding) else 0

    near = sum(jax.tree.leaves(jax.tree.map(size, placed, shapes)))
    far = jax.tree.map(waits, placed, shapes)
    total = sum(jax.tree.leaves(far))
    parts = [sum(jax.tree.leaves(far[name])) for name in component.parts] or [total]
    return near - total + max(parts), total
