"""Trees of outputs as files, and when a chunk is handed over."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions
from fdjax.run import media, outputs, stream
from fdjax.run.finite import FiniteWatch
from fdjax.run.runner import RunnerInputs
from tests import tiny, tiny_runner


class Views(tiny.DoublingDecoder):
    """Two views, the second mirrored, and one number per frame."""

    def decode(self, params, cache, latent):
        cache, video = super().decode(params, cache, latent)
        views = {"front": video, "rear": video[:, :, ::-1]}
        return cache, {"views": views, "actions": video.mean((2, 3, 4))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewsDecoderConfig(tiny.DoublingDecoderConfig):
    _target: type = Views


class TwoSessions(tiny_runner.TinyRunner):
    def read_inputs(self):
        controls = [jnp.full((2,), self.config.control)] * self.config.num_controls
        return RunnerInputs(controls=controls)

    def encode_conditions(self, params, inputs):
        return Conditions(text=jax.random.normal(jax.random.key(1), (2, 3, 4)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoSessionsConfig(tiny_runner.TinyRunnerConfig):
    _target: type = TwoSessions


def run(tmp_path, kind=TwoSessionsConfig, **changes):
    fields = {
        field.name: getattr(tiny_runner.CONFIG, field.name)
        for field in dataclasses.fields(tiny_runner.CONFIG)
        if field.name != "_target"
    }
    config = kind(**fields)
    return derive_config(config, output_dir=tmp_path, **changes).setup().run()


def assert_nearer(video, desired, *, than):
    """H.264 loses a lot of pictures this small: told by what else it could be."""
    errors = [np.abs(x.astype(int) - desired).mean() for x in (video, than)]
    assert errors[0] < 0.25 * errors[1], errors


def test_every_session_has_a_file_of_its_own(tmp_path):
    result = run(tmp_path)
    names = ["tiny-random-weights.session0.mp4", "tiny-random-weights.session1.mp4"]
    assert [path.name for path in result.outputs] == names
    assert result.output == result.outputs[0]
    first, second = map(media.read_video, result.outputs)
    assert len(first) == len(second) == result.num_frames
    assert np.abs(first.astype(int) - second).max() > 5


def test_every_view_and_every_array(tmp_path):
    result = run(tmp_path, pipeline={"decoder": ViewsDecoderConfig()})
    stem = "tiny-random-weights"
    assert {path.name for path in result.outputs} == {
        *(
            f"{stem}.views.{view}.session{n}.mp4"
            for view in ("front", "rear")
            for n in (0, 1)
        ),
        f"{stem}.actions.npy",
    }
    front, rear = (
        media.read_video(tmp_path / f"{stem}.views.{view}.session0.mp4").astype(int)
        for view in ("front", "rear")
    )
    assert_nearer(front[:, ::-1], rear, than=front)
    actions = np.load(tmp_path / f"{stem}.actions.npy")
    assert actions.shape == (2, result.num_frames)


def test_tiles(tmp_path):
    pipeline = {"decoder": ViewsDecoderConfig()}
    apart = run(tmp_path / "a", pipeline=pipeline)
    tiled = run(tmp_path / "b", pipeline=pipeline, arrangement="tiled")
    assert [path.suffix for path in tiled.outputs] == [".mp4", ".npy"]
    grid = media.read_video(tiled.output).astype(int)
    height, width = (2 * size for size in (6, 8))
    assert grid.shape[1:3] == (height, width)  # sessions below each other, views beside
    videos = {path.name: path for path in apart.outputs}
    rear = videos["tiny-random-weights.views.rear.session1.mp4"]
    corner = grid[:, height // 2 :, width // 2 :]
    assert_nearer(
        corner, media.read_video(rear), than=grid[:, : height // 2, width // 2 :]
    )


class Compared(TwoSessions):
    """Shows white above the first chunk, and black above later ones."""

    def read_inputs(self):
        def above(chunk):
            frames = np.full((2, 2 if chunk else 1, 6, 8, 3), -1.0 if chunk else 1.0)
            return [frames.astype(np.float32)] * 2

        return dataclasses.replace(super().read_inputs(), above=above)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedConfig(tiny_runner.TinyRunnerConfig):
    _target: type = Compared


def test_what_a_video_follows_is_shown_above_it(tmp_path):
    pipeline = {"decoder": ViewsDecoderConfig()}
    result = run(tmp_path, kind=ComparedConfig, pipeline=pipeline, arrangement="tiled")
    names = [path.name for path in result.outputs]
    assert names[-1] == "tiny-random-weights.comparison.mp4"
    both = media.read_video(result.outputs[-1])
    length, height, width, _ = media.read_video(result.output).shape
    assert both.shape == (length, 2 * height, width, 3)
    levels = both[:, : height - 2].mean((1, 2, 3))
    assert levels[0] > 230
    assert (levels[1:] < 25).all()
    assert_nearer(
        both[:, height:], media.read_video(result.output), than=both[:, :height]
    )


def test_one_session_and_one_view_keep_the_plain_name(tmp_path):
    result = run(tmp_path, kind=tiny_runner.TinyRunnerConfig)
    assert [path.name for path in result.outputs] == ["tiny-random-weights.mp4"]


def test_views_of_different_size_cannot_be_tiled():
    views = [jnp.zeros((1, 2, 4, width, 3)) for width in (4, 6)]
    with pytest.raises(ValueError, match=r"needs views of one size .* take 'separate'"):
        outputs.parts(views, "tiled", decoded=True)
    assert len(outputs.parts(views, "separate", decoded=True)) == 2


def test_three_sessions_are_tiled_as_a_square():
    video = jnp.arange(3, dtype=jnp.uint8)[:, None, None, None, None]
    video = jnp.broadcast_to(video + 1, (3, 2, 2, 2, 3))
    grid = np.asarray(outputs._tile([video]))
    assert grid.shape == (2, 4, 4, 3)
    corners = grid[0, ::2, ::2, 0]
    np.testing.assert_array_equal(corners, [[1, 2], [3, 0]])


def test_a_chunk_is_handed_over_before_its_commit_is_begun():
    """And its commit before the next input is asked for."""
    events = []

    class Inputs(list):
        def __getitem__(self, index):
            events.append(f"input {index}")

    def generate(params, cache, control, *, donate, profiler):
        events.append(f"generate {cache}")
        return cache, f"video {cache}"

    def finalize(params, cache, *, donate, profiler):
        events.append(f"finalize {cache}")
        return cache + 1

    pipeline = types.SimpleNamespace(generate=generate, finalize=finalize)
    writer = types.SimpleNamespace(
        write=lambda chunk, keep: events.append(f"shown: {chunk}"),
        wait=lambda: events.append("room"),
    )
    report = types.SimpleNamespace(num_chunks=3, stages=[], dispatched=lambda: None)
    session = stream.Session(pipeline, 0)
    watch = FiniteWatch()
    stream.stream(
        session,
        {},
        Inputs([None] * 3),
        writer,
        report,
        watch,
    )
    assert session.cache == 3
    assert events == [
        event
        for n in range(3)
        for event in (
            f"input {n}",
            f"generate {n}",
            f"shown: video {n}",
            f"finalize {n}",
            "room",
        )
    ]
