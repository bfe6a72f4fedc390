"""Pictures as people have them, and how they are brought to the size of a run."""

import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fdjax.run import media, start_image
from fdjax.run.start_image import fit_image, size_of_area, whole_size

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def chunk(kind, data):
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )


def deep_png(path, pixels):
    """A PNG of 16 bits a channel, which Pillow does not write.  uint16[H, W, C]."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_keep_the_upper_eight(tmp_path, channels):
    deep = PICTURE.astype(np.uint16) << 8 | 0x80
    opaque = np.full((6, 8, 1), 65535, np.uint16)
    colours = deep if channels > 2 else deep[..., :1]
    pixels = np.concatenate([colours, opaque], -1)[..., :channels]
    read = media.read_first_frame(deep_png(tmp_path / "a.png", pixels))
    expected = PICTURE if channels > 2 else PICTURE[..., :1].repeat(3, -1)
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        *(("1", "png"), ("L", "tiff"), ("LA", "png"), ("P", "png"), ("P", "gif")),
        *(("PA", "tiff"), ("CMYK", "tiff"), ("YCbCr", "tiff"), ("LAB", "tiff")),
    ],
)
def test_every_mode_is_read_as_pillow_shows_it(tmp_path, mode, ending):
    image = Image.fromarray(PICTURE).convert(mode)
    image.save(tmp_path / f"a.{ending}")
    read = media.read_first_frame(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))


def test_a_transparent_colour_of_a_palette_is_laid_over_white(tmp_path, caplog):
    image = Image.fromarray(PICTURE).quantize(8)
    image.save(tmp_path / "a.png", transparency=0)
    read = media.read_first_frame(tmp_path / "a.png")
    assert (read[np.asarray(image) == 0] == 255).all()
    assert "laid over white" in caplog.text


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff", "avif"])
def test_of_an_animated_picture_the_first_counts(tmp_path, ending):
    first, *rest = (
        Image.fromarray(np.full((6, 8, 3), level, np.uint8)) for level in (10, 90, 200)
    )
    first.save(tmp_path / f"a.{ending}", save_all=True, append_images=rest)
    assert (media.read_first_frame(tmp_path / f"a.{ending}") == 10).all()


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1"])
@pytest.mark.parametrize("read", [media.read_image, media.read_first_frame])
def test_heic_is_refused_with_a_hint(tmp_path, brand, read):
    box = b"ftyp" + brand + bytes(4) + b"mif1heic"
    path = tmp_path / "IMG_0001.JPG"
    path.write_bytes(struct.pack(">I", 4 + len(box)) + box + bytes(200))
    with pytest.raises(ValueError, match=r"IMG_0001.JPG is HEIC.* save it as JPEG"):
        read(path)


# How it fits


def test_stretch_is_the_whole_picture():
    whole = fit_image(PICTURE, (12, 6))
    np.testing.assert_array_equal(whole, media.resize(PICTURE, 12, 6))


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_crop_is_the_middle(method):
    wide = fit_image(PICTURE, (12, 8), "crop", method)  # of 8 columns, 4
    np.testing.assert_array_equal(wide, media.resize(PICTURE[:, 2:6], 12, 8, method))
    tall = fit_image(PICTURE, (2, 8), "crop", method)
    np.testing.assert_array_equal(tall, PICTURE[2:4])


def test_pad_has_black_bars():
    beside = fit_image(PICTURE, (6, 12), "pad")
    np.testing.assert_array_equal(beside[:, 2:10], PICTURE)
    assert not beside[:, :2].any()
    assert not beside[:, 10:].any()
    above = fit_image(PICTURE, (9, 8), "pad")
    np.testing.assert_array_equal(above[1:7], PICTURE)
    assert not above[[0, 7, 8]].any()


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("given", [(1, 3000), (3000, 1), (1, 1), (7, 5), (96, 160)])
@pytest.mark.parametrize("size", [(16, 32), (32, 16), (5, 5)])
def test_any_size_fits_any_other(given, size, fit):
    fitted = fit_image(np.full((*given, 3), 200, np.uint8), size, fit)
    assert fitted.shape == (*size, 3)
    assert fitted.max() == 200
    assert fit == "pad" or (fitted == 200).all()


@pytest.mark.parametrize(
    ("fit", "whole"),
    [("stretch", (48, 64)), ("crop", (64, 64)), ("pad", (48, 48)), ("keep", (48, 64))],
)
def test_the_whole_picture_at_the_scale_of_the_video(fit, whole):
    assert whole_size((10, 10), (48, 64), fit) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("fit", "given", "level", "said"),
    [
        ("stretch", (60, 100), logging.INFO, "resized to 96 x 160."),
        ("stretch", (60, 97), logging.INFO, "resized to 96 x 160."),
        ("stretch", (60, 80), logging.WARNING, "proportions change by 25%; --fit crop"),
        ("stretch", (80, 60), logging.WARNING, "proportions change by 122%"),
        ("crop", (60, 80), logging.WARNING, "160, and 20% of it cut off."),
        ("pad", (60, 80), logging.WARNING, "160, of which 20% are black bars."),
        ("keep", (60, 100), logging.INFO, "resized to 96 x 160."),
    ],
)
def test_what_becomes_of_a_picture_is_said(tmp_path, caplog, fit, given, level, said):
    Image.fromarray(np.zeros((*given, 3), np.uint8)).save(tmp_path / "a.png")
    with caplog.at_level(logging.INFO):
        start_image.read_start_image(tmp_path / "a.png", (96, 160), fit=fit)
    [record] = caplog.records
    assert record.levelno == level
    assert said in record.getMessage()


def test_a_picture_of_the_right_size_is_kept_without_a_word(tmp_path, caplog):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    for fit in ("stretch", "crop", "pad", "keep"):
        with caplog.at_level(logging.INFO):
            read = start_image.read_start_image(tmp_path / "a.png", (6, 8), fit=fit)
        np.testing.assert_array_equal(read[0], media.from_uint8(PICTURE))
    assert not caplog.records


@pytest.mark.parametrize(
    "picture", [(1080, 1920), (1920, 1080), (3000, 4000), (768, 1024), (1000, 1000)]
)
def test_a_picture_gives_the_size(picture):
    """By the rule of Wan-Video/Wan2.1, wan/image2video.py, max_area 480 * 832."""
    area, aspect = 480 * 832, picture[0] / picture[1]
    theirs = (
        round(np.sqrt(area * aspect) // 8 // 2 * 2) * 8,
        round(np.sqrt(area / aspect) // 8 // 2 * 2) * 8,
    )
    found = size_of_area(area, aspect, (16, 16))
    assert found == theirs
    assert abs(found[0] / found[1] / aspect - 1) < 0.05


def test_a_picture_of_the_runs_size_keeps_it():
    sizes = [(h, w) for h in range(16, 1300, 16) for w in range(16, 1300, 16)]
    assert all(size_of_area(h * w, h / w, (16, 16)) == (h, w) for h, w in sizes)


def test_a_strip_has_at_least_one_patch():
    assert size_of_area(480 * 832, 1e-6, (16, 16))[0] == 16
