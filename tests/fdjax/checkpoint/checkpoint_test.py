"""Parameters on disk: whole or not at all, and refused where they do not fit."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fdjax import checkpoint
from fdjax.checkpoint import load, orbax_format, placement, store
from fdjax.checkpoint.tensors import LazyTensor
from fdjax.config import InstantiateConfig
from fdjax.contract.component import ParametricComponent
from tests import processes, tiny
from tests.convert import servers


class Mlp(ParametricComponent):
    architecture = "mlp"
    weight_fields = ("num_heads",)

    def init_params(self, key):
        config = self.config
        layers = {"fc1": nn.Dense(config.width), "fc2": nn.Dense(3)}
        shapes = {"fc1": (4,), "fc2": (config.width,)}
        return {
            name: jax.tree.map(
                lambda leaf: leaf.astype(config.dtype),
                layer.init(key, jnp.zeros(shapes[name]))["params"],
            )
            for name, layer in layers.items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class MlpConfig(InstantiateConfig):
    _target: type = Mlp
    checkpoint_path: str | None = None
    width: int = 5
    num_heads: int = 1
    window: int = 7
    dtype: str = "float32"


class Other(Mlp):
    architecture = "other"


def make(**fields):
    return MlpConfig(**fields).setup()


def assert_same(params, expected, dtype=None):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == (dtype or b.dtype)
        np.testing.assert_array_equal(a, b.astype(a.dtype))


PATHS = ["params", "params.safetensors"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_round_trip(tmp_path, name, stored):
    component = make(dtype=stored)
    params = component.init_params(jax.random.key(0))
    written = checkpoint.save(tmp_path / "a" / name, params, component=component)
    path = tmp_path / "a" / name
    assert written == checkpoint.read_metadata(path)
    assert written.architecture == "mlp"
    assert written.config == {
        "checkpoint_path": None,
        "width": 5,
        "num_heads": 1,
        "window": 7,
        "dtype": stored,
    }
    assert written.num_parameters == 4 * 5 + 5 + 5 * 3 + 3
    assert written.dtype == stored
    assert_same(checkpoint.restore(path), params)
    assert_same(checkpoint.restore(path, component=component), params)
    wider = make(dtype="float32")
    assert_same(checkpoint.restore(path, component=wider), params, "float32")
    assert_same(
        checkpoint.restore(path, component=component, dtype="bfloat16"),
        params,
        "bfloat16",
    )
    assert os.listdir(tmp_path / "a") == [name]


@pytest.mark.parametrize("name", PATHS)
def test_load_params_takes_a_path_of_either_kind(tmp_path, name):
    component = make(checkpoint_path=str(tmp_path / name))
    params = component.init_params(jax.random.key(0))
    checkpoint.save(tmp_path / name, params, component=component)
    assert_same(checkpoint.load_params(component), params)


def test_a_plain_file_with_our_paths_is_ours(tmp_path):
    params = make().init_params(jax.random.key(0))
    flat = {
        f"{a}/{b}": np.asarray(v, np.float16)
        for a, c in params.items()
        for b, v in c.items()
    }
    safetensors.numpy.save_file(flat, tmp_path / "w.safetensors")
    component = make(checkpoint_path=str(tmp_path / "w.safetensors"))
    loaded = checkpoint.load_params(component)
    for a, c in params.items():
        for b in c:
            assert loaded[a][b].dtype == jnp.float32
            np.testing.assert_array_equal(loaded[a][b], flat[f"{a}/{b}"])


def test_arrays_go_where_they_are_told(tmp_path):
    params = make().init_params(jax.random.key(0))
    checkpoint.save(tmp_path / "p", params)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    wanted = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    for leaf in jax.tree.leaves(checkpoint.restore(tmp_path / "p", sharding=wanted)):
        assert leaf.sharding == wanted
    tree = jax.tree.map(lambda _: wanted, params)
    for leaf in jax.tree.leaves(checkpoint.restore(tmp_path / "p", sharding=tree)):
        assert leaf.sharding == wanted


@pytest.mark.parametrize("name", PATHS)
def test_another_config_is_refused_and_both_are_named(tmp_path, name):
    small, large = make(), make(width=8, window=9)
    path = tmp_path / name
    checkpoint.save(path, small.init_params(jax.random.key(0)), component=small)
    with pytest.raises(ValueError, match="another config") as error:
        checkpoint.restore(path, component=large)
    text = str(error.value)
    assert "fc1/kernel is [4, 5] there, [4, 8] here" in text
    assert "config field width: 5 there, 8 here" in text
    hashes = [
        checkpoint.weights_hash(
            checkpoint.describe(c.param_shapes(), architecture="mlp")
        )
        for c in (small, large)
    ]
    assert all(value[:12] in text for value in hashes)
    # Fields that say nothing about the weights may differ; those that do may not.
    checkpoint.restore(path, component=make(window=9, checkpoint_path="x"))
    with pytest.raises(ValueError, match="config field num_heads: 1 there, 2 here"):
        checkpoint.restore(path, component=make(num_heads=2))
    with pytest.raises(ValueError, match=r"of 'mlp', those of 'other' are wanted"):
        checkpoint.restore(path, component=Other(MlpConfig()))


def test_missing_and_left_over_leaves_are_named(tmp_path):
    params = make().init_params(jax.random.key(0))
    del params["fc1"]["bias"]
    params["fc3"] = {"kernel": jnp.zeros(2)}
    checkpoint.save(tmp_path / "p", params, architecture="mlp")
    with pytest.raises(ValueError, match="another config") as error:
        checkpoint.restore(tmp_path / "p", component=make())
    assert "fc1/bias is missing" in str(error.value)
    assert "fc3/kernel is there, but not wanted" in str(error.value)


def test_nothing_is_overwritten_unless_asked(tmp_path):
    params = make().init_params(jax.random.key(0))
    other = jax.tree.map(lambda x: x + 1, params)
    for name in PATHS:
        path = tmp_path / name
        checkpoint.save(path, params)
        with pytest.raises(FileExistsError, match=name):
            checkpoint.save(path, other)
        assert_same(checkpoint.restore(path), params)
        checkpoint.save(path, other, overwrite=True)
        assert_same(checkpoint.restore(path), other)
    assert sorted(os.listdir(tmp_path)) == sorted(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_a_save_that_fails_leaves_nothing(tmp_path, name):
    def fail():
        raise RuntimeError("read failed")

    params = {"a": jnp.ones(3), "b": LazyTensor((2,), np.dtype(np.float32), fail)}
    with pytest.raises(RuntimeError, match="read failed"):
        checkpoint.save(tmp_path / name, params)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", PATHS)
def test_the_source_is_asked_for_last_and_may_refuse(tmp_path, name):
    events = []

    def read():
        events.append("read")
        return np.ones(2, np.float32)

    def source():
        events.append("source")
        return {"sha256": "abc"}

    def refuse():
        raise ValueError("holds NaN")

    params = {"a": LazyTensor((2,), np.dtype(np.float32), read)}
    written = checkpoint.save(tmp_path / name, params, source=source)
    assert events == ["read", "source"]
    assert written.source == {"sha256": "abc"}
    assert checkpoint.read_metadata(tmp_path / name) == written
    with pytest.raises(ValueError, match="holds NaN"):
        checkpoint.save(tmp_path / f"b-{name}", params, source=refuse)
    assert os.listdir(tmp_path) == [name]


def test_lazy_leaves_are_read_in_turn_and_released(tmp_path):
    events = []

    def lazy(i):
        def read():
            events.append(("read", i))
            return np.full((300, 400), i, np.float32)

        return LazyTensor(
            (300, 400),
            np.dtype(np.float32),
            read,
            lambda: events.append(("release", i)),
        )

    params = {f"l{i}": lazy(i) for i in range(4)} | {"x": np.arange(3.0)}
    checkpoint.save(tmp_path / "p", params)
    assert sorted(events) == sorted(
        (e, i) for e in ("read", "release") for i in range(4)
    )
    restored = checkpoint.restore(tmp_path / "p")
    assert float(restored["l3"].min()) == 3
    np.testing.assert_array_equal(restored["x"], [0, 1, 2])


def test_in_flight_leaves_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_format, "_IN_FLIGHT_BYTES", 1000)
    alive, peak = set(), []

    def lazy(i):
        def read():
            alive.add(i)
            peak.append(len(alive))
            return np.zeros(200, np.float32)

        return LazyTensor((200,), np.dtype(np.float32), read, lambda: alive.discard(i))

    checkpoint.save(tmp_path / "p", {f"l{i}": lazy(i) for i in range(6)})
    assert max(peak) == 1


_KILLED = """
import sys, time, pathlib
import numpy as np
from fdjax import checkpoint
from fdjax.checkpoint.tensors import LazyTensor
def stall():
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(60)
params = {'a': np.ones(3), 'z': LazyTensor((2,), np.dtype('float32'), stall)}
checkpoint.save(sys.argv[1], params)
"""


def test_a_killed_save_leaves_no_checkpoint_and_can_be_repeated(tmp_path):
    path, flag = tmp_path / "run" / "p", tmp_path / "flag"
    with processes.running([sys.executable, "-c", _KILLED, path, flag]) as process:
        while not flag.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not path.exists()
    assert len(os.listdir(path.parent)) == 1  # what the killed process could not remove
    params = make().init_params(jax.random.key(0))
    checkpoint.save(path, params)
    assert os.listdir(path.parent) == ["p"]
    assert_same(checkpoint.restore(path), params)


@pytest.mark.parametrize("name", ["p", "p.safetensors"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_replaced_while_it_is_read_is_read_again(
    tmp_path, monkeypatch, name, fails
):
    path, reads = tmp_path / name, []
    old, new = (
        {"a": np.full(9, x, np.float32), "b": np.full(9, x, np.float32)}
        for x in (1.0, 2.0)
    )
    checkpoint.save(path, old)
    restore = store._restore

    def read(*arguments):
        params = restore(*arguments)
        reads.append(1)
        if len(reads) == 1:
            checkpoint.save(path, new, overwrite=True)
            params["b"] = new["b"]  # which was read a moment later
            if fails:
                raise ValueError("a file is missing")
        return params

    monkeypatch.setattr(store, "_restore", read)
    params = checkpoint.restore(path)
    assert {float(x) for leaf in params.values() for x in leaf} == {2.0}
    assert len(reads) == 2


def test_damaged_directories_are_refused(tmp_path):
    component = make(width=2000)
    path = tmp_path / "p"
    checkpoint.save(path, component.init_params(jax.random.key(0)), component=component)
    assert checkpoint.is_intact(path)
    whole = tmp_path / "whole"
    shutil.copytree(path, whole)
    written = [file for file in path.rglob("*") if file.is_file()]
    largest = max(written, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"damaged: .* has 1000 bytes, must have \d{5}"
    ):
        checkpoint.restore(path, component=component)
    for name in ("manifest.ocdbt", "ocdbt.process_0"):
        shutil.rmtree(path)
        shutil.copytree(whole, path)
        (path / "params" / name).rename(tmp_path / name)
        with pytest.raises(ValueError, match=rf"damaged: .*{name}.* is missing"):
            checkpoint.restore(path, component=component)
        assert not checkpoint.is_intact(path)
    (path / "fdjax.json").write_text("{")
    assert not checkpoint.is_intact(path)
    with pytest.raises(ValueError, match="damaged, its metadata"):
        checkpoint.restore(path, component=component)
    (path / "fdjax.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="format must be 1, is 99"):
        checkpoint.restore(path, component=component)
    (path / "fdjax.json").unlink()
    with pytest.raises(ValueError, match="no complete checkpoint"):
        checkpoint.restore(path, component=component)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint.restore(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [4, 100, -10])
def test_truncated_safetensors_are_refused(tmp_path, keep, monkeypatch):
    monkeypatch.setattr(load, "_converters", lambda: [])
    path = tmp_path / "p.safetensors"
    component = make(checkpoint_path=str(path))
    checkpoint.save(path, component.init_params(jax.random.key(0)), component=component)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"p\.safetensors"):
        checkpoint.load_params(component)


def test_a_component_without_a_checkpoint_says_what_to_set():
    with pytest.raises(
        ValueError, match=r"MlpConfig names no checkpoint: set its check"
    ):
        checkpoint.load_params(make())


def test_sources_that_nobody_knows_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "_converters", lambda: [])
    with pytest.raises(
        FileNotFoundError, match=r"nowhere\.pt; set checkpoint_path of Ml"
    ):
        checkpoint.load_params(make(checkpoint_path=str(tmp_path / "nowhere.pt")))
    (tmp_path / "a.pt").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"no converter knows the architecture .mlp."):
        checkpoint.load_params(make(checkpoint_path=str(tmp_path / "a.pt")))


def test_converters_are_asked_in_turn(tmp_path, monkeypatch):
    params = make().init_params(jax.random.key(0))
    asked = []

    class Entry:
        def __init__(self, result):
            self.result = result
            self.value = f"plugin:{id(self)}"

        def load(self):
            def converter(component, source, *, sharding=None):
                asked.append((component, source, sharding))
                return self.result

            return converter

    monkeypatch.setattr(
        load.importlib.metadata,
        "entry_points",
        lambda group: {load.CONVERTERS: [Entry(None), Entry(params)]}[group],
    )
    component = make(checkpoint_path="hf://owner/repo/file.pt")
    assert checkpoint.load_params(component) is params
    assert asked == [(component, "hf://owner/repo/file.pt", None)] * 2


def test_a_local_checkpoint_is_checked_without_being_read(tmp_path, monkeypatch):
    asked = []

    def converter(component, source, *, sharding=None, only_check=False):
        asked.append((source, only_check))
        raise ValueError("of other sizes")

    entry = type("Entry", (), {"load": lambda self: converter})()
    monkeypatch.setattr(load, "_converters", lambda: [entry])
    for absent in (None, str(tmp_path / "none"), "hf://owner/repo/file.pt"):
        checkpoint.check_local(make(checkpoint_path=absent))
    assert not asked
    foreign = tmp_path / "a.pt"
    foreign.write_bytes(b"weights")
    with pytest.raises(ValueError, match="of other sizes"):
        checkpoint.check_local(make(checkpoint_path=str(foreign)))
    assert asked == [(str(foreign), True)]

    own, params = tmp_path / "own", make().init_params(jax.random.key(0))
    source = {"path": "/hub/someone/model.pt"}
    checkpoint.save(own, params, component=make(), source=source)
    monkeypatch.setattr(load, "restore", None)
    checkpoint.check_local(make(checkpoint_path=str(own)))
    params["extra"] = params.pop(next(iter(params)))
    checkpoint.save(tmp_path / "wrong", params)
    with pytest.raises(ValueError, match="is missing"):
        checkpoint.check_local(make(checkpoint_path=str(tmp_path / "wrong")))
    assert checkpoint.origin(str(own)) == source["path"]
    for itself in (str(foreign), "hf://owner/repo/file.pt", str(tmp_path / "wrong")):
        assert checkpoint.origin(itself) == itself


def test_a_clone_that_is_not_installed_has_its_converter(monkeypatch):
    monkeypatch.setattr(load.importlib.metadata, "entry_points", lambda group: [])
    [converter] = load._converters()
    assert converter.value == "fdjax_convert.convert:load_params"
    assert callable(converter.load())


def test_a_full_disk_is_named_before_and_during_a_save(tmp_path, monkeypatch):
    params = make().init_params(jax.random.key(0))
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"too full: .* needed, .* free") as error:
            checkpoint.save(tmp_path / "p", params)
    assert error.value.errno == errno.ENOSPC

    def fill():
        raise ValueError("RESOURCE_EXHAUSTED: [Errno 28] No space left on device")

    lazy = LazyTensor((2,), np.dtype(np.float32), fill)
    with pytest.raises(OSError, match=r"filled up while .*p was written") as error:
        checkpoint.save(tmp_path / "p", {"a": lazy})
    assert error.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_our_own_files_need_no_converter_wherever_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "_converters", lambda: [])
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)  # the server is this process
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    params = make().init_params(jax.random.key(0))
    checkpoint.save(tmp_path / "p.safetensors", params, component=make())
    with servers.serve() as server:
        server.files["p.safetensors"] = (tmp_path / "p.safetensors").read_bytes()
        component = make(checkpoint_path=f"{server.url}/p.safetensors")
        assert_same(checkpoint.load_params(component), params)


class Wrapped(Mlp):
    """Has its parameters from another component."""

    @property
    def params_owner(self):
        return make(checkpoint_path=self.config.path)

    def check_files(self):
        raise AssertionError("the owner's files count")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrappedConfig(InstantiateConfig):
    _target: type = Wrapped
    path: str


def test_a_component_may_wrap_the_one_that_owns_the_parameters(tmp_path):
    params = make().init_params(jax.random.key(0))
    checkpoint.save(tmp_path / "p", params, component=make())
    wrapped = WrappedConfig(path=str(tmp_path / "p")).setup()
    assert wrapped.checkpoint_path == str(tmp_path / "p")
    assert_same(checkpoint.load_params(wrapped), params)


def test_a_pipeline_places_its_parts(monkeypatch):
    asked = {}

    def load_params(component, *, sharding=None):
        asked[component] = sharding
        return {}

    monkeypatch.setattr(checkpoint, "load_params", load_params)
    pipeline = tiny.CONFIG.setup()
    one = placement.default_sharding()
    parts = {"transformer": {"w": one}, "decoder": one}
    assert set(pipeline.load_params(sharding=parts)) == set(pipeline.components)
    for name, component in pipeline.components.items():
        assert asked[component] is parts.get(name)
    pipeline.load_params(only=["transformer"], sharding=one)
    assert asked[pipeline.components["transformer"]] is one
    with pytest.raises(ValueError, match=r"sharding names \['vae'\]; there are"):
        pipeline.load_params(sharding={"vae": one})
