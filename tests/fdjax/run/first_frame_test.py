"""What a file is shows in its content; what it looks like, in how it is to be shown."""

import logging

import numpy as np
import pytest
from PIL import Image

from fdjax.run import media
from fdjax.run.writer import VideoWriter

TRANSPARENT = np.full((6, 8, 4), (200, 40, 90, 255), np.uint8)
TRANSPARENT[:3, :, 3] = 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a", "PNG"),
        ("a.png?size=big", "PNG"),
        ("a.mp4", "PNG"),
        ("a.tiff", "TIFF"),
        ("a.avif", "AVIF"),
        ("a.webp", "WEBP"),
    ],
)
def test_a_transparent_picture_of_any_name_is_laid_over_white(
    tmp_path, caplog, name, kind
):
    options = {"AVIF": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    Image.fromarray(TRANSPARENT).save(tmp_path / name, format=kind, **options)
    with caplog.at_level(logging.WARNING):
        image = media.read_first_frame(tmp_path / name)
    assert "laid over white" in caplog.text
    assert (image[:3] == 255).all()
    # AVIF goes through 8-bit YUV.
    np.testing.assert_allclose(image[3:], TRANSPARENT[3:, :, :3], atol=3)


def test_a_video_without_an_ending_is_a_video(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, fps=12) as writer:
        writer.write(np.full((2, 32, 48, 3), 128, np.uint8))
    for name in ("clip", "clip.png"):
        (tmp_path / name).write_bytes(path.read_bytes())
        image = media.read_first_frame(tmp_path / name)
        np.testing.assert_allclose(image, np.full((32, 48, 3), 128), atol=2)


def test_what_is_neither_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(
        ValueError, match=r"a\.png is neither a whole image nor a video"
    ):
        media.read_first_frame(tmp_path / "a.png")


def test_postscript_is_not_run(tmp_path):
    """Pillow would read it by a program, Ghostscript."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    )
    with pytest.raises(ValueError, match="cannot be read"):
        media.read_image(tmp_path / "a.png")


def matrix(a, b, c, d):
    """The nine numbers of a track's matrix as they are in an mp4."""
    fixed = [a, b, 0, c, d, 0, 0, 0]
    numbers = [number << 16 for number in fixed] + [1 << 30]
    return b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((1, 0, 0, 1), lambda video: video),
        ((-1, 0, 0, -1), lambda video: np.rot90(video, 2, (1, 2))),
        ((0, 1, -1, 0), lambda video: np.rot90(video, -1, (1, 2))),
        ((0, -1, 1, 0), lambda video: np.rot90(video, 1, (1, 2))),
        ((-1, 0, 0, 1), lambda video: video[:, :, ::-1]),
        ((1, 0, 0, -1), lambda video: video[:, ::-1]),
    ],
)
def test_a_video_is_read_as_it_is_shown(tmp_path, numbers, expected):
    """A camera held upright writes (0, 1, -1, 0): a quarter turn clockwise to show."""
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[:8, :16] = 255
    path = tmp_path / "a.mp4"
    with VideoWriter(path, fps=12) as writer:
        writer.write(np.stack([frame, frame]))
    plain, data = media.read_video(path), path.read_bytes()
    header = data.index(matrix(1, 0, 0, 1), data.index(b"tkhd"))
    turned = data[:header] + matrix(*numbers) + data[header + 36 :]
    path.write_bytes(turned)
    np.testing.assert_array_equal(media.read_video(path), expected(plain))
