"""Tables of rules: every key and leaf accounted for, in both directions."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fdjax.checkpoint.tensors import LazyTensor, contiguous, is_finite, is_float
from fdjax_convert import rules
from fdjax_convert.rules import Conversion, Drop, Rule, patterns, transforms
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
    target = make_target()
    target["embed"]["bias"] = jax.ShapeDtypeStruct((6,), np.int64)
    params = rules.convert(source, RULES, target, dtype=ml_dtypes.bfloat16)
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
