"""Compiles the programs of a run while its weights are read."""

import logging
import pathlib
import time
from typing import Any

import jax

from fdjax.axes import PyTree
from fdjax.checkpoint import placement
from fdjax.checkpoint.store import param_shapes
from fdjax.contract.conditioner import Conditions
from fdjax.engine import programs
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.run import needs
from fdjax.run.inputs import RunnerInputs, RunnerResult

_log = logging.getLogger(__name__)


def compile_ahead(
    runner: Any,
    inputs: RunnerInputs,
    conditions: Conditions | None,
    cache: StreamInferencePipelineCache | None,
    first: int = 0,
) -> programs.Programs:
    """Begins to compile what a run needs.

    Args:
        runner: Whose run it is.
        inputs: Of the run.
        conditions: Arrays or shapes; None: unknown, and the run compiles as it goes.
        cache: Of the session that the run goes on with, if it does.
        first: The chunk at which it begins.
    """
    # On several devices a program's shapes say too little of where its results live.
    if (conditions is None and cache is None) or runner.devices.several:
        return programs.Programs(iter(()))
    shapes = {
        name: _placed(runner, name, param_shapes(part))
        for name, part in needs.streaming(runner.pipeline).items()
    }

    def start() -> PyTree:
        return runner.new_cache(shapes, conditions) if cache is None else cache

    calls = programs.session(runner.pipeline, shapes, start, inputs.controls, first)
    return programs.Programs(calls)


def _placed(runner: Any, name: str, shapes: PyTree) -> PyTree:
    """Shapes of a component's weights, and where they will live."""
    where = placement.part_of(runner.weights_placement(), name)
    if where is None and runner.config.random_weights:
        return shapes  # they are put nowhere, and go where they are used
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        placement.leaf_shardings(shapes, where),
    )


def compile_only(compiling: programs.Programs, *, told: bool) -> RunnerResult:
    """Waits for all programs of a run that makes nothing else."""
    since = time.perf_counter()
    compiling.wait()
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    if told:
        _log.info(
            "Compiled %d programs in %.1f s%s.",
            compiling.num_programs,
            time.perf_counter() - since,
            f"; later runs of this size take them from {folder}" if folder else "",
        )
    return RunnerResult(
        output=pathlib.Path(folder or ""),
        outputs=(),
        files=(),
        num_frames=0,
        stats=[],
    )
