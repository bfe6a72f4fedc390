"""Weights are found among all that stands beside them, and around them, in files."""

import json
import logging

import jax
import numpy as np
import pytest
import safetensors.numpy

from fdjax.checkpoint.errors import CheckpointError
from fdjax_convert import convert as load
from fdjax_convert import inspect, recognise
from fdjax_convert.formats import readers, unwrap
from tests.convert import tiny_components as tiny
from tests.convert import torch_files
from tests.convert.load_test import OFFICIAL, assert_same, make, save

VAE = next(one for one in tiny.ALL if one.architecture == "wan_vae_decoder")
UMT5 = next(one for one in tiny.ALL if one.architecture == "umt5")
X = np.arange(24, dtype=np.float32).reshape(4, 6)
OPTIMIZER = {
    "state": {0: {"exp_avg": X, "step": np.ones((), np.float32)}},
    "param_groups": [{"lr": 1e-3}],
}


@pytest.fixture(scope="module")
def tensors():
    return tiny.published(OFFICIAL)


@pytest.fixture(scope="module")
def expected():
    """What loading the plain file gives."""
    shapes = make(OFFICIAL, "unused").param_shapes()
    return jax.tree.map(
        lambda value, leaf: jax.numpy.asarray(value).astype(leaf.dtype),
        tiny.random_params(tiny.config_of(OFFICIAL)),
        shapes,
    )


def assert_found(path, expected, layout=OFFICIAL):
    assert_same(load.load_params(make(layout, path), str(path)), expected)


PREFIXES = [
    "transformer.",
    "dit.",
    "pipe.dit.",
    "generator.model.",
    "student.",
    "denoiser.",
    "base_model.model.",
    "ema.",
    "net.",
    "_forward_module.",
    "model._fsdp_wrapped_module.",
    "_forward_module._orig_mod.model.diffusion_model.",
    "first_stage_model.",
    "some.name.nobody.knows.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_in_front_of_a_known_layout(tmp_path, tensors, expected, prefix):
    path = save(tmp_path / "a.safetensors", tensors, prefix=prefix)
    assert_found(path, expected)
    opened = recognise.find(path, "wan_dit")
    assert set(opened.tensors) == set(tensors)
    text = inspect.inspect(path)
    assert "Wan 48 wide, 3 blocks T2V" in text
    assert "unknown keys" not in text


BESIDE = [
    {"step": 5, "optimizer": OPTIMIZER},
    {"step": np.zeros((), np.int64)},
    {"rng_state": np.zeros(5056, np.int64), "epoch": 3},
    {"loss": np.ones((), np.float32), "optimizer_states": [OPTIMIZER]},
    {"ema_decay": np.ones((), np.float32), "generator_optimizer": {"x.exp_avg": X}},
    {
        "lr_scheduler": {"last": X},
        "cuda_rng_state": X,
        "global_step": np.ones((), np.float32),
    },
]
WRAPPERS = ["model_state_dict", "state_dict", "model", "ema", "generator", "module"]


@pytest.mark.parametrize("wrapper", [*WRAPPERS, "model_ema", "dit", "my_weights"])
@pytest.mark.parametrize("beside", BESIDE, ids=lambda beside: "+".join(beside))
def test_wrappers_beside_what_a_trainer_keeps(tmp_path, tensors, wrapper, beside):
    path = torch_files.save(tmp_path / "a.pt", {**beside, wrapper: tensors})
    opened = recognise.find(path, "wan_dit")
    assert set(opened.tensors) == set(tensors)
    assert opened.wrapper == (wrapper,)
    assert not opened.alternatives
    assert {one.partition(":")[0] for one in opened.skipped} == set(beside)


def test_a_tensor_beside_flat_weights(tmp_path, tensors, expected):
    loose = {"step": np.ones((), np.float32), "rng_state": np.zeros(9, np.float32)}
    state = {f"optimizer.state.{i}.exp_avg": X for i in range(3)}
    path = save(tmp_path / "a.safetensors", tensors | loose | state)
    assert_found(path, expected)


SETS = [
    ("model", "model_ema"),
    ("state_dict", "state_dict_ema"),
    ("state_dict", "ema_state_dict"),
    ("model", "ema"),
    ("generator", "generator_ema"),
    ("net", "ema_model"),
    ("params", "params_ema"),
    ("module", "ema"),
]


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize(("plain", "averaged"), SETS)
def test_of_two_sets_the_averaged_one_is_taken_and_it_is_said(
    tmp_path, tensors, expected, caplog, plain, averaged, flat
):
    other = {key: value + 1 for key, value in tensors.items()}
    if flat:
        path = save(
            tmp_path / "a.safetensors",
            {f"{plain}.{key}": value for key, value in other.items()}
            | {f"{averaged}.{key}": value for key, value in tensors.items()},
        )
    else:
        path = torch_files.save(tmp_path / "a.pt", {plain: other, averaged: tensors})
    with caplog.at_level(logging.WARNING):
        assert_found(path, expected)
    [record] = caplog.records
    text = record.getMessage()
    assert f"holds several sets of weights: {averaged} is taken, not {plain}" in text
    report = inspect.inspect(path)
    assert f"{averaged}; the file also holds {plain}: --wrapper takes" in report
    opened = readers.open_checkpoint(path, plain)
    np.testing.assert_array_equal(
        opened.tensors["head.head.bias"].read(), other["head.head.bias"]
    )


def test_a_named_wrapper_is_entered_to_the_weights(tmp_path, tensors):
    beside = {"step": np.ones((), np.float32), "optimizer": OPTIMIZER}
    run = {**beside, "model": tensors | beside}
    path = torch_files.save(tmp_path / "a.pt", {"run.1": run, "run.2": run, "x": X})
    opened = readers.open_checkpoint(path, "run.2")
    assert opened.wrapper == ("run.2", "model")
    assert set(opened.tensors) == set(tensors)
    assert readers.open_checkpoint(path, "run.1.model").wrapper == ("run.1", "model")
    for wrapper in ("run.3", "x", "run.1.modell", "."):
        with pytest.raises(CheckpointError, match="has no entry"):
            readers.open_checkpoint(path, wrapper)


def test_averages_whose_names_have_lost_their_dots_are_left_out(
    tmp_path, tensors, expected
):
    """Latent Diffusion's `LitEma` names its buffers without dots."""
    averaged = {f"model_ema.{key.replace('.', '')}": v for key, v in tensors.items()}
    plain = {f"model.diffusion_model.{key}": value for key, value in tensors.items()}
    path = save(tmp_path / "a.safetensors", plain | averaged)
    assert_found(path, expected)


def test_two_sets_without_a_usual_name_need_a_choice(tmp_path, tensors):
    content = {
        f"{a}.{k}": v for a in ("student", "teacher") for k, v in tensors.items()
    }
    path = save(tmp_path / "a.safetensors", content)
    with pytest.raises(CheckpointError, match=r"with --wrapper: student, teacher"):
        recognise.find(path, "wan_dit")
    assert set(recognise.find(path, "wan_dit", "teacher").tensors) == set(tensors)
    with pytest.raises(CheckpointError, match=r"no entry 'x'; .* are: student, teach"):
        recognise.find(path, "wan_dit", "x")


@pytest.mark.parametrize("nested", [False, True])
def test_all_in_one_files_have_every_part(tmp_path, tensors, expected, nested):
    parts = {
        "model.diffusion_model": tensors,
        "first_stage_model": tiny.published(VAE),
        "text_encoders.umt5xxl.transformer": tiny.published(UMT5),
    }
    if nested:
        path = torch_files.save(
            tmp_path / "a.pt",
            {key.partition(".")[0]: part for key, part in parts.items()},
        )
    else:
        flat = {
            f"{name}.{k}": v for name, part in parts.items() for k, v in part.items()
        }
        path = save(tmp_path / "a.safetensors", flat)
    assert_found(path, expected)
    for layout in (VAE, UMT5):
        opened = recognise.find(path, layout.architecture)
        assert set(opened.tensors) == set(tiny.published(layout))
    text = inspect.inspect(path)
    assert "Wan 48 wide" in text
    assert "under first_stage_model." in text
    assert "unknown keys" not in text


@pytest.mark.parametrize("name", [one.name for one in tiny.ALL if one.name != "big"])
def test_a_prefix_does_not_hide_or_double_a_layout(tmp_path, name):
    layout = next(one for one in tiny.ALL if one.name == name)
    path = save(tmp_path / "a.safetensors", tiny.published(layout), prefix="x.y.")
    parts = recognise.describe_parts(readers.open_checkpoint(path))
    assert [part.layout for part, _ in parts] == [layout]
    assert [part.prefix for part, _ in parts] == ["x.y."]


def test_the_tokenizer_in_a_text_encoder(tmp_path):
    packed = {"spiece_model": np.zeros(100, np.uint8)}
    path = save(tmp_path / "a.safetensors", tiny.published(UMT5) | packed)
    opened = recognise.find(path, "umt5")
    recognise.match(opened, make(UMT5, path))
    assert "the tokenizer as bytes" in inspect.inspect(path)


# --- folders ----------------------------------------------------------------------


def test_neighbours_that_are_no_checkpoints(tmp_path, tensors, expected):
    save(tmp_path / "model.safetensors", tensors)
    (tmp_path / "._model.safetensors").write_bytes(b"\0\5\26\7")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.safetensors").write_bytes(b"x")
    for name in (
        "optimizer.pt",
        "optimizer_0.bin",
        "training_args.bin",
        "scheduler.pt",
        "rng_state_0.pth",
        "rng_state.pth",
        "scaler.pt",
        "random_states_0.pt",
    ):
        (tmp_path / name).write_bytes(b"\x80\x04\x95 a pickle")
    assert_found(tmp_path, expected)
    assert readers.open_checkpoint(tmp_path).path.name == "model.safetensors"
    # One that looks like a checkpoint and is none is passed over, too.
    (tmp_path / "broken.pth").write_bytes(b"<html>")
    torch_files.save(tmp_path / "other.pt", {"w": X})
    assert_found(tmp_path, expected)
    assert f"unreadable: {tmp_path}/broken.pth is neither" in inspect.inspect(tmp_path)


def test_what_cannot_be_read_is_told_if_nothing_is_found(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"<html>")
    (tmp_path / "b.pth").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of wan_dit; it holds a"
    ) as e:
        recognise.find(tmp_path, "wan_dit")
    assert "web page" in str(e.value)
    assert "is empty" in str(e.value)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_without_an_index(tmp_path, tensors, expected, ending):
    keys = list(tensors)
    for number in range(3):
        part = {key: tensors[key] for key in keys[number::3]}
        path = tmp_path / f"model-{number + 1:05}-of-00003.{ending}"
        if ending == "bin":
            torch_files.save(path, part)
        else:
            safetensors.numpy.save_file(part, path)
    assert_found(tmp_path, expected)
    assert_found(path, expected)  # one stands for all
    assert len(readers.open_checkpoint(tmp_path).files) == 3
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of them are missing .*: model-00003"
    ):
        readers.open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc/passwd", "../x", None, 3])
def test_a_shard_is_a_file_beside_the_index(tmp_path, name):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="not a file beside it"):
        readers.open_checkpoint(index)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"weight_map":' * 5000, '{"weight_map": {"a": "b", "a": "c"}}'],
)
def test_an_index_that_is_too_deep_or_doubtful(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": 1, "x": ' + text if text[0] == "[" else text)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        readers.open_checkpoint(index)


# --- names of sets ----------------------------------------------------------------


def test_the_order_of_names():
    order = [
        "generator_ema",
        "ema",
        "state_dict_ema",
        "model_ema",
        "generator",
        "model",
    ]
    assert sorted(reversed(order), key=unwrap.rank) == order
    for name in ("critic_ema", "discriminator", "emancipate", ""):
        assert unwrap.rank(name) is None
