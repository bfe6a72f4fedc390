"""The contact sheet: frames under their numbers and keys."""

import numpy as np

from fdjax.run import media, sheet
from fdjax.run.inputs import RunnerInputs
from fdjax.run.report import RunReport
from tests.tiny_runner import CONFIG


def test_each_frame_has_its_line_of_text():
    frames = [np.full((40, 64, 3), level, np.uint8) for level in (60, 90, 120)]
    picture = sheet.labelled(frames, ["0", "17 wa", ""])
    assert picture.shape == (54, 3 * 64, 3)
    lines, below = picture[:14], picture[14:]
    np.testing.assert_array_equal(below, np.concatenate(frames, 1))
    ink = [(lines[:, 64 * n : 64 * (n + 1)] > 128).sum() for n in range(3)]
    assert ink[1] > ink[0] > ink[2] == 0


def test_narrow_frames_have_no_room_for_text():
    frames = [np.zeros((6, 8, 3), np.uint8)] * 2
    assert sheet.labelled(frames, ["0", "1"]).shape == (6, 16, 3)


def test_frames_are_numbered_as_they_came():
    sampler = media.FrameSampler(count=3)
    frames = np.arange(40, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones(3, np.uint8)
    sampler.add(frames[:5])
    sampler.add(frames[5:])
    numbered = sampler.numbered()
    assert len(numbered) == 3
    assert numbered[0][0] == 0
    assert [int(frame[0, 0, 0]) for _, frame in numbered] == [n for n, _ in numbered]


def test_a_label_is_asked_for_by_chunk_and_frame(tmp_path):
    asked = []

    def label(chunk, frame):
        asked.append((chunk, frame))
        return "w" if chunk > 5 else ""

    report = RunReport(CONFIG, 3, RunnerInputs(label=label), name="x", first=5)
    with report:
        for frames in (1, 2, 2):
            report.arrived(np.zeros((frames, 6, 8, 3), np.uint8))
    labels = [report._frame_label(number) for number in range(5)]
    assert labels == ["0", "1 w", "2 w", "3 w", "4 w"]
    assert asked == [(5, 0), (6, 0), (6, 1), (7, 0), (7, 1)]
