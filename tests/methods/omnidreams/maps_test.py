"""HD maps of a run: chunks of recorded and drawn ones, and files that are refused."""

import logging

import numpy as np
import pytest

from fdjax.run import media, writer
from fdjax_models.methods.omnidreams import maps
from fdjax_models.methods.omnidreams.road import world as worlds
from fdjax_models.methods.omnidreams.road.camera import FRONT

SIZE = (32, 48)
COMMON = {"size": SIZE, "fps": 30, "len_t": 2, "num_chunks": 3}


def write_video(path, frames, size=SIZE, fps=30):
    """Grey levels that rise by 8 a frame."""
    video = np.broadcast_to(
        (16 + 8 * np.arange(frames, dtype=np.uint8))[:, None, None, None],
        (frames, *size, 3),
    )
    with writer.VideoWriter(path, fps=fps, metadata={}, on_chunk=None) as file:
        file.write(np.ascontiguousarray(video))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("maps") / "map.mp4", 21)


def test_chunks_follow_each_other(video):
    found = maps.recorded([video, video], **COMMON)
    assert found.num_chunks == 3
    chunks = [found.chunk(index) for index in range(3)]
    assert [chunk.shape for chunk in chunks] == [
        (1, 2, frames, *SIZE, 3) for frames in (5, 8, 8)
    ]
    levels = np.concatenate(chunks, axis=2)[0, 1].mean((1, 2, 3))
    np.testing.assert_allclose(levels, (16 + 8 * np.arange(21)) / 127.5 - 1, atol=0.03)


def test_a_short_video_ends_the_run_and_says_where(video, caplog):
    with caplog.at_level(logging.WARNING):
        found = maps.recorded([video], **COMMON | {"num_chunks": 9})
    assert found.num_chunks == 3
    assert "21 frames, which cover 3 of 9 chunks" in caplog.text


def test_other_rates_and_sizes_are_taken_where_wanted(tmp_path):
    path = write_video(tmp_path / "slow.mp4", 8, size=(16, 24), fps=10)
    found = maps.recorded([path], **COMMON, resample=True)
    assert found.pixels.shape == (1, 21, *SIZE, 3)
    levels = found.pixels[0].mean((1, 2, 3))
    # Three frames for each one.
    np.testing.assert_allclose(levels, 16 + 8 * (np.arange(21) // 3), atol=3)


@pytest.mark.parametrize(
    ("frames", "fields", "problem"),
    [
        (4, {}, r"covers 0 chunks.*needs 5 frames, it has 4"),
        (5, {"fps": 24}, "24 frames a second, it has 30"),
        (5, {"size": (48, 32)}, "48 x 32 pixels.*it is 32 x 48"),
    ],
)
def test_maps_that_do_not_fit(frames, fields, problem, tmp_path):
    path = write_video(tmp_path / "map.mp4", frames)
    with pytest.raises(ValueError, match=problem) as caught:
        maps.recorded([path], **COMMON | fields)
    assert "\n" not in str(caught.value)


def test_a_damaged_video(video, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(video.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"broken\.mp4 cannot be read"):
        maps.recorded([path], **COMMON)
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        maps.recorded([tmp_path / "none.mp4"], **COMMON)


def test_first_frames_are_fitted(tmp_path, caplog):
    path = tmp_path / "frame.png"
    media.write_png(path, np.full((64, 96, 3), 255, np.uint8))
    found = maps.first_frames([path, path], SIZE, "stretch")
    assert found.shape == (1, 2, *SIZE, 3)
    assert (found == 1).all()
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    found = maps.first_frames([path], (32, 32), "pad")
    assert found.shape[2:4] == (32, 32)
    assert (found[0, 0, 0] == -1).all()  # a bar
    maps.first_frames([path], (32, 32), "stretch")
    assert "its proportions change by 50%" in caplog.text
    assert maps.first_frames([path], SIZE, None).shape[2:4] == SIZE
    with pytest.raises(ValueError, match=r"frame\.png must have the proportions of 32"):
        maps.first_frames([path], (32, 32), None)


def test_drawn_chunks_are_those_of_one_drive():
    drive = {"cameras": (FRONT,), "size": SIZE, "len_t": 1, "num_chunks": 3}
    world = worlds.make_world(1)
    found = maps.drawn(world, None, **drive)
    assert found.num_chunks == 3
    chunks = [np.asarray(found.chunk(index)) for index in range(3)]
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    assert np.abs(chunks[2][:, :, 0] - chunks[1][:, :, 0]).max() > 0.5
    still = maps.drawn(world, np.zeros((9, 2), np.float32), **drive)
    assert (np.asarray(still.chunk(2)) != chunks[2]).any()
