"""Written camera paths: words and keys become poses at the documented speeds."""

import numpy as np
import pytest

from fdjax_models.methods.lingbot_world import paths
from fdjax_models.networks.camera import poses as camera

FPS = 16


def walk(segments):
    return paths.walk(segments, paths.num_frames(segments))


def heading(pose):
    return np.rad2deg(np.arctan2(pose[0, 2], pose[2, 2]))


def test_forward_turn_forward():
    made = walk(paths.read_camera("forward 2.0, yaw 90, forward 1", FPS))
    assert len(made) == 1 + 40 + 45 + 20  # at 0.8 units and 32 degrees a second
    np.testing.assert_array_equal(made[0], np.eye(4))
    np.testing.assert_allclose(made[40, :3, 3], (0, 0, 2), atol=1e-9)
    assert heading(made[85]) == pytest.approx(90)
    np.testing.assert_allclose(made[-1, :3, 3], (1, 0, 2), atol=1e-9)
    camera.check_poses(made)


@pytest.mark.parametrize(
    ("step", "position"),
    [
        ("forward 1.5", (0, 0, 1.5)),
        ("back 1.5", (0, 0, -1.5)),
        ("right 1.5", (1.5, 0, 0)),
        ("left 1.5", (-1.5, 0, 0)),
        ("up 1.5", (0, -1.5, 0)),
        ("down 1.5", (0, 1.5, 0)),
        ("forward -1.5", (0, 0, -1.5)),
        ("wait 2", (0, 0, 0)),
    ],
)
def test_every_word(step, position):
    made = walk(paths.read_camera(step, FPS))
    np.testing.assert_allclose(made[-1, :3, 3], position, atol=1e-9)
    np.testing.assert_allclose(made[-1, :3, :3], np.eye(3), atol=1e-9)


def test_pitch_looks_up_and_stays_below_the_zenith():
    made = walk(paths.read_camera("pitch 30", FPS))
    ahead = made[-1, :3, 2]
    assert -ahead[1] == pytest.approx(np.sin(np.pi / 6))  # y points down
    made = walk(paths.read_camera("pitch 200, forward 1", FPS))
    assert -made[-1, 1, 2] == pytest.approx(np.sin(np.deg2rad(paths.STEEPEST)))
    # It walks on the level all the same.
    np.testing.assert_allclose(made[-1, :3, 3], (0, 0, 1), atol=1e-9)


def test_keys_at_their_speeds():
    made = walk(paths.read_controls("w*16 d*16 WA*8 .*4", FPS))
    assert len(made) == 45
    np.testing.assert_allclose(made[16, :3, 3], (0, 0, paths.SPEED), atol=1e-9)
    assert heading(made[32]) == pytest.approx(paths.TURN)
    np.testing.assert_array_equal(made[44], made[40])
    assert heading(made[40]) == pytest.approx(paths.TURN / 2)


@pytest.mark.parametrize(
    ("keys", "like"), [("j", "a"), ("l", "d"), ("ws", "."), ("ww", "w")]
)
def test_keys_that_do_the_same(keys, like):
    made, expected = (walk(paths.read_controls(k + "*5", FPS)) for k in (keys, like))
    np.testing.assert_allclose(made, expected, atol=1e-12)


def test_which_keys_are_held_in_a_frame():
    segments = paths.read_controls("w*2 da*3", FPS)
    held = [paths.keys_at(segments, frame) for frame in range(8)]
    assert held == ["", "w", "w", "da", "da", "da", "", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "moves nowhere"),
        ("forward 0", "moves nowhere"),
        ("forwards 2", "'forwards 2' must be one of forward, back"),
        ("forward two", "'forward two' must be"),
        ("forward nan", "'forward nan' must be"),
        ("forward 1e12", "must be"),
        ("wait -1", "wait backwards"),
    ],
)
def test_words_that_mean_nothing_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        paths.read_camera(text, FPS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "hold no frame"),
        ("w*0", "hold no frame"),
        ("x*3", r"'x\*3' has unknown key\(s\) 'x'; the keys are w \(forward\)"),
        ("w*-3", "must be keys"),
        ("w**3", "must be keys"),
        ("w*" + "9" * 20, "at most 15 digits"),
    ],
)
def test_keys_that_mean_nothing_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        paths.read_controls(text, FPS)


def test_a_path_without_end_is_walked_as_far_as_is_asked():
    segments = paths.read_controls("w*" + "9" * 15, FPS)
    made = paths.walk(segments, 33)
    np.testing.assert_allclose(made[-1, 2, 3], 32 * paths.SPEED / FPS)
