"""What is written has been read back, under any path, and is labelled as what it is."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checkpoint
from fdjax.checkpoint import orbax_format, safetensors_format
from fdjax.checkpoint.metadata import Metadata
from tests.fdjax.checkpoint.checkpoint_test import PATHS, Other, assert_same, make

ODD = [
    "a[1]",
    "a[b",
    "a]b",
    "[!a]",
    "a\\d",
    "a\\",
    "a*b",
    "a?b",
    "a`b`",
    "a#b",
    "c%20d",
    "sp ace",
    " lead",
    "new\nline",
    "-c",
    "--overwrite",
    "ünï 日本 😀",
    "12:30",
    "gs:x",
    "{a,b}",
    "$HOME",
    "it's",
    "\udcff",
    ".hidden",
    "a.b.c",
]


@pytest.mark.parametrize("ending", ["", ".safetensors"])
@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_odd_paths(tmp_path, name, ending):
    component = make()
    params = component.init_params(jax.random.key(0))
    for folder in (tmp_path, tmp_path / name):
        path = folder / "sub" / (name + ending)
        written = checkpoint.save(path, params, component=component)
        assert checkpoint.read_metadata(path) == written
        assert_same(checkpoint.restore(path, component=component), params)
        _, lazy = checkpoint.open_lazily(path)
        np.testing.assert_array_equal(
            lazy["fc1"]["kernel"].read(), params["fc1"]["kernel"]
        )
        assert os.listdir(folder / "sub") == [name + ending]


@pytest.mark.parametrize("name", PATHS)
def test_what_cannot_be_read_back_is_not_kept(tmp_path, monkeypatch, name):
    def refuse(path, leaves):
        raise RuntimeError("NOT_FOUND: nothing here\nand more")

    params = make().init_params(jax.random.key(0))
    for module in (orbax_format, safetensors_format):
        monkeypatch.setattr(module, "read_back", refuse)
    with pytest.raises(ValueError, match=r"cannot be read back .*\(NOT_FOUND: nothing"):
        checkpoint.save(tmp_path / name, params)
    assert os.listdir(tmp_path) == []


def test_reading_back_sees_names_shapes_and_types(tmp_path):
    leaf = jax.ShapeDtypeStruct((2, 3), np.float32)
    orbax_format.write_orbax(tmp_path / "p", {"a": {"b": np.ones((2, 3), np.float32)}})
    orbax_format.read_back(tmp_path / "p", {"a/b": leaf})
    for wrong in (
        {"a/c": leaf},
        {"a/b": leaf, "a/c": leaf},
        {},
        {"a/b": jax.ShapeDtypeStruct((3, 2), np.float32)},
        {"a/b": jax.ShapeDtypeStruct((2, 3), np.float16)},
    ):
        with pytest.raises(ValueError, match="differ"):
            orbax_format.read_back(tmp_path / "p", wrong)


# --- labels -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_params_must_be_those_of_the_component(tmp_path, name):
    component = make()
    params = component.init_params(jax.random.key(0))
    path = tmp_path / name
    with pytest.raises(ValueError, match=r"the Mlp .* its part, params\['dec'\]"):
        checkpoint.save(path, {"dec": params, "x": params["fc1"]}, component=component)
    with pytest.raises(ValueError, match=r"give its own parameters, or save without"):
        checkpoint.save(path, {"x": params["fc1"]}, component=component)
    wider = make(width=8).init_params(jax.random.key(0))
    with pytest.raises(ValueError, match=r"fc1/kernel is \[4, 8\] there, \[4, 5\]"):
        checkpoint.save(path, wider, component=component)
    partial = params | {"fc1": {"kernel": params["fc1"]["kernel"]}}
    with pytest.raises(ValueError, match="fc1/bias is missing"):
        checkpoint.save(path, partial, component=component)
    assert os.listdir(tmp_path) == []
    # Another type of the same weights is fine, and so is no component.
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    checkpoint.save(path, half, component=component)
    checkpoint.save(tmp_path / f"all-{name}", {"dec": params, "x": params["fc1"]})


def test_a_component_of_another_kind_with_equal_shapes_keeps_its_label(tmp_path):
    other = Other(make().config)
    params = make().init_params(jax.random.key(0))
    assert checkpoint.save(tmp_path / "p", params, component=other).architecture == (
        "other"
    )


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.bool_, jnp.complex64, jnp.int32])
@pytest.mark.parametrize("name", PATHS)
def test_no_integers_in_the_place_of_floats(tmp_path, name, dtype):
    component = make()
    params = component.init_params(jax.random.key(0))
    params["fc1"]["bias"] = params["fc1"]["bias"].astype(dtype)
    with pytest.raises(ValueError, match=r"fc1/bias holds .*quantised checkpoint"):
        checkpoint.save(tmp_path / name, params, component=component)
    checkpoint.save(tmp_path / name, params)
    with pytest.raises(ValueError, match=r"fc1/bias holds .*quantised checkpoint"):
        checkpoint.restore(tmp_path / name, component=component)


# --- metadata ---------------------------------------------------------------------

GOOD = {
    "format": 1,
    "architecture": "mlp",
    "config": {"a": [1, None]},
    "shapes": {"a/b": [2, 3]},
    "dtypes": {"a/b": "bfloat16"},
    "source": {},
    "files": {"params/x": 3},
}
BAD = {
    "no object": "[1]",
    "a number": "3",
    "no JSON": "{",
    "deep": "[" * 100_000,
    "deep config": json.dumps(GOOD).replace("[1, null]", "[" * 900 + "]" * 900),
    "deep source": json.dumps(GOOD).replace('"source": {', '"source": {"a":' * 200_000),
    "twice": json.dumps(GOOD).replace('"format": 1,', '"format": 1, "format": 1,'),
    "nan": json.dumps(GOOD).replace("3}", "NaN}"),
    "long number": json.dumps(GOOD).replace("3}", "9" * 5000 + "}"),
} | {
    f"{name} {value!r:.30}": json.dumps(GOOD | {name: value})
    for name, values in {
        "shapes": (
            None,
            [],
            {"a/b": None},
            {"a/b": [2.0]},
            {"a/b": [True]},
            {"a/b": [-1]},
            {"a/b": [1 << 63]},
            {"a/b": [1] * 100},
            {"a/b": {"2": 3}},
            {"a/b": "23"},
            {},
        ),
        "dtypes": (
            None,
            {},
            {"a/b": None},
            {"a/b": "float99"},
            {"a/b": "object"},
            {"a/b": 3},
            {"a/b": "f4"},
            {"a/c": "float32"},
        ),
        "source": (None, 3, [1]),
        "files": (None, {"a": "b"}, {"a": -1}, {"a": None}),
        "architecture": (None, 3, {}),
        "format": (None, "1", 2, [1] * 10_000),
    }.items()
    for value in values
}


def test_metadata_that_is_as_it_should_be():
    found = Metadata.from_json(json.dumps(GOOD))
    assert found.shapes == {"a/b": (2, 3)}
    assert found.num_bytes == 12


@pytest.mark.parametrize("missing", [name for name in GOOD if name != "format"])
def test_metadata_with_a_field_missing(missing):
    with pytest.raises(ValueError, match=f"it lacks {missing}"):
        Metadata.from_json(json.dumps({k: v for k, v in GOOD.items() if k != missing}))


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_damaged_metadata_is_named_in_one_error(tmp_path, name, kind):
    path = tmp_path / "p"
    if kind == "directory":
        path.mkdir()
        (path / "fdjax.json").write_text(BAD[name])
    else:
        header = json.dumps({"__metadata__": {"fdjax": BAD[name]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (checkpoint.read_metadata, checkpoint.restore, checkpoint.open_lazily):
        with pytest.raises(ValueError, match="p is damaged, its metadata") as error:
            read(path)
        assert len(str(error.value)) < 1000
    assert not checkpoint.is_intact(path)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {"dtype": "F32", "shape": [1]},
        {"dtype": 3, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": None, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [None], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1], "data_offsets": "04"},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    ],
)
def test_broken_headers_are_no_checkpoint(tmp_path, entry):
    path = tmp_path / "p.safetensors"
    header = json.dumps({"a/b": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    assert checkpoint.read_metadata(path) is None
    with pytest.raises(ValueError, match="no complete checkpoint"):
        checkpoint.restore(path)
    with pytest.raises(ValueError, match="not a valid safetensors file"):
        safetensors_format.read_safetensors(path)
