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
from fdjax.checkpoint.errors import CheckpointError
from fdjax_convert import convert as load
from fdjax_convert.formats import readers
from fdjax_convert.methods import Candidate
from fdjax_convert.rules import placing
from fdjax_convert.rules.problems import ConversionError
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
    if layout.architecture in ("umt5", "cosmos_reason1"):
        fields["tokenizer_path"] = "unused"
    return dataclasses.replace(config, checkpoint_path=str(path), **fields).setup()


def candidates(component):
    return (Candidate("tiny", "part", component),)


def convert_into(destination, path, layout=OFFICIAL):
    """What `fdjax-convert` does."""
    parts = candidates(make(layout, path))
    return load.convert(str(path), destination, components=parts)


def assert_bytes(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        assert found[key].tobytes() == value.tobytes(), key


def assert_same(params, expected):
    """Both are on the device, of one type, equal to the last bit."""
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def read(path):
    return {k: t.read() for k, t in readers.open_checkpoint(path).tensors.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", tiny.ALL, ids=LAYOUT_IDS)
def test_every_layout_there_and_back(tmp_path, monkeypatch, layout, dtype):
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

    # Once all leaves are made on the device, once all on the host.
    monkeypatch.setattr(placing, "_SMALL", 0 if dtype == "bfloat16" else 1 << 30)
    assert_same(
        load.load_params(component, str(path)),
        checkpoint.restore(tmp_path / "out", component=component),
    )

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


def test_loading_writes_nothing(tmp_path, cache):
    path = save(tmp_path / "a.safetensors", tiny.published(OFFICIAL))
    component = make(OFFICIAL, path)
    params = checkpoint.load_params(component)
    for a, b, leaf in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(tiny.random_params(tiny.config_of(OFFICIAL))),
        jax.tree.leaves(component.param_shapes()),
        strict=True,
    ):
        assert a.dtype == leaf.dtype
        np.testing.assert_array_equal(a, b.astype(leaf.dtype))
    assert os.listdir(tmp_path) == ["a.safetensors"]
    path.unlink()
    assert_same(params, jax.tree.map(lambda leaf: leaf + 0, params))  # no view of it


def test_a_converted_directory_is_a_checkpoint_path(tmp_path, cache):
    path = save(tmp_path / "a.safetensors", tiny.published(OFFICIAL))
    component = make(OFFICIAL, path)
    load.convert(str(path), tmp_path / "out", components=candidates(component))
    checkpoint.load_params(make(OFFICIAL, tmp_path / "out"))
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
    checkpoint.load_params(make(OFFICIAL, tmp_path))
    checkpoint.load_params(make(vae, tmp_path))
    clip = next(one for one in tiny.ALL if one.architecture == "clip")
    with pytest.raises(CheckpointError, match=r"no checkpoint of clip; it holds Wan2"):
        checkpoint.load_params(make(clip, tmp_path))
    (tmp_path / "transformer").mkdir()
    save(tmp_path / "transformer" / "b.safetensors", tiny.published(OFFICIAL))
    with pytest.raises(CheckpointError, match=r"several checkpoints of wan_dit, name"):
        checkpoint.load_params(make(OFFICIAL, tmp_path))


# --- what does not fit ------------------------------------------------------------


def test_another_size_is_recognised(tmp_path):
    wide = dataclasses.replace(tiny.DIT, dim=96, num_heads=4)
    path = save(tmp_path / "a.safetensors", tiny.published(OFFICIAL))
    component = make(OFFICIAL, path, network=wide)
    expected = "a.safetensors is Wan 48 wide, 3 blocks T2V; you asked for Wan 96 wide"
    with pytest.raises(ConversionError, match=expected) as error:
        checkpoint.load_params(component)
    assert "blocks.0.modulation: shape [1, 6, 48] gives" in str(error.value)


def test_published_sizes_have_names(tmp_path):
    """The words of the error for the real 14B and 1.3B networks, without weights."""
    from fdjax_convert import recognise
    from fdjax_convert.rules import export
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
        checkpoint.load_params(make(OFFICIAL, path))


def test_a_damaged_table_of_keys_gets_all_its_problems(tmp_path, cache):
    tensors = tiny.published(OFFICIAL)
    del tensors["head.head.weight"]  # what the layout is detected by
    tensors["blocks.1.extra"] = np.ones(3, np.float32)
    tensors["blocks.2.norm3.weight"] = np.full(48, np.nan, np.float32)
    path = save(tmp_path / "a.safetensors", tensors)
    with pytest.raises(ConversionError) as error:
        checkpoint.load_params(make(OFFICIAL, path))
    text = str(error.value)
    assert "a.safetensors does not fit Wan 48 wide, 3 blocks T2V (official" in text
    assert "head/proj/kernel: not filled, missing key: head.head.weight" in text
    assert "blocks.1.extra: unknown key" in text
    assert "blocks.2.norm3.weight: holds NaN" in text
    assert len(error.value.problems) == 3
    assert not cache.exists()


def test_nan_weights_are_named_and_nothing_is_kept(tmp_path):
    tensors = tiny.published(OFFICIAL, "bfloat16")
    for key in ("blocks.0.ffn.0.weight", "blocks.2.self_attn.k.bias"):
        tensors[key] = tensors[key].copy()
        tensors[key].reshape(-1)[-1] = np.nan
    path = save(tmp_path / "a.pt", tensors)
    with pytest.raises(ConversionError) as error:
        checkpoint.load_params(make(OFFICIAL, path))
    problems = (
        "blocks.0.ffn.0.weight: holds NaN or infinite values",
        "blocks.2.self_attn.k.bias: holds NaN or infinite values",
    )
    assert error.value.problems == problems
    assert "a.pt cannot be used, 2 problems" in str(error.value)
    with pytest.raises(ConversionError) as error:
        convert_into(tmp_path / "out", path)
    assert error.value.problems == problems
    assert os.listdir(tmp_path) == ["a.pt"]


def test_a_file_that_is_not_what_the_hub_states_is_refused(tmp_path):
    blob = tmp_path / ("ab" * 32)  # a blob of the hub's cache is named by its sha256
    save(tmp_path / "a.safetensors", tiny.published(OFFICIAL)).rename(blob)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    with pytest.raises(
        CheckpointError, match=r"corrupt: its sha256 must be abab.*, is"
    ):
        convert_into(tmp_path / "out", link)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_during_a_conversion_leaves_nothing(tmp_path, monkeypatch):
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
            convert_into(tmp_path / "out", path)
    assert len(calls) == 30
    assert os.listdir(tmp_path) == ["a.safetensors"]
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"too full: 0\.00 GB are needed"):
            convert_into(tmp_path / "out", path)
    convert_into(tmp_path / "out", path)


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
import sys, pathlib, threading, time
sys.path[:0] = sys.argv[1].split(':')
from tests.convert import big
import jax, orbax.checkpoint, tqdm, safetensors.numpy
from fdjax.checkpoint import orbax_format, placement
from fdjax_convert import convert as load
from fdjax_convert.formats import readers
from fdjax_convert.rules import placing
orbax_format._IN_FLIGHT_BYTES = 16 << 20
way, path = sys.argv[2], pathlib.Path(sys.argv[3])
def run(name, component):
    opened = readers.open_checkpoint(path / (name + '.safetensors'))
    shapes = component.param_shapes()
    conversion = big.Conversion(opened.tensors, big.RULES, shapes)
    if way == 'write':
        return load.write(opened, big.LAYOUT, conversion, path / name, component)
    return placing.place(conversion, placement.leaf_shardings(shapes, None))
run('small', big.Big(big.SMALL))  # imports, thread pools and programs
def rss():  # without pages of mapped files, which the system may drop at any time
    return int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0]) * 1024
before, peak, done = rss(), [0], []
def watch():
    while not done:
        peak[0] = max(peak[0], rss())
        time.sleep(0.001)
thread = threading.Thread(target=watch); thread.start()
result = run('large', big.Big(big.CONFIG))
done.append(1); thread.join()
print(peak[0] - before)
"""


@pytest.mark.parametrize(("way", "kept"), [("write", 0), ("place", 160_000_000)])
def test_peak_memory_is_a_few_tensors_not_the_checkpoint(tmp_path, way, kept):
    """160 MB in tensors of 4 MB; placed, they are the params, once.

    A file is written with at most 16 MB in flight.
    """
    from tests.convert import big

    for config, name in ((big.CONFIG, "large"), (big.SMALL, "small")):
        tensors = {
            f"layers.{i}.weight": np.ones((1000, 1000), np.float32)
            for i in range(config.num_layers)
        }
        safetensors.numpy.save_file(tensors, tmp_path / f"{name}.safetensors")
    result = subprocess.run(
        [sys.executable, "-c", _MEASURE, ":".join(sys.path), way, str(tmp_path)],
        capture_output=True,
        text=True,
        # glibc then gives a freed tensor back at once, and what is measured is in use.
        env=os.environ | {"JAX_PLATFORMS": "cpu", "MALLOC_MMAP_THRESHOLD_": "1000000"},
    )
    assert result.returncode == 0, result.stderr
    used = int(result.stdout) - kept
    # What is kept was seen, but for what a busy machine's clock may miss.
    assert (1 << 20 if not kept else -kept // 10) < used < 32 << 20, used


# --- several devices --------------------------------------------------------------

_SHARDED = """
import sys
sys.path[:0] = sys.argv[1].split(':')
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from fdjax import checkpoint
from fdjax.checkpoint import placement
from tests.convert import big
mesh = jax.make_mesh((4,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
cut = NamedSharding(mesh, PartitionSpec(None, 'x'))
last = jax.sharding.SingleDeviceSharding(jax.devices()[3])
component = big.BigConfig(num_layers=3, checkpoint_path=sys.argv[2]).setup()
from fdjax_convert.tables import layouts
layouts.ALL = (big.LAYOUT,)
params = checkpoint.load_params(
    component, sharding={'layers_0': {'kernel': cut}, 'layers_1': last}
)
found = {name: leaf['kernel'].sharding for name, leaf in params.items()}
assert found['layers_0'] == cut and found['layers_1'] == last, found
assert found['layers_2'].device_set == {jax.devices()[0]}, found
shard = params['layers_0']['kernel'].addressable_shards[2]
assert shard.data.shape == (1000, 250) and shard.device == jax.devices()[2]
for n, name in enumerate(params):
    np.testing.assert_array_equal(params[name]['kernel'], np.load(sys.argv[3])[n].T)
for leaf in jax.tree.leaves(checkpoint.load_params(component, sharding=cut)):
    assert leaf.sharding == cut
# What several processes do, each with the whole array at hand.
class Elsewhere(NamedSharding):
    is_fully_addressable = False
spread = placement.spread(params['layers_2']['kernel'], Elsewhere(mesh, cut.spec))
for shard in spread.addressable_shards:
    assert shard.data.shape == (1000, 250)
    np.testing.assert_array_equal(shard.data, params['layers_2']['kernel'][shard.index])
"""


@pytest.mark.parametrize("kind", ["published", "own file", "own directory"])
def test_params_go_to_the_devices_that_are_named(tmp_path, kind):
    from tests.convert import big

    values = np.random.default_rng(0).standard_normal((3, 1000, 1000), np.float32)
    np.save(tmp_path / "values.npy", values)
    path = tmp_path / ("own" if kind == "own directory" else "a.safetensors")
    if kind == "published":
        tensors = {f"layers.{n}.weight": value for n, value in enumerate(values)}
        safetensors.numpy.save_file(tensors, path)
    else:
        params = {f"layers_{n}": {"kernel": v.T} for n, v in enumerate(values)}
        component = big.BigConfig(num_layers=3).setup()
        checkpoint.save(path, params, component=component)
    values = str(tmp_path / "values.npy")
    result = subprocess.run(
        [sys.executable, "-c", _SHARDED, ":".join(sys.path), str(path), values],
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        },
    )
    assert result.returncode == 0, result.stderr


def test_a_sharding_names_what_there_is(tmp_path):
    path = save(tmp_path / "a.safetensors", tiny.published(OFFICIAL))
    component = make(OFFICIAL, path)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(ValueError, match=r"names \['block_0'\]; there are \['blocks_0"):
        checkpoint.load_params(component, sharding={"block_0": one})
    with pytest.raises(ValueError, match=r"of head/proj names \['weight'\]"):
        checkpoint.load_params(component, sharding={"head": {"proj": {"weight": one}}})
    with pytest.raises(
        ValueError, match=r"of head must be a Mesh, a Sharding or a dict"
    ):
        checkpoint.load_params(component, sharding={"head": "x"})
