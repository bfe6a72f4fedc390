"""Placement by tables: what is cut, what stays whole, and that the numbers stay."""

import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec, SingleDeviceSharding

from fdjax import sharding
from fdjax.checkpoint.placement import default_sharding
from tests import tiny


def mesh(**axes):
    devices = np.array(jax.devices()[:1]).reshape([1] * len(axes))
    return Mesh(devices, tuple(axes))


def test_without_a_mesh_nothing_is_constrained():
    x = jnp.ones((1, 2, 3, 4))
    assert sharding.constrain(x, "BLND") is x
    with pytest.raises(ValueError, match="'BLN' must have one letter for each axis"):
        sharding.constrain(x, "BLN")


@pytest.mark.parametrize(
    ("spec", "shape", "sizes", "expected"),
    [
        (
            ("data", ..., "heads", None),
            (4, 5, 6, 7),
            {"heads": 2},
            (None, None, "heads"),
        ),
        (("data", ..., "heads", None), (4, 6, 7), {"data": 2}, ("data",)),
        (
            (("heads", "tensor"),),
            (8,),
            {"heads": 2, "tensor": 4},
            (("heads", "tensor"),),
        ),
        ((("heads", "tensor"),), (6,), {"heads": 2, "tensor": 4}, ("heads",)),
        (("tensor",), (5,), {"tensor": 2}, ()),
        (("data", ..., None, "heads", None), (4,), {"data": 4, "heads": 2}, ("data",)),
    ],
)
def test_a_spec_is_fitted_to_a_shape(spec, shape, sizes, expected):
    fitted = sharding._fit(spec, shape, sizes)
    flat = [part[0] if part and len(part) == 1 else part for part in fitted]
    while flat and flat[-1] is None:
        flat.pop()
    assert tuple(flat) == expected


def test_params_are_placed_by_their_paths():
    shape = jax.ShapeDtypeStruct((8, 3, 4, 2), jnp.float32)
    other = jax.ShapeDtypeStruct((8,), jnp.float32)
    tree = {"blocks_0": {"self_attn": {"qkv": {"kernel": shape}}, "norm": {"b": other}}}
    specs = sharding.shardings(mesh(tensor=1), tree, sharding.PARAMS)
    assert specs["blocks_0"]["norm"]["b"].spec == PartitionSpec()
    one = SingleDeviceSharding(jax.devices()[0])
    assert sharding.resolve(one, tree, sharding.PARAMS)["blocks_0"]["norm"]["b"] is one
    assert sharding.resolve(None, tree, sharding.PARAMS) is None


def test_one_sharding_places_params_and_cache():
    pipeline = tiny.CONFIG.setup()
    one = SingleDeviceSharding(jax.devices()[0])
    params = pipeline.init_params(jax.random.key(0), sharding=one)
    plain = pipeline.init_params(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, plain)
    cache = pipeline.initialize_cache(
        params,
        conditions=tiny.conditions(),
        pixel_height=6,
        pixel_width=8,
        sharding=one,
    )
    leaves = jax.tree.leaves((params, cache.transformer_cache))
    assert all(leaf.sharding == one for leaf in leaves)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_a_share_of_the_bytes_waits_with_the_host(share):
    """Evenly spread: in every run of leaves, to the size of one."""
    shapes = [jax.ShapeDtypeStruct((8,), jnp.float32)] * 20
    placed = sharding.in_host_memory(default_sharding(), shapes, share)
    far = np.cumsum([sharding.is_host_memory(each) for each in placed])
    assert np.abs(far - share * np.arange(1, 21)).max() <= 0.5 + 1e-9


def test_what_waits_is_brought_and_the_rest_left():
    near = {"a": jnp.arange(3.0), "b": jnp.arange(4.0)}
    where = sharding.in_host_memory(default_sharding(), near["a"])
    tree = near | {"a": jax.device_put(near["a"], where)}

    def use(tree, x):
        return jax.tree.map(jnp.sin, sharding.to_device_memory(tree, after=x))

    made = jax.jit(use)(tree, jnp.ones(2))
    jax.tree.map(np.testing.assert_array_equal, made, jax.jit(use)(near, jnp.ones(2)))
    assert {leaf.sharding.memory_kind for leaf in made.values()} == {"device"}
    assert tree["a"].sharding.memory_kind == "pinned_host"
    assert sharding.to_device_memory(tree)["b"] is tree["b"]


def test_devices_without_memory_of_the_host_are_named():
    class Device:
        id, device_kind = 0, "Abacus"

        def addressable_memories(self):
            return [types.SimpleNamespace(kind="beads")]

    placement = types.SimpleNamespace(device_set={Device()})
    with pytest.raises(ValueError, match="kind pinned_host; Abacus has beads"):
        sharding.in_host_memory(placement, [])


_FOUR_DEVICES = """
import dataclasses, jax, numpy as np
from jax.sharding import Mesh
from fdjax import sharding
from fdjax.checkpoint.placement import default_sharding
from fdjax.contract.conditioner import Conditions
from fdjax.engine.diffusion import DiffusionModelConfig
from fdjax.engine.pipeline import StreamInferencePipelineConfig
from fdjax.schedulers import FlowMatchSchedulerConfig
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig
from tests.networks.wan_dit import tiny
network = dataclasses.replace(tiny.CONFIG, num_heads=4)
pipeline = StreamInferencePipelineConfig(
    name="tiny",
    diffusion_model=DiffusionModelConfig(
        transformer=WanTransformerConfig(network=network, len_t=2, window_size_t=4),
        scheduler=FlowMatchSchedulerConfig(
            num_inference_steps=2, denoising_timesteps=(1000, 500)
        ),
    ),
    spatial_compression_ratio=1,
).setup()
text = jax.random.normal(jax.random.key(1), (2, 8, 16))

def run(where):
    params = pipeline.init_params(jax.random.key(0), sharding=where)
    cache = pipeline.initialize_cache(
        params, conditions=Conditions(text=text), pixel_height=4, pixel_width=6,
        key=jax.random.key(2), sharding=where,
    )
    keys = cache.transformer_cache.kv.keys[0].sharding
    kernel = params["transformer"]["blocks_0"]["self_attn"]["qkv"]["kernel"].sharding
    videos = []
    for _ in range(4):
        cache, video = pipeline.generate(params, cache)
        cache = pipeline.finalize(params, cache)
        videos.append(np.asarray(video))
    return np.stack(videos), keys, kernel

plain, _, _ = run(None)
devices = np.array(jax.devices()).reshape(2, 2)
mesh = Mesh(devices, ("data", "tensor"))
with jax.set_mesh(mesh):
    placed, keys, kernel = run(mesh)
assert keys.spec[0] == ("data",) or keys.spec[0] == "data", keys
assert not keys.is_fully_replicated and not kernel.is_fully_replicated
assert "tensor" in str(kernel.spec) and "tensor" in str(keys.spec), (kernel, keys)
error = np.abs(plain - placed).max() / np.abs(plain).max()
assert error < 1e-5, error
"""


def test_four_devices_make_the_video_of_one():
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": ":".join(sys.path),
    }
    subprocess.run(
        [sys.executable, "-c", _FOUR_DEVICES], check=True, env=environment, timeout=300
    )
