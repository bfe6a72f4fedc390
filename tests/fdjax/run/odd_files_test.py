"""Pictures of odd kinds and sizes, and files with odd names."""

import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fdjax.run import media
from fdjax.run.writer import VideoWriter

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
VIDEO = np.stack([PICTURE] * 2)


def test_numbers_without_a_stated_white_are_refused(tmp_path):
    gray = np.full((6, 8), 77)
    for name, kind in (("i.tiff", np.int32), ("f.tiff", np.float32)):
        Image.fromarray((gray * 257).astype(kind)).save(tmp_path / name)
        with pytest.raises(ValueError, match=r"32-bit numbers; save it with 8 or 16"):
            media.read_first_frame(tmp_path / name)
    (tmp_path / "a.pgm").write_bytes(
        b"P5 8 6 65535 " + (gray * 257).astype(">u2").tobytes()
    )
    assert (media.read_image(tmp_path / "a.pgm") == 77).all()


def test_large_pictures_are_read_up_to_a_limit(tmp_path, monkeypatch):
    """Pillow warns from half of its limit on, and refuses what is larger."""
    path = tmp_path / "a.png"
    Image.fromarray(np.full((100, 100), 77, np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6_000)
    assert (media.read_first_frame(path) == 77).all()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    with pytest.raises(ValueError, match=r"a\.png must have at most 8,000 pixels"):
        media.read_first_frame(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 6, 0, 0, 0)
    chunks = [head, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(chunk) - 4)
            + chunk
            + struct.pack(">I", zlib.crc32(chunk))
            for chunk in chunks
        )
    )
    with pytest.raises(
        ValueError, match=r"a\.png must have at most 178,956,970 pixels"
    ):
        media.read_first_frame(path)


ODD_NAMES = [
    *("12:30", "concat:a", "-a", "http:a", "imageio:a", "50%d", "frame%03d"),
    *(
        "it's",
        "a b",
        "图",
        "a#b",
        "a?b",
        "[1]",
        "<video0>",
        "new\nline",
        "~",
        "~no-such-user",
    ),
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_names(tmp_path, monkeypatch, name):
    """Of files that are written and read, and of their folders; relative paths."""
    monkeypatch.chdir(tmp_path)
    for folder in ("", name):
        pathlib.Path(folder).mkdir(exist_ok=True)
        stem = "a" if folder else name
        video, picture = (pathlib.Path(folder, stem + end) for end in (".mp4", ".png"))
        with VideoWriter(video, fps=12) as writer:
            writer.write(VIDEO)
        assert len(media.read_video(video)) == 2
        assert media.read_first_frame(str(video)).shape == VIDEO.shape[1:]
        media.write_png(picture, PICTURE)
        np.testing.assert_array_equal(media.read_first_frame(str(picture)), PICTURE)
