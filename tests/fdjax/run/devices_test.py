"""`--mesh` and `--place`: what they mean, and what is refused at once."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, SingleDeviceSharding

from fdjax.run import cli, devices, finite, memory, needs
from fdjax.sharding import CACHE
from tests import tiny, tiny_runner

PIPELINE = tiny.CONFIG.setup()
COUNT = len(jax.devices())


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setenv("FDJAX_RUNNER_CONFIGS", "tiny=tests.tiny_runner:CONFIG")
    status = cli.run(["tiny", *arguments])
    return status, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mesh", "rows=2"], "mesh: a mesh has the axes data, guidance, sequence"),
        (["--mesh", "data"], "mesh: each axis of a mesh must be given once, as data="),
        (["--mesh", "data=64"], "mesh: the mesh data=64 needs 64 devices, there are "),
        (["--mesh", "sequence=2"], "mesh: MeanTransformer can be cut by sessions alon"),
        (["--place", "decoder"], "place must name parts and numbers of devices, each "),
        (["--place", "decoder=-1"], "place must name parts and numbers of devices, ea"),
        (["--place", "vae=0"], "place: there is no part 'vae'; this method has transf"),
        (["--place", f"decoder={COUNT}"], f"place: decoder={COUNT} must be the number"),
        (["--mesh", "data=1", "--place", "transformer=0"], "place: the transformer is"),
    ],
)
def test_what_there_is_not_is_told_in_one_line(
    monkeypatch, capsys, tmp_path, arguments, message
):
    status, line = run(
        monkeypatch, capsys, *arguments, "--output_dir", str(tmp_path / "out")
    )
    assert status == 2
    assert line.startswith(f"fdjax-run: error: {message}")
    assert not (tmp_path / "out").exists()


def test_a_mesh_of_one_device_runs(tmp_path):
    config = dataclasses.replace(
        tiny_runner.CONFIG,
        mesh="data=1",
        place="decoder=0",
        total_blocks=1,
        output_dir=str(tmp_path),
        progress=False,
    )
    assert config.setup().run().num_frames == 1


def test_parts_go_where_they_are_placed():
    found = devices.find("data=1", "decoder=0", PIPELINE)
    places = found.placement(needs.streaming(PIPELINE))
    assert isinstance(places["transformer"], Mesh)
    assert places["decoder"] == SingleDeviceSharding(jax.devices()[0])
    assert str(found) == "1 device (cpu): data over 1; decoder on device 0"
    nothing = devices.find(None, None, PIPELINE)
    assert nothing.placement(["transformer"]) is None
    assert str(nothing) == ""


def test_sessions_are_divided_by_the_mesh():
    found = devices.Devices(types.SimpleNamespace(shape={"data": 2}), {})
    found.check_sessions(4)
    with pytest.raises(ValueError, match="data=2 must divide the sessions of the run"):
        found.check_sessions(3)


def test_bytes_of_a_device():
    tree = {"kv": {"keys": [np.zeros((2, 8, 4, 16), np.float32)]}}
    found = devices.find("data=1", None, PIPELINE)
    assert found.num_bytes(tree, CACHE) == memory.num_bytes(tree) == 4096


def test_devices_of_a_cpu_share_its_memory():
    whole, _ = memory.device_memory()
    each, name = memory.device_memory(4)
    assert (each, name) == (whole // 4, "each of 4 devices, this machine")


def test_stages_on_any_devices_are_looked_at():
    watch = finite.FiniteWatch()
    watch.record("diffuse", jax.device_put(np.ones(3), jax.devices()[0]))
    watch.record("decode", np.array([1.0, np.nan]))
    assert watch.end_chunk(0).bad_stage == "decode"
