"""Replay files: the same again, or where it differs; and what is refused."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from fdjax.config import derive_config
from fdjax.run import plugins, replay
from fdjax.session import container
from tests.tiny_runner import CONFIG, TinyRunner, TinyRunnerConfig

NAME = "tiny-random-weights"


@pytest.fixture
def made(tmp_path, fdjax_run, tiny_method):
    """A replay file of four chunks."""
    code, _, err = fdjax_run("tiny", "--output_dir=a", "--control=0.5")
    assert code == 0, err
    return pathlib.Path("a", f"{NAME}.replay.json")


def edited(path, change, *, checksum=True):
    tree = json.loads(path.read_text())
    change(tree)
    if checksum:
        tree["sha256"] = replay._digest({n: tree[n] for n in tree if n != "sha256"})
    path.write_text(json.dumps(tree))


def test_a_run_comes_again_bit_for_bit(made, fdjax_run):
    text = made.read_text()
    assert len(text) < 4096
    tree = json.loads(text)
    assert len(tree["chunks"]) == len(set(tree["chunks"])) == 4
    assert tree["weights"].keys() == {"transformer", "encoder", "decoder"}
    assert tree["config"]["output_dir"] == "outputs"
    code, _, err = fdjax_run("--replay", str(made), "--output_dir=b")
    assert code == 0, err
    assert err.endswith("The same, bit for bit: 4 chunks.\n")
    again = pathlib.Path("b", made.name)
    assert again.read_text() == text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed=9"], "Chunk 0 of the run is the first that differs."),
        (["--total_blocks=2"], "the same, but there are 2; the file has 4."),
        (["--total_blocks=5"], "the same, but there are 5; the file has 4."),
    ],
)
def test_what_flags_change_is_told(made, fdjax_run, flags, message):
    code, _, err = fdjax_run("--replay", str(made), "--output_dir=b", *flags)
    assert (code, err.splitlines()[-1][-len(message) :]) == (1, message)


def test_the_first_chunk_that_differs_is_named(made, fdjax_run, monkeypatch):
    original = TinyRunner.read_inputs

    def read_inputs(self):
        inputs = original(self)
        inputs.controls[2] = inputs.controls[2] * 1.5
        return inputs

    monkeypatch.setattr(TinyRunner, "read_inputs", read_inputs)
    code, _, err = fdjax_run("--replay", str(made), "--output_dir=b")
    assert code == 1
    assert "Chunk 2 of the run is the first that differs." in err


def test_other_weights_are_refused_before_anything_is_made(
    made, fdjax_run, monkeypatch
):
    kind = type(CONFIG.pipeline.setup())
    original = kind.init_params

    def init_params(self, key, **options):
        params = original(self, key, **options)
        return params | {"decoder": jax.tree.map(lambda x: x + 1, params["decoder"])}

    monkeypatch.setattr(kind, "init_params", init_params)
    code, _, err = fdjax_run("--replay", str(made), "--output_dir=b")
    assert code == 2
    [line] = [line for line in err.splitlines() if "other weights" in line]
    assert "decoder: '" in line
    assert "transformer" not in line
    assert not list(pathlib.Path("b").glob("*"))


def test_other_versions_are_told(made, fdjax_run, monkeypatch):
    here = container.made_by()
    monkeypatch.setattr(container, "made_by", lambda: here | {"jax": "0.1"})
    code, _, err = fdjax_run("--replay", str(made), "--output_dir=b")
    assert code == 0
    assert "within rounding, not bit for bit: jax: '" in err


BAD = {
    "format": (
        lambda t: t.update(format=7),
        True,
        "must be a replay of format 1, ",
    ),
    "edited": (lambda t: t["chunks"].pop(), False, "was edited: its checksum"),
    "no config": (lambda t: t.pop("config"), True, "config (it was made by fdjax"),
    "unknown field": (lambda t: t["config"].update(x=1), True, "(it was made by fdjax"),
    "chunks": (lambda t: t.update(chunks=[1]), True, "must hold texts by name"),
    "chunks none": (lambda t: t.update(chunks=None), True, "it was made by fdjax"),
    "inputs": (lambda t: t.update(inputs={"x": {}}), True, "must have a path"),
    "content": (
        lambda t: t.update(inputs={"x": {"path": "", "sha256": "", "content": "é"}}),
        True,
        "base64",
    ),
    "made by": (lambda t: t.update(made_by=[1]), True, "it was made by fdjax"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_one_line(made, fdjax_run, name):
    change, checksum, message = BAD[name]
    edited(made, change, checksum=checksum)
    code, _, err = fdjax_run("--replay", str(made))
    assert code == 2
    [line] = err.splitlines()
    assert message in line
    assert f"--replay {made}: " in line


def test_what_is_no_replay_is_one_line(made, fdjax_run):
    text = made.read_bytes()
    for content in (text[:-30], b"", b"[1]", b"\xff\xfe", b"[" * 999, b'{"a": 1}'):
        made.write_bytes(content)
        code, _, err = fdjax_run("--replay", str(made))
        assert code == 2
        [line] = err.splitlines()
        assert f"--replay {made}: is no " in line
    made.write_bytes(b" " * (5 << 20))
    assert "must be of at most" in fdjax_run("--replay", str(made))[2]
    assert "there is no replay file none.json" in fdjax_run("--replay", "none.json")[2]
    made.write_bytes(text)
    assert "a run of 'tiny', not of" in fdjax_run("other", "--replay", str(made))[2]
    both = fdjax_run("--replay", str(made), "--config", "x")
    assert "give --config or --replay, not both" in both[2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureConfig(TinyRunnerConfig):
    """With a file that it could read."""

    picture: str | pathlib.Path = ""
    """A file."""


def test_inputs_are_kept_by_hash_and_small_ones_whole(tmp_path):
    config = PictureConfig(
        **{f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(CONFIG)},
        picture=tmp_path / "p.png",
    )
    (tmp_path / "p.png").write_bytes(b"small")
    kept = replay.of_run(config, ["a"], None)
    assert kept.inputs.keys() == {"picture"}
    folder = tmp_path / "new"
    folder.mkdir()
    assert kept.with_inputs(config, folder).picture == config.picture
    for spoil in (pathlib.Path.unlink, lambda path: path.write_bytes(b"other")):
        spoil(tmp_path / "p.png")
        place = pathlib.Path(kept.with_inputs(config, folder).picture)
        assert (place.parent, place.read_bytes()) == (folder, b"small")
    (tmp_path / "p.png").write_bytes(bytes(20_000))
    large = replay.of_run(config, ["a"], None)
    assert large.with_inputs(config, folder).picture == config.picture
    (tmp_path / "p.png").write_bytes(bytes(20_001))
    with pytest.raises(ValueError, match=r"picture: .*another file now; .* --picture"):
        large.with_inputs(config, folder)
    mine = dataclasses.replace(config, picture="mine.png")
    assert large.with_inputs(mine, folder) is not None
    (tmp_path / "p.png").unlink()
    with pytest.raises(ValueError, match=r"is missing"):
        large.with_inputs(config, folder)


def test_hashes_of_chunks_tell_shapes_types_and_values():
    zeros = np.zeros((2, 3), np.uint8)
    others = [zeros.T, zeros.astype(np.int8), zeros + 1, zeros.astype(np.float32)]
    assert len({replay.chunk_hash(each) for each in [zeros, *others]}) == 5
    turned = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert replay.chunk_hash(turned) == replay.chunk_hash(np.ascontiguousarray(turned))


def test_a_session_of_other_weights_is_not_gone_on_from(tmp_path, monkeypatch):
    config = derive_config(CONFIG, output_dir=str(tmp_path), progress=False)
    [session] = [
        path
        for path in dataclasses.replace(config, save_session=True).setup().run().files
        if path.suffix == ".session"
    ]
    resumed = dataclasses.replace(config, resume=session, total_blocks=1)
    result = resumed.setup().run()
    assert plugins.known_classes()
    assert len(result.chunk_hashes) == 1
    kind = type(CONFIG.pipeline.setup())
    original = kind.init_params
    monkeypatch.setattr(
        kind,
        "init_params",
        lambda self, key, **o: original(self, jax.random.key(5), **o),
    )
    with pytest.raises(ValueError, match="a session of other weights: "):
        resumed.setup().run()
