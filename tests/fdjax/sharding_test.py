"""Placement by tables: what is cut, what stays whole, and that the numbers stay."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec, SingleDeviceSharding

from fdjax import sharding
from fdjax.checkpoint.placement import default_sharding
from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig
from tests import tiny
from tests.networks.wan_dit import tiny as wan


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
        (("data", None, "heads"), (4, 5, 6, 7), {"heads": 2}, (None, None, "heads")),
        (("data", None, "heads"), (4,), {"data": 4, "heads": 2}, ("data",)),
        (
            (("heads", "tensor"),),
            (8,),
            {"heads": 2, "tensor": 4},
            (("heads", "tensor"),),
        ),
        ((("heads", "tensor"),), (6,), {"heads": 2, "tensor": 4}, ("heads",)),
        (("tensor",), (5,), {"tensor": 2}, ()),
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


@pytest.mark.parametrize(
    ("path", "dtype", "rank", "cut"),
    [
        ("kv/keys/0", "bfloat16", 4, 2),
        ("transformer_cache/kv/values/11", "float32", 5, 3),
        ("kv/keys/0", "float8_e4m3fn", 4, 2),
        # In 8 bits values end in [N, D, S].
        ("kv/values/0", "float8_e4m3fn", 4, 1),
        ("kv/values/0", "float8_e4m3fn", 5, 2),
        ("high_noise/kv/values/0", "float32", 4, 2),
        ("residue/chunk/0/3", "float32", 4, 2),
        ("kv/num_chunks", "uint32", 1, None),
        ("decoder_cache/0", "float32", 5, None),
    ],
)
def test_heads_of_a_cache_are_cut_wherever_they_are(path, dtype, rank, cut):
    *names, last = path.split("/")
    leaf = jax.ShapeDtypeStruct((4,) * rank, dtype)
    tree = {last: leaf}
    for name in reversed(names):
        tree = {name: tree}
    [spec] = jax.tree.leaves(
        sharding._specs({"sequence": 4}, tree, sharding.CACHE),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    where = [axis for axis, part in enumerate(spec) if "sequence" in (part or ())]
    assert where == ([] if cut is None else [cut])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got '' in ''"),
        ("sequence", "sequence=NUMBER from 1 on"),
        ("sequence=0", "sequence=NUMBER from 1 on"),
        ("sequence=-2", "sequence=NUMBER from 1 on"),
        ("sequence=2,sequence=2", "must be given once"),
        ("rows=2", "has the axes data, guidance, sequence, heads, tensor"),
        ("sequence=2,", "got '' in 'sequence=2,'"),
    ],
)
def test_a_text_that_is_no_mesh_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        sharding.parse_sizes(text)


def test_a_mesh_is_made_of_the_first_devices():
    sizes = sharding.parse_sizes(" data=1, sequence=1")
    assert sizes == {"data": 1, "sequence": 1}
    assert sharding.make_mesh(sizes).devices.flat[0] == jax.devices()[0]
    with pytest.raises(ValueError, match="sequence=64 needs 64 devices, there are"):
        sharding.make_mesh({"sequence": 64})


def test_devices_of_two_kinds_make_no_mesh():
    class Device(NamedTuple):
        device_kind: str

    with pytest.raises(ValueError, match="must be alike, the first 2 are A and B"):
        sharding.make_mesh({"heads": 2}, [Device("B"), Device("A"), Device("C")])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"sequence": 2, "tensor": 2}, "into 4 parts .tensor=2,sequence=2.*number, 2;"),
        ({"guidance": 2}, "guidance=2 must be the number of branches of guidance, 1"),
    ],
)
def test_a_network_says_how_it_cannot_be_cut(sizes, message):
    transformer = WanTransformerConfig(network=wan.CONFIG).setup()
    transformer.check_mesh({"sequence": 2, "guidance": 1, "data": 3})
    with pytest.raises(ValueError, match=message):
        transformer.check_mesh(sizes)


def test_another_network_is_cut_by_sessions_alone():
    transformer = tiny.CONFIG.setup().diffusion_model.transformer
    transformer.check_mesh({"data": 2, "sequence": 1})
    with pytest.raises(ValueError, match=r"sessions alone, .* got sequence, tensor"):
        transformer.check_mesh({"sequence": 2, "tensor": 2})


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
