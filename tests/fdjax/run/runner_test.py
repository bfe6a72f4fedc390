"""Runs from files to files on the tiny pipeline, and what goes wrong in them."""

import dataclasses
import errno
import json
import logging
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checkpoint
from fdjax.config import derive_config, from_json
from fdjax.contract.conditioner import Conditions, TextEncoder, TextEncoderConfig
from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.run import conditions_store, media, plugins
from fdjax.run import writer as video_writer
from fdjax.run.runner import RunnerConfig
from tests import tiny
from tests.tiny_runner import CONFIG, TinyRunner

NAME = "tiny-random-weights"
FILES = {f"{NAME}.{kind}" for kind in ("mp4", "png", "config.json", "replay.json")}
FILES.add(f"stats_{NAME}.json")


@pytest.fixture
def config(tmp_path):
    return derive_config(CONFIG, output_dir=str(tmp_path / "out"))


def names(config):
    return {path.name for path in config.setup().run().output.parent.iterdir()}


def test_run_writes_video_sheet_stats_and_config(config):
    result = config.setup().run()
    folder = result.output.parent
    assert {path.name for path in folder.iterdir()} == FILES
    assert result.num_frames == 1 + 2 * 3
    assert media.read_video(result.output).shape == (7, 6, 8, 3)
    assert media.read_image(folder / f"{NAME}.png").shape == (12, 32, 3)
    chunks = json.loads((folder / f"stats_{NAME}.json").read_text())
    assert chunks == result.stats
    assert [chunk["autoregressive_index"] for chunk in chunks] == [0, 1, 2, 3]
    assert [chunk["frames"] for chunk in chunks] == [1, 2, 2, 2]
    assert all(chunk["wall_ms"] > 0 for chunk in chunks)
    assert all(chunk["random_weights"] for chunk in chunks)
    assert "encode_ms" not in chunks[0]


def test_a_run_repeats_from_its_config(config, tmp_path, monkeypatch):
    monkeypatch.setenv(plugins.VARIABLE, "tiny=tests.tiny_runner:RUNNER_CONFIGS")
    first = config.setup().run()
    text = (first.output.parent / f"{NAME}.config.json").read_text()
    assert json.loads(text)["_class"] == "TinyRunnerConfig"
    again = from_json(text, classes=plugins.known_classes())
    assert again == config
    moved = derive_config(again, output_dir=str(tmp_path / "again"))
    second = moved.setup().run()
    assert second.output.read_bytes()[:8] == first.output.read_bytes()[:8]
    np.testing.assert_array_equal(
        media.read_video(first.output), media.read_video(second.output)
    )


def test_the_video_is_what_the_pipeline_makes(config):
    """The loop that donates and overlaps equals one that does neither."""
    config = derive_config(config, pipeline={"decoder": None}, seed=3)
    config = derive_config(config, pipeline={"spatial_compression_ratio": 2})
    result = config.setup().run()
    assert result.output.name == f"{NAME}.npy"
    pipeline = config.pipeline.setup()
    params = pipeline.init_params(jax.random.key(0))
    conditions = Conditions(text=jax.random.normal(jax.random.key(1), (1, 3, 4)))
    cache = pipeline.initialize_cache(
        params,
        conditions=conditions,
        pixel_height=6,
        pixel_width=8,
        key=jax.random.key(3),
    )
    latents = []
    for _ in range(4):
        cache, latent = pipeline.generate(params, cache, jnp.full((1,), 0.1))
        cache = pipeline.finalize(params, cache)
        latents.append(latent)
    np.testing.assert_array_equal(np.load(result.output), np.concatenate(latents, 1))


def test_seed_and_control_matter(config):
    videos = []
    for number, changes in enumerate([{}, {"seed": 1}, {"control": 2.0}]):
        folder = f"{config.output_dir}{number}"
        changed = derive_config(config, output_dir=folder, **changes)
        videos.append(media.read_video(changed.setup().run().output))
    assert not np.array_equal(videos[0], videos[1])
    assert not np.array_equal(videos[0], videos[2])


def test_controls_that_end_end_the_run(config):
    result = derive_config(config, num_controls=2).setup().run()
    assert result.num_frames == 3


def test_profiling_adds_the_stages(config):
    result = derive_config(config, profile=True).setup().run()
    for chunk in result.stats:
        stages = [chunk[f"{s}_ms"] for s in ("encode", "diffuse", "decode", "finalize")]
        assert all(time > 0 for time in stages)
        assert chunk["total_ms"] == pytest.approx(sum(stages))
        assert chunk["total_ms_wo_finalize"] == pytest.approx(sum(stages[:3]))


def test_random_weights_are_announced(config, caplog):
    with caplog.at_level(logging.WARNING):
        result = config.setup().run()
    assert "RANDOM WEIGHTS" in caplog.text
    assert b"RANDOM WEIGHTS" in result.output.read_bytes()


def test_without_random_weights_a_checkpoint_is_needed(config, monkeypatch):
    loaded = []

    def load_params(self, *, only=None, sharding=None):
        loaded.append(only)
        return self.init_params(jax.random.key(5), only=only)

    monkeypatch.setattr(type(config.pipeline.setup()), "load_params", load_params)
    assert names(derive_config(config, random_weights=False)) == {
        name.replace("-random-weights", "") for name in FILES
    }
    assert loaded == [["transformer", "encoder", "decoder"]]


CALLS = []


class Letters(TextEncoder):
    """Encodes a prompt as the codes of its letters, and notes what is done."""

    def init_params(self, key):
        return {"scale": jnp.ones(())}

    def tokenize(self, text):
        return np.array([[ord(letter) for letter in prompt[:3]] for prompt in text])

    def encode(self, params, text):
        if not isinstance(params["scale"], jax.core.Tracer):  # asked for shapes alone
            CALLS.append("encode")
        codes = params["scale"] * self.tokenize(text) / 100
        return jnp.tile(codes[..., None], 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LettersConfig(TextEncoderConfig):
    _target: type = Letters
    checkpoint_path: str = __file__


def test_a_prompt_is_encoded_once_and_then_read_from_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    keep_small_ones = conditions_store.cached_encode.__kwdefaults__
    monkeypatch.setitem(keep_small_ones, "keep_from", 0)

    def load_params(component, *, sharding=None):
        if isinstance(component, Letters):
            CALLS.append("load")
        return component.init_params(jax.random.key(0))

    monkeypatch.setattr(checkpoint, "load_params", load_params)
    config = RunnerConfig(
        runner_name="prompted",
        pipeline=derive_config(
            CONFIG.pipeline,
            encoder=None,
            conditioner=TextImageConditionerConfig(text_encoder=LettersConfig()),
        ),
        prompt="a beach",
        output_dir=tmp_path / "out",
        total_blocks=2,
        pixel_height=6,
        pixel_width=8,
    )
    CALLS.clear()
    first = media.read_video(config.setup().run().output)
    assert CALLS == ["load", "encode"]
    again = media.read_video(config.setup().run().output)
    assert CALLS == ["load", "encode"]
    np.testing.assert_array_equal(first, again)
    other = derive_config(config, prompt="xyz").setup().run()
    assert CALLS == ["load", "encode"] * 2
    assert not np.array_equal(media.read_video(other.output), first)
    derive_config(config, conditions_cache=False).setup().run()
    assert CALLS == ["load", "encode"] * 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointedConfig(tiny.DoublingDecoderConfig):
    checkpoint_path: str | None = None


def test_a_missing_checkpoint_is_found_before_anything_is_read(config, monkeypatch):
    monkeypatch.setattr(
        TinyRunner, "load_weights", lambda *_, **__: pytest.fail("weights read")
    )
    decoder = CheckpointedConfig(checkpoint_path="/no/such/file")
    config = derive_config(config, random_weights=False, pipeline={"decoder": decoder})
    with pytest.raises(FileNotFoundError, match=r"/no/such/file \(CheckpointedConfig"):
        config.setup().run()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"total_blocks": 0}, ValueError, "total_blocks must be at least 1, got 0"),
        ({"total_blocks": -3}, ValueError, "total_blocks must be at least 1, got -3"),
        ({"fps": 0}, ValueError, "fps must be at least 1"),
        ({"runner_name": "a b"}, ValueError, "runner_name must be letters"),
        ({"runner_name": "../x"}, ValueError, "runner_name must be letters"),
        ({"total_blocks": "4"}, TypeError, "total_blocks must be int, got '4'"),
    ],
)
def test_bad_values_are_refused_by_the_config(config, changes, error, message):
    with pytest.raises(error, match=message):
        derive_config(config, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_height": 7}, "multiples of 2, got 7 x 8"),
        ({"control": -1.0}, "control must be at least 0"),
        ({"num_controls": 0}, "at least one chunk"),
    ],
)
def test_bad_inputs_are_refused_before_weights_are_read(
    config, monkeypatch, changes, message
):
    monkeypatch.setattr(
        TinyRunner, "load_weights", lambda *_, **__: pytest.fail("weights read")
    )
    with pytest.raises(ValueError, match=message):
        derive_config(config, **changes).setup().run()


def test_a_prompt_that_nothing_reads_is_refused(config):
    plain = RunnerConfig(
        runner_name="plain", pipeline=config.pipeline, prompt="x", random_weights=True
    )
    with pytest.raises(ValueError, match="plain takes no prompt"):
        plain.setup().run()


def test_unwritable_output_is_found_first(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        TinyRunner, "load_weights", lambda *_, **__: pytest.fail("weights read")
    )
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PermissionError, match="cannot be written"):
            derive_config(config, output_dir=folder).setup().run()


def fail_at(monkeypatch, index, error):
    """Makes the third call of `generate` raise."""
    pipeline_class = type(CONFIG.pipeline.setup())
    original = pipeline_class.generate
    calls = []

    def generate(self, *args, **kwargs):
        if threading.current_thread() is threading.main_thread():  # not from shapes
            calls.append(1)
            if len(calls) == index + 1:
                raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(pipeline_class, "generate", generate)


def test_ctrl_c_leaves_a_playable_file(config, monkeypatch):
    fail_at(monkeypatch, 2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match="3 frames"):
        config.setup().run()
    folder = pathlib.Path(config.output_dir)
    assert {path.name for path in folder.iterdir()} == FILES
    assert len(media.read_video(folder / f"{NAME}.mp4")) == 3
    assert len(json.loads((folder / f"stats_{NAME}.json").read_text())) == 2


def test_ctrl_c_before_the_first_chunk_leaves_earlier_outputs(config, monkeypatch):
    before = config.setup().run().output.read_bytes()
    fail_at(monkeypatch, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match="Nothing was made"):
        config.setup().run()
    folder = pathlib.Path(config.output_dir)
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / f"{NAME}.mp4").read_bytes() == before


def test_a_failed_run_leaves_earlier_outputs(config, monkeypatch):
    output = config.setup().run().output
    before = {path.name: path.read_bytes() for path in output.parent.iterdir()}
    fail_at(monkeypatch, 2, RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        derive_config(config, seed=9).setup().run()
    after = {path.name: path.read_bytes() for path in output.parent.iterdir()}
    assert after == before


def test_a_failing_encoder_is_reported(config, monkeypatch):
    def consume(self, chunk):
        raise RuntimeError("the encoder stopped: no space")

    monkeypatch.setattr(video_writer.VideoWriter, "_consume", consume)
    with pytest.raises(RuntimeError, match="the encoder stopped: no space"):
        config.setup().run()


def test_the_next_chunk_is_dispatched_while_the_last_one_is_encoded(
    config, monkeypatch
):
    third_chunk = threading.Event()
    pipeline_class = type(CONFIG.pipeline.setup())
    generate, consume = pipeline_class.generate, video_writer.VideoWriter._consume
    calls, waited = [], []

    def noted_generate(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            third_chunk.set()
        return generate(self, *args, **kwargs)

    def slow_consume(self, chunk):
        waited.append(third_chunk.wait(20))
        consume(self, chunk)

    monkeypatch.setattr(pipeline_class, "generate", noted_generate)
    monkeypatch.setattr(video_writer.VideoWriter, "_consume", slow_consume)
    assert config.setup().run().num_frames == 7
    assert waited == [True] * 4


def test_the_commit_does_not_wait_for_a_slow_encoder(config, monkeypatch):
    """The device works on the commit while the host waits for room to write."""
    pipeline_class = type(CONFIG.pipeline.setup())
    finalize, consume = pipeline_class.finalize, video_writer.VideoWriter._consume
    last_commit, calls, waited = threading.Event(), [], []

    def noted_finalize(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:  # one chunk in the encoder's hands, two left, and this one
            last_commit.set()
        return finalize(self, *args, **kwargs)

    def slow_consume(self, chunk):
        waited.append(last_commit.wait(20))
        consume(self, chunk)

    monkeypatch.setattr(pipeline_class, "finalize", noted_finalize)
    monkeypatch.setattr(video_writer.VideoWriter, "_consume", slow_consume)
    config.setup().run()
    assert waited == [True] * 4


def test_other_processes_write_nothing(config, monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    config.setup().run()
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_is_shown_when_asked(config, capsys):
    derive_config(config, progress=True).setup().run()
    assert "4/4" in (shown := capsys.readouterr().err)
    assert "frames/s" in shown
    config.setup().run()
    assert "frames/s" not in capsys.readouterr().err


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_at_the_end_says_that_the_video_is_there(
    config, monkeypatch
):
    monkeypatch.setattr(media, "contact_sheet", lambda frames: frames[0])
    monkeypatch.setattr("imageio.v3.imwrite", no_space)
    with pytest.raises(
        OSError, match=rf"{NAME}\.png cannot be written: No space"
    ) as info:
        config.setup().run()
    video = pathlib.Path(config.output_dir).absolute() / f"{NAME}.mp4"
    assert str(info.value).endswith(f"complete is {video}")
    assert info.value.errno == errno.ENOSPC
    assert len(media.read_video(video)) == 7
    assert [path.name for path in video.parent.iterdir()] == [video.name]


def test_a_disk_that_fills_up_in_the_middle_leaves_what_was_there(config, monkeypatch):
    video = config.setup().run().output
    before = video.read_bytes()
    monkeypatch.setattr(video_writer._Encoder, "add", no_space)
    with pytest.raises(
        OSError, match=rf"{NAME}\.mp4 cannot be written: No space .* is unchanged"
    ):
        derive_config(config, overwrite=True).setup().run()
    assert video.read_bytes() == before
    assert {path.name for path in video.parent.iterdir()} == FILES


def test_a_missing_checkpoint_names_its_flag(config, monkeypatch):
    from fdjax.run import edge

    def fail(component, sharding=None):
        raise FileNotFoundError(f"no weights for {type(component).__name__}")

    monkeypatch.setattr(checkpoint, "load_params", fail)
    pipeline = config.setup().pipeline
    for name, flag in (
        ("transformer", "pipeline.diffusion_model.transformer"),
        ("decoder", "pipeline.decoder"),
    ):
        with pytest.raises(FileNotFoundError) as info:
            pipeline.load_params(only=[name])
        text = edge.message(info.value)
        assert text.endswith(f" (flag --{flag}.checkpoint_path)")
