"""Leaves made on the device: equal to those of the host, and the heads of attention."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fdjax.checkpoint import placement
from fdjax_convert import rules
from fdjax_convert.rules import Conversion, Rule, placing, transforms
from fdjax_convert.rules.problems import ConversionError
from tests.convert.rules_test import RULES, make_checkpoint, make_target


@pytest.fixture(params=["host", "device"])
def where(request, monkeypatch):
    """Where leaves are made: as if all were small, or none."""
    monkeypatch.setattr(
        placing, "_SMALL", {"host": 1 << 30, "device": 0}[request.param]
    )


def place(source, table, target):
    shardings = placement.leaf_shardings(target, None)
    return placing.place(Conversion(source, table, target), shardings)


@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_is_placed_is_what_is_converted(where, dtype, wanted):
    source, target = make_checkpoint(dtype), make_target()
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, wanted), target)
    placed = place(source, RULES, target)
    converted = rules.convert(source, RULES, target)
    assert jax.tree.structure(placed) == jax.tree.structure(converted)
    for a, b in zip(jax.tree.leaves(placed), jax.tree.leaves(converted), strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == wanted
        np.testing.assert_array_equal(a, b.astype(wanted))


@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.float8_e4m3fn])
def test_other_types_are_placed_too(where, dtype):
    source = {"a": np.arange(6).reshape(2, 3).astype(dtype)}
    target = {"x": jax.ShapeDtypeStruct((3, 2), np.float32)}
    placed = place(source, (Rule("a", "x", transforms.LINEAR),), target)
    np.testing.assert_array_equal(placed["x"], np.arange(6.0).reshape(2, 3).T)


def test_bad_values_are_named_after_all_are_placed(where):
    source = make_checkpoint()
    source["blocks.0.norm.weight"][2] = np.nan
    source["blocks.1.up.weight"][0] = np.inf
    source["head.weight"][0, 0] = 1e5
    target = make_target()
    half = jax.ShapeDtypeStruct((6, 8), np.float16)
    target["head"]["kernel"] = half
    with pytest.raises(ConversionError) as error:
        place(source, RULES, target)
    assert set(error.value.problems) == {
        "blocks.0.norm.weight: holds NaN or infinite values",
        "blocks.1.up.weight: holds NaN or infinite values",
        "head.weight: overflows in float16",
    }


def test_an_alias_is_compared_when_it_is_placed(where):
    source = make_checkpoint()
    source["tied.weight"] = source["embed.bias"] + 1
    with pytest.raises(ConversionError, match=r"tied\.weight: must equal embed\.bias"):
        place(source, RULES, make_target())


@pytest.mark.parametrize(
    ("dtypes", "joined"),
    [
        ((ml_dtypes.bfloat16, np.float32), np.float32),
        ((ml_dtypes.bfloat16, np.float16), np.float32),
        ((ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16), np.float32),
        ((np.float16, np.float16), np.float16),
    ],
)
def test_a_group_of_several_types_is_joined_in_one_that_holds_all(
    where, dtypes, joined
):
    values = np.array([[1.5, -0.25], [96.0, 0.0]])
    gate, up = (values.astype(dtype) for dtype in dtypes)
    table = (Rule(("a", "b"), "x", transforms.concatenate(2)),)
    target = {"x": jax.ShapeDtypeStruct((4, 2), np.float32)}
    params = rules.convert({"a": gate, "b": up}, table, target)
    assert params["x"].dtype == joined
    np.testing.assert_array_equal(params["x"], np.concatenate([values, values]))
    placed = place({"a": gate, "b": up}, table, target)
    np.testing.assert_array_equal(placed["x"], params["x"])


# --- heads ------------------------------------------------------------------------

HEADS = tuple(
    Rule(
        tuple(rf"(\d+)\.{name}\.{kind}" for name in "qkv"),
        rf"layers_\1/qkv/{leaf}",
        transforms.stack_heads(3),
    )
    for kind, leaf in (("weight", "kernel"), ("bias", "bias"))
)


def make_heads(num_heads=2, head_dim=3, width=5):
    rng = np.random.default_rng(0)
    rows = num_heads * head_dim
    source = {
        f"0.{name}.{kind}": rng.standard_normal(shape).astype(ml_dtypes.bfloat16)
        for name in "qkv"
        for kind, shape in (("weight", (rows, width)), ("bias", (rows,)))
    }
    shapes = {
        "kernel": (width, 3, num_heads, head_dim),
        "bias": (3, num_heads, head_dim),
    }
    leaves = {k: jax.ShapeDtypeStruct(s, jnp.bfloat16) for k, s in shapes.items()}
    return source, {"layers_0": {"qkv": leaves}}


@pytest.mark.parametrize("get", [rules.convert, place])
def test_heads_are_stacked_and_unstacked(where, get):
    source, target = make_heads()
    order = (source, HEADS, target)
    found = get(*order)["layers_0"]["qkv"]
    for number, name in enumerate("qkv"):
        for head in range(2):
            rows = slice(3 * head, 3 * head + 3)
            np.testing.assert_array_equal(
                found["kernel"][:, number, head], source[f"0.{name}.weight"][rows].T
            )
            np.testing.assert_array_equal(
                found["bias"][number, head], source[f"0.{name}.bias"][rows]
            )
    back = rules.to_torch({"layers_0": {"qkv": found}}, HEADS)
    assert back.keys() == source.keys()
    for key, value in source.items():
        assert back[key].tobytes() == value.tobytes()


def test_the_leaf_says_how_many_heads_there_are():
    (two, _), (_, three) = make_heads(2, 6), make_heads(3, 4)
    found = rules.convert(two, HEADS, three)["layers_0"]["qkv"]["kernel"]
    rows = two["0.v.weight"][4:8]
    np.testing.assert_array_equal(found[:, 2, 1], rows.T)
    _, wrong = make_heads(3, 3)
    with pytest.raises(ConversionError) as error:
        rules.convert(two, HEADS, wrong)
    text = (
        "shape [12, 5], [12, 5], [12, 5] does not suit stack_heads(3): axis 0 must be"
    )
    assert f"0.q.weight: {text} 3 heads of 3, shape (12, 5)" in error.value.problems


def test_fused_projections_are_split_into_heads():
    source, target = make_heads()
    fused = np.concatenate([source[f"0.{name}.weight"] for name in "qkv"])
    transform = transforms.chain(transforms.split(3), transforms.stack_heads(3))
    kernel = target["layers_0"]["qkv"]["kernel"]
    table = (Rule("qkv", "kernel", transform),)
    found = rules.convert({"qkv": fused}, table, {"kernel": kernel})
    expected = rules.convert(source, HEADS, target)["layers_0"]["qkv"]["kernel"]
    np.testing.assert_array_equal(found["kernel"], expected)
    assert rules.to_torch(found, table)["qkv"].tobytes() == fused.tobytes()
    with pytest.raises(ValueError, match="only the last transform"):
        transforms.chain(transforms.stack_heads(3), transforms.LINEAR)
