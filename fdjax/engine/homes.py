"""Where the parts of a pipeline run: where their weights are.

Each part may live on a mesh or on a device of its own. What a stage is given is moved
there; the stages of one device run while another device is at the next chunk.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from fdjax import sharding
from fdjax.axes import Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.engine import stages
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.programs import call


def run(
    stage: Callable[..., Any], component: Any, weights: Params, *arguments: PyTree
) -> Any:
    """What a compiled stage gives, where the component's weights are.

    Args:
        stage: One of `fdjax.engine.stages`.
        component: Its static argument.
        weights: Decide where.
        *arguments: Moved there if they are elsewhere.
    """
    arguments = sharding.moved(arguments, weights)
    with sharding.home(weights, arguments):
        return call(stage, component, weights, *arguments)


def initialize(
    pipeline: Any, params: Params, conditions: Conditions, height: int, width: int
) -> dict[str, PyTree]:
    """`stages.empty_caches`, each part of it where its weights are.

    On a mesh the table `fdjax.sharding.CACHE` says what is cut.
    """
    meshes = {name: _mesh(params, name) for name in stages.CACHES}
    found = {mesh for mesh in meshes.values() if mesh is not None}
    if len(found) <= 1 and all(mesh.size == 1 for mesh in found):
        conditions = sharding.moved(conditions, params["transformer"])
        return call(stages.initialize, pipeline, params, conditions, height, width)
    caches: dict[str, PyTree] = {}
    for name in stages.CACHES:
        weights = params.get(name, {})
        given = sharding.moved(conditions, weights or params["transformer"])
        with sharding.home(weights or params["transformer"], given):
            caches |= stages.initialize_part(
                name, pipeline, weights, given, height, width
            )
    return caches


def placed(
    params: Params, cache: StreamInferencePipelineCache
) -> StreamInferencePipelineCache:
    """A cache from elsewhere, where the weights are: a session moves.

    Args:
        params: Weights.
        cache: Ready or pending, on any devices.
    """
    fields: dict[str, PyTree] = {}
    for name, own in stages.CACHES.items():
        mesh = _mesh(params, name)
        part = {field: getattr(cache, field) for field in own}
        if name == "transformer":
            part["final_state"] = cache.final_state
        places = _places(mesh, part)
        fields |= part if places is None else jax.device_put(part, places)
    return dataclasses.replace(cache, **fields)


def _mesh(params: Params, name: str) -> Mesh | None:
    """Where a part is; one without weights is with the transformer."""
    mesh = sharding.mesh_of(params.get(name))
    return sharding.mesh_of(params.get("transformer")) if mesh is None else mesh


def _places(mesh: Mesh | None, shapes: PyTree) -> PyTree:
    if mesh is None:
        return None
    if mesh.size == 1:
        device = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
        return jax.tree.map(lambda _: device, shapes)
    return sharding.shardings(mesh, shapes, sharding.CACHE)
