"""Names of runs: numbered, never shared, and given back."""

import pathlib

import pytest

from fdjax.config import derive_config
from fdjax.run import media, naming
from tests.tiny_runner import CONFIG

NAME = "tiny-random-weights"


def take(folder, name="walk", **changes):
    with naming.reserved(folder, name, **{"overwrite": False} | changes) as taken:
        return taken


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ([], "walk"),
        (["other.mp4", "walking.mp4", "stats_other.json"], "walk"),
        (["walk.mp4"], "walk-2"),
        (["stats_walk.json"], "walk-2"),
        (["walk.left.session0.mp4"], "walk-2"),
        (["walk.config.json", "walk-2.npy"], "walk-3"),
        (["walk-7.png"], "walk-8"),
        (["stats_walk-3.json", "walk.mp4"], "walk-4"),
        (["walk-x.mp4", "walk-02.mp4"], "walk"),
    ],
)
def test_the_next_number(tmp_path, there, taken):
    for name in there:
        (tmp_path / name).write_text("")
    assert take(tmp_path) == taken
    assert take(tmp_path, overwrite=True) == "walk"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(there)


def test_runs_at_one_time_have_names_of_their_own(tmp_path):
    with (
        naming.reserved(tmp_path, "walk", overwrite=False) as first,
        naming.reserved(tmp_path, "walk", overwrite=False) as second,
    ):
        assert (first, second) == ("walk", "walk-2")
    assert take(tmp_path) == "walk"


def test_a_name_that_a_killed_run_held_is_free(tmp_path):
    (tmp_path / ".walk.running").write_text("")
    assert take(tmp_path) == "walk"
    assert not list(tmp_path.iterdir())


def test_two_runs_in_a_directory_do_not_mix(tmp_path):
    config = derive_config(CONFIG, output_dir=str(tmp_path))
    first = config.setup().run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = derive_config(config, control=2.0).setup().run()
    assert second.output.name == f"{NAME}-2.mp4"
    assert {path.name for path in second.files} == {
        f"{NAME}-2.mp4",
        f"{NAME}-2.png",
        f"stats_{NAME}-2.json",
        f"{NAME}-2.config.json",
        f"{NAME}-2.replay.json",
    }
    assert {path: path.exists() for path in [*first.files, *second.files]}
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_overwriting_leaves_nothing_of_the_run_before(tmp_path):
    config = derive_config(CONFIG, output_dir=str(tmp_path), overwrite=True)
    derive_config(config, save_session=True).setup().run()
    (tmp_path / "mine.mp4").write_text("")
    latents = derive_config(
        config,
        total_blocks=1,
        pipeline={"decoder": None, "spatial_compression_ratio": 2},
    )
    latents.setup().run()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{NAME}.npy",
        f"stats_{NAME}.json",
        f"{NAME}.config.json",
        f"{NAME}.replay.json",
        "mine.mp4",
    }


def test_a_failed_run_takes_no_number(tmp_path, monkeypatch):
    config = derive_config(CONFIG, output_dir=str(tmp_path))
    kind = type(CONFIG.pipeline.setup())
    with monkeypatch.context() as patch:
        patch.setattr(kind, "generate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            config.setup().run()
    assert not list(tmp_path.iterdir())
    assert config.setup().run().output == tmp_path / f"{NAME}.mp4"
    assert media.read_video(pathlib.Path(tmp_path / f"{NAME}.mp4")).shape[0] == 7
