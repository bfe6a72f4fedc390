"""Tables of rules: every key and leaf accounted for, in both directions."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fdjax.checkpoint import placement
from fdjax.checkpoint.tensors import LazyTensor, contiguous, is_finite, is_float
from fdjax_convert import rules
from fdjax_convert.rules import Conversion, Drop, Rule, patterns, placing, transforms
from fdjax_convert.rules.problems import ConversionError, summarize

RULES = (
    *rules.layer(r"embed", "embed", transforms.conv_as_matrix(1, 2, 2)),
    *rules.layer(r"blocks\.(\d+)\.ffn\.0", r"blocks_\1/ffn_in"),
    *rules.norm(r"blocks\.(\d+)\.norm", r"blocks_\1/norm"),
    Rule(r"blocks\.(\d+)\.modulation", r"blocks_\1/modulation", transforms.squeeze(0)),
    Rule(
        r"blocks\.(\d+)\.to_qkv\.weight",
        (r"blocks_\1/q/kernel", r"blocks_\1/k/kernel", r"blocks_\1/v/kernel"),
        transforms.chain(transforms.split(3), transforms.each(transforms.LINEAR)),
    ),
    Rule(
        (r"blocks\.(\d+)\.gate\.weight", r"blocks\.(\d+)\.up\.weight"),
        r"blocks_\1/gate_up/kernel",
        transforms.chain(transforms.concatenate(2), transforms.LINEAR),
    ),
    Rule(
        r"head\.weight",
        "head/kernel",
        transforms.chain(
            transforms.regroup((1, 2, 2, -1), (3, 0, 1, 2)), transforms.LINEAR
        ),
    ),
    Rule(r"tied\.weight", "embed/bias", alias=True),
    Rule(r"logvar\..*", Drop("the variance is not used")),
)


def make_checkpoint(dtype=np.float32, num_blocks=2):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(dtype)

    tensors = {
        "embed.weight": draw(6, 3, 1, 2, 2),
        "embed.bias": draw(6),
        "head.weight": draw(8, 6),
        "logvar.weight": draw(3),
    }
    for n in range(num_blocks):
        tensors |= {
            f"blocks.{n}.ffn.0.weight": draw(10, 6),
            f"blocks.{n}.ffn.0.bias": draw(10),
            f"blocks.{n}.norm.weight": draw(6),
            f"blocks.{n}.modulation": draw(1, 6, 6),
            f"blocks.{n}.to_qkv.weight": draw(18, 6),
            f"blocks.{n}.gate.weight": draw(4, 6),
            f"blocks.{n}.up.weight": draw(4, 6),
        }
    return tensors


def make_target(num_blocks=2):
    shapes = {
        "embed": {"kernel": (12, 6), "bias": (6,)},
        "head": {"kernel": (6, 8)},
    }
    for n in range(num_blocks):
        shapes[f"blocks_{n}"] = {
            "ffn_in": {"kernel": (6, 10), "bias": (10,)},
            "norm": {"scale": (6,)},
            "modulation": (6, 6),
            "q": {"kernel": (6, 6)},
            "k": {"kernel": (6, 6)},
            "v": {"kernel": (6, 6)},
            "gate_up": {"kernel": (6, 8)},
        }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def test_values_follow_the_rules():
    source = make_checkpoint()
    params = rules.convert(source, RULES, make_target())
    block = params["blocks_1"]
    np.testing.assert_array_equal(
        block["ffn_in"]["kernel"], source["blocks.1.ffn.0.weight"].T
    )
    q, k, v = np.split(source["blocks.1.to_qkv.weight"], 3)
    np.testing.assert_array_equal(block["q"]["kernel"], q.T)
    np.testing.assert_array_equal(block["k"]["kernel"], k.T)
    np.testing.assert_array_equal(block["v"]["kernel"], v.T)
    np.testing.assert_array_equal(
        block["gate_up"]["kernel"],
        np.concatenate(
            [source["blocks.1.gate.weight"], source["blocks.1.up.weight"]]
        ).T,
    )
    np.testing.assert_array_equal(block["modulation"], source["blocks.1.modulation"][0])
    np.testing.assert_array_equal(
        params["embed"]["kernel"], source["embed.weight"].reshape(6, 12).T
    )
    # Rows (kt, kh, kw, c) with two channels become (c, kt, kh, kw).
    np.testing.assert_array_equal(
        params["head"]["kernel"], source["head.weight"][[0, 2, 4, 6, 1, 3, 5, 7]].T
    )
    target = make_target()
    assert jax.tree.structure(params) == jax.tree.structure(target)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, target)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_round_trip_is_byte_identical(dtype):
    source = make_checkpoint(dtype)
    params = rules.convert(source, RULES, make_target())
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
    restored = rules.to_torch(jax.tree.map(jnp.asarray, params), RULES)
    del source["logvar.weight"]
    assert restored.keys() == source.keys()
    for key, value in source.items():
        assert restored[key].dtype == value.dtype
        assert restored[key].shape == value.shape
        assert restored[key].tobytes() == value.tobytes()


def test_dtype_is_cast_on_request_only():
    source = make_checkpoint() | {"embed.bias": np.arange(6)}
    params = rules.convert(source, RULES, make_target(), dtype=ml_dtypes.bfloat16)
    assert params["head"]["kernel"].dtype == ml_dtypes.bfloat16
    assert params["embed"]["bias"].dtype == np.int64
    expected = source["blocks.0.ffn.0.weight"].T.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(params["blocks_0"]["ffn_in"]["kernel"], expected)


def test_a_cast_that_overflows_is_refused():
    source = make_checkpoint()
    source["head.weight"][3, 2] = 1e5
    rules.convert(source, RULES, make_target(), dtype=ml_dtypes.bfloat16)
    with pytest.raises(ConversionError, match=r"head\.weight: overflows in float16"):
        rules.convert(source, RULES, make_target(), dtype=np.float16)


def test_all_problems_are_in_one_message():
    source = make_checkpoint(num_blocks=6)
    for n in range(6):
        source[f"blocks.{n}.cross.weight"] = np.zeros(3, np.float32)
    del source["embed.bias"], source["blocks.1.gate.weight"]
    source["head.weight"] = np.zeros((8, 7), np.float32)
    source["blocks.0.norm.weight"][2] = np.nan
    source["blocks.1.norm.weight"][0] = -np.inf
    source["blocks.0.to_qkv.weight"] = np.zeros((16, 6), np.float32)
    table = (*RULES, Rule(r"(blocks\.3\.norm)\.weight", r"\1"))
    with pytest.raises(ConversionError) as error:
        rules.convert(source, table, make_target(num_blocks=5))
    text = str(error.value)
    for expected in (
        "blocks.[0-5].cross.weight (6): unknown key",
        "embed/bias: not filled, missing key: embed.bias",
        "blocks.1.gate.weight: missing, needed with blocks.1.up.weight",
        "blocks_1/gate_up/kernel: not filled, missing key: blocks.1.gate.weight",
        "head.weight: shape [8, 7] gives [7, 8], the architecture has [6, 8]",
        "blocks.0.norm.weight: holds NaN or infinite values",
        "blocks.1.norm.weight: holds NaN or infinite values",
        "blocks.0.to_qkv.weight: shape [16, 6] does not suit split(3",
        "blocks.3.norm.weight: matched by several rules",
        "blocks.5.modulation: fills blocks_5/modulation, which does not exist",
    ):
        assert expected in text
    assert f"{len(error.value.problems)} problems" in text


@pytest.mark.parametrize("index", range(len(RULES) - 2))
def test_every_rule_is_needed(index):
    with pytest.raises(ConversionError):
        rules.convert(
            make_checkpoint(), RULES[:index] + RULES[index + 1 :], make_target()
        )


def test_an_alias_fills_in_is_compared_and_is_not_exported():
    source = make_checkpoint()
    bias = source.pop("embed.bias")
    params = rules.convert(source | {"tied.weight": bias}, RULES, make_target())
    np.testing.assert_array_equal(params["embed"]["bias"], bias)
    restored = rules.to_torch(params, RULES)
    assert "tied.weight" not in restored
    np.testing.assert_array_equal(restored["embed.bias"], bias)

    both = source | {"embed.bias": bias, "tied.weight": bias.copy()}
    rules.convert(both, RULES, make_target())
    both["tied.weight"] = bias + 1
    with pytest.raises(ConversionError, match=r"tied\.weight: must equal embed\.bias"):
        rules.convert(both, RULES, make_target())


def test_two_keys_for_one_leaf_are_refused():
    table = (Rule(r"a", "x"), Rule(r"b", "x"))
    source = {"a": np.zeros(2), "b": np.zeros(2)}
    with pytest.raises(
        ConversionError,
        match=r"^the checkpoint does not fit, 1 problem:\n  - x: filled by a and b$",
    ):
        rules.convert(source, table, {"x": jax.ShapeDtypeStruct((2,), np.float32)})


def test_keys_and_shapes_are_checked_before_anything_is_read():
    def refuse():
        raise AssertionError("read too early")

    size = (1 << 15, 1 << 15)  # so large that values are not looked at either
    tensor = LazyTensor(size, np.dtype(np.float32), refuse)
    target = {"x": jax.ShapeDtypeStruct((2, 2), np.float32)}
    with pytest.raises(ConversionError, match=r"the architecture has"):
        Conversion({"a": tensor}, (Rule("a", "x"),), target)


def test_dropped_tensors_are_not_read():
    def refuse():
        raise AssertionError("a dropped tensor was read")

    source = make_checkpoint()
    source["logvar.weight"] = LazyTensor((3,), np.dtype(np.float32), refuse)
    rules.convert(source, RULES, make_target())


def test_tensors_are_read_when_asked_for():
    reads = []

    def lazy(key, value):
        return LazyTensor(value.shape, value.dtype, lambda: reads.append(key) or value)

    source = {key: lazy(key, value) for key, value in make_checkpoint().items()}
    conversion = Conversion(source, RULES, make_target())
    leaves = conversion.lazy_leaves()
    assert not reads
    leaves["embed/kernel"].read()
    assert reads == ["embed.weight"]
    leaves["blocks_1/k/kernel"].read()
    assert reads == ["embed.weight", "blocks.1.to_qkv.weight"]
    conversion.finish()


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.int64, ml_dtypes.bfloat16, np.bool_, np.int8]
)
def test_contiguous_copies_bit_for_bit(dtype):
    rng = np.random.default_rng(0)
    size = np.dtype(dtype).itemsize
    data = rng.integers(0, 2 if dtype is np.bool_ else 256, (4, 6, 5 * size), np.uint8)
    array = data.view(dtype)
    assert contiguous(array) is array
    for view in (array.transpose(2, 0, 1), array[:, ::-2], array[1, :, 2], array[:0].T):
        copy = contiguous(view)
        assert copy.flags.c_contiguous
        assert copy.dtype == array.dtype
        assert copy.tobytes() == np.ascontiguousarray(view).tobytes()


def test_export_names_leaves_that_no_rule_explains():
    params = rules.convert(make_checkpoint(), RULES, make_target())
    del params["blocks_0"]["k"]
    params["extra"] = {"kernel": np.zeros(2)}
    with pytest.raises(ConversionError) as error:
        rules.to_torch(params, RULES)
    assert "extra/kernel: no rule writes it" in str(error.value)
    assert "blocks_0/k/kernel: missing, needed with" in str(error.value)


@pytest.mark.parametrize(
    "source",
    [
        r"blocks.0",
        r"blocks\.\d+",
        r"a+",
        r"(a(b))",
        r"(?:a)b",
        r"(?P<x>a)",
        r"a|b",
        "(a",
    ],
)
def test_patterns_that_cannot_be_inverted_are_refused(source):
    with pytest.raises(ValueError, match=r"pattern|group|parenthesis"):
        patterns.parse_pattern(source)


def test_a_target_must_use_every_group():
    with pytest.raises(ValueError, match=r"each of the 2 groups"):
        Rule(r"a\.(\d+)\.(q|k)", r"a_\1")
    with pytest.raises(ValueError, match=r"equal groups"):
        Rule((r"a\.(\d+)", r"b\.(\w+)"), r"a_\1", transforms.concatenate(2))


def test_groups_with_alternatives_and_repeats():
    rule = Rule(r"net\.(\d+(?:\.x)?)\.(q|k)", r"net_\1/\2/\1")
    params = rules.convert(
        {"net.3.x.k": np.ones(1)}, (rule,), {"net_3.x": {"k": {"3.x": np.ones(1)}}}
    )
    assert rules.to_torch(params, (rule,)).keys() == {"net.3.x.k"}
    assert not re.fullmatch(
        patterns.target_pattern(r"net_\1/\2/\1", (r"\d+", "q|k")), "net_3/q/4"
    )


def test_summaries_fold_numbers():
    keys = [f"blocks.{i}.ffn.{j}.weight" for i in range(5) for j in (0, 2)] + ["head"]
    assert summarize(keys) == ["blocks.[0-4].ffn.[0,2].weight (10)", "head"]
    assert summarize(["a.0", "a.1"]) == ["a.0", "a.1"]


@pytest.mark.parametrize(
    "dtype",
    [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, ml_dtypes.float8_e5m2],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_seen_in_every_layout(dtype, value):
    array = np.zeros((5, 4, 3), dtype)
    array[...] = np.finfo(np.float16).max if dtype is np.float16 else 3e4
    assert is_finite(array)
    assert is_finite(array.T)
    array[4, 1, 2] = value
    for view in (array, array.T, array[:, ::-1], array[4:, 1:2]):
        assert not is_finite(view)
    assert is_finite(array[:4])
    assert is_finite(np.arange(3))
    assert is_finite(np.float32(1)[None][:0])


def test_float_types():
    assert is_float(ml_dtypes.bfloat16)
    assert is_float(np.float64)
    assert not is_float(np.int64)
    assert not is_float(np.bool_)
    assert not is_float(np.complex64)


# --- on the device ----------------------------------------------------------------


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


@pytest.mark.parametrize("dtype", [np.float64, np.int64, ml_dtypes.float8_e4m3fn])
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
