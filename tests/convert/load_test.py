"""Published checkpoints of every layout to fdjax's format and back, and mix-ups."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from fdjax import checkpoint
from fdjax_convert import convert as load
from fdjax_convert.formats import readers
from fdjax_convert.methods import Candidate
from fdjax_convert.rules.problems import CheckpointError, ConversionError
from fdjax_convert.tables import layouts
from tests.convert import tiny_components as tiny
from tests.convert import torch_files

LAYOUT_IDS = [f"{layout.architecture}-{layout.name}" for layout in tiny.ALL]
OFFICIAL = next(one for one in tiny.ALL if one.architecture == "wan_dit")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


def save(path, tensors, wrapper=(), prefix=""):
    """Writes a checkpoint by other means than the package's own writers."""
    content = {prefix + key: value for key, value in tensors.items()}
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(content, path)
        return path
    for name in reversed(wrapper):
        content = {name: content}
    return torch_files.save(path, content)


def make(layout, path, **fields):
    config = tiny.config_of(layout)
    if layout.architecture == "umt5":
        fields["tokenizer_path"] = "unused"
    return dataclasses.replace(config, checkpoint_path=str(path), **fields).setup()


def candidates(component):
    return (Candidate("tiny", "part", component),)


def assert_bytes(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        assert found[key].tobytes() == value.tobytes(), key


def read(path):
    return {k: t.read() for k, t in readers.open_checkpoint(path).tensors.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", tiny.ALL, ids=LAYOUT_IDS)
def test_every_layout_there_and_back(tmp_path, layout, dtype):
    tensors = tiny.published(layout, dtype)
    assert [one for one in layouts.detect(tensors)] == [layout]
    wrapper, prefix = ("generator_ema",), "model._fsdp_wrapped_module."
    path = save(tmp_path / "a.pt", tensors, wrapper, prefix)
    component = make(layout, path)
    metadata = load.convert(
        str(path), tmp_path / "out", components=candidates(component)
    )
    assert metadata.dtype == dtype
    assert metadata.source["layout"] == layout.name
    assert len(metadata.source["sha256"]) == 64

    restored = checkpoint.restore(tmp_path / "out")
    expected = tiny.random_params(tiny.config_of(layout), dtype)
    flat = flax.traverse_util.flatten_dict(expected, sep="/")
    arrays = flax.traverse_util.flatten_dict(restored, sep="/")
    assert_bytes({key: np.asarray(value) for key, value in arrays.items()}, flat)

    load.write_torch(tmp_path / "out", tmp_path / "back.safetensors")
    assert_bytes(read(tmp_path / "back.safetensors"), tensors)
    if dtype == "bfloat16":
        return
    load.write_torch(tmp_path / "out", tmp_path / "back.pt", wrapped=True)
    back = readers.open_checkpoint(tmp_path / "back.pt")
    assert (back.wrapper, back.prefix) == (wrapper, prefix)
    assert_bytes(read(tmp_path / "back.pt"), tensors)


def test_one_layout_can_be_written_as_another(tmp_path):
    diffusers = next(one for one in tiny.ALL if one.name == "diffusers")
    path = save(tmp_path / "a.safetensors", tiny.published(OFFICIAL))
    component = make(OFFICIAL, path)
    load.convert(str(path), tmp_path / "out", components=candidates(component))
    target = tmp_path / "b.safetensors"
    load.write_torch(tmp_path / "out", target, layout="diffusers")
    assert_bytes(read(target), tiny.published(diffusers))
    with pytest.raises(ValueError, match=r"one of official, diffusers, fastvideo; got"):
        load.write_torch(tmp_path / "out", tmp_path / "c.pt", layout="comfy")
    with pytest.raises(ValueError, match=r"must end in \.safetensors, \.pt"):
        load.write_torch(tmp_path / "out", tmp_path / "c.bin")


def test_dtype_is_cast_on_request(tmp_path):
    tensors = tiny.published(OFFICIAL)
    path = save(tmp_path / "a.safetensors", tensors)
    component = make(OFFICIAL, path)
    metadata = load.convert(
        str(path),
        tmp_path / "out",
        components=candidates(component),
        dtype=ml_dtypes.bfloat16,
    )
    assert metadata.dtype == "bfloat16"
    load.write_torch(tmp_path / "out", tmp_path / "b.safetensors")
    cast = {key: value.astype(ml_dtypes.bfloat16) for key, value in tensors.items()}
    assert_bytes(read(tmp_path / "b.safetensors"), cast)


def test_runners_convert_once_and_keep_the_result(tmp_path, cache, monkeypatch):
    path = save(tmp_path / "a.safetensors", tiny.published(OFFICIAL))
    component = make(OFFICIAL, path)
    params = component.load_params()
    expected = tiny.random_params(tiny.config_of(OFFICIAL))
    for a, b, leaf in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(expected),
        jax.tree.leaves(component.param_shapes()),
        strict=True,
    ):
        assert isinstance(a, jax.Array)
        assert a.dtype == leaf.dtype
        np.testing.assert_array_equal(a, b.astype(leaf.dtype))
    [kept] = [child for child in cache.iterdir() if child.is_dir()]
    assert checkpoint.read_metadata(kept).dtype == "float32"  # as published

    converted = []
    write = load.write
    monkeypatch.setattr(
        load, "write", lambda *a, **k: converted.append(1) or write(*a, **k)
    )
    component.load_params()
    make(OFFICIAL, path, window_size_t=42).load_params()  # the weights are the same
    assert not converted
    next(kept.glob("params/ocdbt.process_0/d/*")).unlink()
    component.load_params()  # a damaged one is made again
    assert len(converted) == 1
    save(path, tiny.published(OFFICIAL, "bfloat16"))
    component.load_params()  # another file under the same name
    assert len(converted) == 2


def test_a_converted_directory_is_a_checkpoint_path(tmp_path, cache):
    path = save(tmp_path / "a.safetensors", tiny.published(OFFICIAL))
    component = make(OFFICIAL, path)
    load.convert(str(path), tmp_path / "out", components=candidates(component))
    make(OFFICIAL, tmp_path / "out").load_params()
    assert not cache.exists()


def test_architectures_of_others_are_left_to_others(tmp_path):
    component = make(OFFICIAL, tmp_path / "x")

    class Foreign(type(component)):
        architecture = "foreign"

    assert load.load_params(Foreign(component.config), "hf://owner/repo/x") is None


def test_folders_hold_one_checkpoint_of_each_kind(tmp_path):
    vae = next(one for one in tiny.ALL if one.architecture == "wan_vae_decoder")
    save(tmp_path / "diffusion.safetensors", tiny.published(OFFICIAL))
    save(tmp_path / "Wan2.1_VAE.pth", tiny.published(vae))
    make(OFFICIAL, tmp_path).load_params()
    make(vae, tmp_path).load_params()
    clip = next(one for one in tiny.ALL if one.architecture == "clip")
    with pytest.raises(CheckpointError, match=r"no checkpoint of clip; it holds Wan2"):
        make(clip, tmp_path).load_params()
    (tmp_path / "transformer").mkdir()
    save(tmp_path / "transformer" / "b.safetensors", tiny.published(OFFICIAL))
    with pytest.raises(CheckpointError, match=r"several checkpoints of wan_dit, name"):
        make(OFFICIAL, tmp_path).load_params()


# --- what does not fit ------------------------------------------------------------


def test_another_size_is_recognised(tmp_path):
    wide = dataclasses.replace(tiny.DIT, dim=96, num_heads=4)
    path = save(tmp_path / "a.safetensors", tiny.published(OFFICIAL))
    component = make(OFFICIAL, path, network=wide)
    expected = "a.safetensors is Wan 48 wide, 3 blocks T2V; you asked for Wan 96 wide"
    with pytest.raises(ConversionError, match=expected) as error:
        component.load_params()
    assert "blocks.0.modulation: shape [1, 6, 48] gives" in str(error.value)


def test_published_sizes_have_names(tmp_path):
    """The words of the error for the real 14B and 1.3B networks, without weights."""
    from fdjax_convert import recognise
    from fdjax_convert.rules.rules import export
    from fdjax_models.networks.wan_dit.config import WAN_1_3B, WAN_14B_I2V
    from fdjax_models.networks.wan_dit.image_conditioning import Concatenate
    from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig

    i2v = WanTransformerConfig(network=WAN_14B_I2V, image_conditioning=(Concatenate(),))
    tensors = export(i2v.setup().param_shapes(), OFFICIAL.rules)
    opened = readers.Checkpoint(tmp_path / "x.safetensors", (), tensors)
    small = WanTransformerConfig(network=WAN_1_3B).setup()
    with pytest.raises(
        ConversionError, match=r"is Wan 14B I2V; you asked for Wan 1\.3B T2V"
    ):
        recognise.match(opened, small)


@pytest.mark.parametrize("layout", tiny.ALL, ids=LAYOUT_IDS)
def test_mixed_up_files_are_recognised(tmp_path, layout):
    """A file of any layout, given to a component of any other architecture."""
    path = save(tmp_path / "a.safetensors", tiny.published(layout))
    expected = r"a\.safetensors is .*you asked for"
    for config in tiny.CONFIGS.values():
        component = config.setup()
        if component.architecture != layout.architecture:
            with pytest.raises(CheckpointError, match=expected):
                load.load_params(component, str(path))


def test_unknown_files_are_described_by_their_keys(tmp_path):
    path = save(
        tmp_path / "a.safetensors",
        {f"unet.{i}.w": np.ones(2, np.float32) for i in range(9)},
    )
    with pytest.raises(
        CheckpointError,
        match=r"is nothing that fdjax knows, 9 tensors: unet\.\[0-8\]\.w",
    ):
        make(OFFICIAL, path).load_params()


def test_a_damaged_table_of_keys_gets_all_its_problems(tmp_path, cache):
    tensors = tiny.published(OFFICIAL)
    del tensors["head.head.weight"]  # what the layout is detected by
    tensors["blocks.1.extra"] = np.ones(3, np.float32)
    tensors["blocks.2.norm3.weight"] = np.full(48, np.nan, np.float32)
    path = save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ConversionError) as error:
        make(OFFICIAL, path).load_params()
    text = str(error.value)
    assert "a.safetensors does not fit Wan 48 wide, 3 blocks T2V (official" in text
    assert "head/proj/kernel: not filled, missing key: head.head.weight" in text
    assert "blocks.1.extra: unknown key" in text
    assert "blocks.2.norm3.weight: holds NaN" in text
    assert len(error.value.problems) == 3
    assert not cache.exists()


def test_nan_weights_are_named_and_nothing_is_kept(tmp_path, cache):
    tensors = tiny.published(OFFICIAL, "bfloat16")
    for key in ("blocks.0.ffn.0.weight", "blocks.2.self_attn.k.bias"):
        tensors[key] = tensors[key].copy()
        tensors[key].reshape(-1)[-1] = np.nan
    path = save(tmp_path / "a.pt", tensors)
    with pytest.raises(ConversionError) as error:
        make(OFFICIAL, path).load_params()
    assert error.value.problems == (
        "blocks.0.ffn.0.weight: holds NaN or infinite values",
        "blocks.2.self_attn.k.bias: holds NaN or infinite values",
    )
    assert [child.suffix for child in cache.iterdir()] == [".lock"]


def test_a_file_that_is_not_what_the_hub_states_is_refused(tmp_path, cache):
    blob = tmp_path / ("ab" * 32)  # a blob of the hub's cache is named by its sha256
    save(tmp_path / "a.safetensors", tiny.published(OFFICIAL)).rename(blob)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    with pytest.raises(
        CheckpointError, match=r"corrupt: its sha256 must be abab.*, is"
    ):
        make(OFFICIAL, link).load_params()
    assert [child.suffix for child in cache.iterdir()] == [".lock"]


def test_a_full_disk_during_a_conversion_leaves_nothing(tmp_path, cache, monkeypatch):
    path = save(tmp_path / "a.safetensors", tiny.published(OFFICIAL))
    contiguous, calls = load.contiguous, []

    def fill(array):
        calls.append(1)
        if len(calls) == 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return contiguous(array)

    with monkeypatch.context() as patch:
        patch.setattr(load, "contiguous", fill)
        with pytest.raises(OSError, match=r"the disk filled up while .* was written"):
            make(OFFICIAL, path).load_params()
    assert len(calls) == 30
    assert [child.suffix for child in cache.iterdir()] == [".lock"]
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"too full: 0\.00 GB are needed"):
            make(OFFICIAL, path).load_params()
    make(OFFICIAL, path).load_params()


def test_shards_of_one_checkpoint_are_merged(tmp_path):
    tensors = tiny.published(OFFICIAL)
    names = {key: f"part-{i % 3}.safetensors" for i, key in enumerate(tensors)}
    for part in set(names.values()):
        content = {key: tensors[key] for key in tensors if names[key] == part}
        safetensors.numpy.save_file(content, tmp_path / part)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    metadata = load.convert(
        str(index), tmp_path / "out", components=candidates(make(OFFICIAL, index))
    )
    assert set(metadata.source["files"]) == set(names.values())
    load.write_torch(tmp_path / "out", tmp_path / "back.safetensors")
    assert_bytes(read(tmp_path / "back.safetensors"), tensors)


# --- memory -----------------------------------------------------------------------

_MEASURE = """
import resource, sys, pathlib, threading, time
sys.path[:0] = sys.argv[1].split(':')
import numpy as np
from tests.convert import big
path = pathlib.Path(sys.argv[2])
component = big.Big(big.CONFIG)
from fdjax_convert import convert as load
from fdjax_convert import recognise
from fdjax_convert.formats import readers
from fdjax_convert.tables import layouts
import orbax.checkpoint, tqdm, safetensors.numpy
from fdjax_convert.rules.rules import Layout
layout = Layout('big', 'big', big.RULES, lambda keys: True, lambda shapes: 'big')
opened = readers.open_checkpoint(path)
small = readers.open_checkpoint(path.with_name('small.safetensors'))
def convert(opened, component, name):
    conversion = big.Conversion(opened.tensors, big.RULES, component.param_shapes())
    load.write(opened, layout, conversion, path.with_name(name), component)
convert(small, big.Big(big.SMALL), 'warm')  # imports and thread pools
def rss():
    return int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0]) * 1024
before, peak, done = rss(), [0], []
def watch():
    while not done:
        peak[0] = max(peak[0], rss())
        time.sleep(0.001)
thread = threading.Thread(target=watch); thread.start()
convert(opened, component, 'out')
done.append(1); thread.join()
print(peak[0] - before)
"""


def test_peak_memory_is_a_few_tensors_not_the_checkpoint(tmp_path, monkeypatch):
    """160 MB in tensors of 4 MB, converted with at most 16 MB in flight."""
    from tests.convert import big

    for config, name in ((big.CONFIG, "a"), (big.SMALL, "small")):
        tensors = {
            f"layers.{i}.weight": np.ones((1000, 1000), np.float32)
            for i in range(config.num_layers)
        }
        safetensors.numpy.save_file(tensors, tmp_path / f"{name}.safetensors")
    paths = ":".join(sys.path)
    code = "from fdjax.checkpoint import io\nio._IN_FLIGHT_BYTES = 16 << 20\n"
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            _MEASURE.replace("import numpy", code + "import numpy", 1),
            paths,
            str(tmp_path / "a.safetensors"),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    assert 1 << 20 < int(result.stdout) < 60 << 20
