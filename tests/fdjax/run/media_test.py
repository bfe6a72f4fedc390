"""Images, videos, resizing, contact sheets, and files that are wrong."""

import errno
import logging
import pathlib
import threading
import time

import av
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from fdjax.run import media
from fdjax.run import writer as video_writer
from fdjax.run.writer import ArrayWriter, VideoWriter
from tests import processes
from tests.golden import fill_input


def ramp(height=6, width=8):
    """A picture without symmetry.  uint8[H, W, 3]."""
    rows, columns = np.mgrid[:height, :width]
    channels = [rows * 30, columns * 25, 255 - rows * 10 - columns * 10]
    return np.stack(channels, -1).astype(np.uint8)


# Images


def test_read_image_gives_rgb(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(ramp()).save(path)
    np.testing.assert_array_equal(media.read_image(path), ramp())
    np.testing.assert_array_equal(media.read_image(str(path)), ramp())


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16"])
def test_read_image_converts_other_modes(tmp_path, mode):
    gray = np.full((6, 8), 77, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(gray).convert("RGB")
        image = image.quantize(4) if mode == "P" else image.convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    read = media.read_image(path)
    assert read.shape == (6, 8, 3)
    assert np.abs(read.astype(int) - 77).max() <= 1


def test_alpha_is_laid_over_white_with_a_warning(tmp_path, caplog):
    path = tmp_path / "a.png"
    alpha = np.full((6, 8, 1), 255, np.uint8)
    alpha[0] = 0
    alpha[1] = 127
    Image.fromarray(np.concatenate([ramp(), alpha], -1)).save(path)
    with caplog.at_level(logging.WARNING):
        image = media.read_image(path)
    assert "a.png is partly transparent; it is laid over white." in caplog.text
    assert (image[0] == 255).all()
    blend = ramp()[1] * (127 / 255) + 255 * (128 / 255)
    np.testing.assert_allclose(image[1], blend, atol=1)
    np.testing.assert_array_equal(image[2:], ramp()[2:])


def test_opaque_alpha_is_dropped_without_a_word(tmp_path, caplog):
    path = tmp_path / "a.png"
    Image.fromarray(ramp()).convert("RGBA").save(path)
    with caplog.at_level(logging.DEBUG):
        np.testing.assert_array_equal(media.read_image(path), ramp())
    assert "transparent" not in caplog.text


def test_orientation_is_applied(tmp_path):
    image = Image.fromarray(ramp())
    exif = image.getexif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to show
    image.save(tmp_path / "a.png", exif=exif)
    read = media.read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read, np.rot90(ramp(), -1))


def test_missing_and_damaged_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b\.png does not exist"):
        media.read_image(tmp_path / "b.png")
    with pytest.raises(FileNotFoundError, match="is a directory"):
        media.read_image(tmp_path)
    path = tmp_path / "a.png"
    Image.fromarray(ramp(64, 64)).save(path)
    whole = path.read_bytes()
    for content in (b"", b"not an image", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"image file .*a\.png cannot be read"):
            media.read_image(path)


# Resizing


# cv2.resize of OpenCV 5.0.0, channel 0, INTER_LINEAR and INTER_CUBIC.
RESIZED = {
    "bilinear": [
        [140, 171, 50, 95],
        [159, 147, 56, 141],
        [182, 115, 68, 195],
        [177, 96, 107, 157],
        [164, 85, 116, 102],
        [143, 81, 96, 30],
        [164, 155, 131, 46],
        [182, 213, 161, 64],
    ],
    "bicubic": [
        [134, 191, 33, 86],
        [159, 163, 33, 149],
        [186, 122, 51, 207],
        [185, 94, 107, 178],
        [165, 69, 125, 95],
        [143, 69, 98, 24],
        [161, 156, 131, 32],
        [183, 231, 164, 63],
    ],
}


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_resize_equals_opencv(method):
    image = np.clip(fill_input("resize", (5, 6, 3)) * 70 + 128, 0, 255).astype(np.uint8)
    resized = media.resize(image, 8, 4, method)
    assert resized.dtype == np.uint8
    # One level: OpenCV's bilinear kernel has 11 bits.
    np.testing.assert_allclose(resized[..., 0], RESIZED[method], atol=1)
    video = media.resize(np.stack([image, image[::-1]]), 8, 4, method)
    np.testing.assert_array_equal(video[0], resized)


def test_resize_keeps_an_image_of_the_right_size():
    np.testing.assert_array_equal(media.resize(ramp(), 6, 8), ramp())
    assert (media.resize(np.full((3, 5, 3), 9, np.uint8), 7, 2) == 9).all()


def test_resize_knows_its_methods():
    with pytest.raises(ValueError, match=r"one of \['bicubic', 'bilinear'\], got 'x'"):
        media.resize(ramp(), 3, 4, "x")


# Ranges


def test_levels_survive_the_range_of_the_models():
    levels = np.arange(256, dtype=np.uint8)
    values = media.from_uint8(levels)
    assert values.dtype == np.float32
    assert (values[0], values[-1]) == (-1, 1)
    np.testing.assert_array_equal(media.to_uint8(jnp.asarray(values)), levels)
    wild = jnp.asarray([-7.0, 7.0])
    np.testing.assert_array_equal(media.to_uint8(wild), [0, 255])


def test_range_in_bfloat16_is_computed_in_bfloat16():
    torch = pytest.importorskip("torch")
    levels = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(levels).to(torch.bfloat16) / 127.5 - 1
    values = media.from_uint8(levels, ml_dtypes.bfloat16)
    assert values.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(values.astype(np.float32), expected.float().numpy())


# Contact sheets


def test_contact_sheet_is_in_reading_order():
    frames = [np.full((2, 3, 3), value, np.uint8) for value in range(1, 6)]
    sheet = media.contact_sheet(frames, columns=4)
    assert sheet.shape == (4, 12, 3)
    assert sheet[::2, ::3, 0].tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    assert media.contact_sheet(frames[:1]).shape == (2, 3, 3)


@pytest.mark.parametrize("total", [1, 5, 12, 13, 100, 1000])
def test_frame_sampler_spreads_evenly(total):
    sampler = media.FrameSampler(12)
    frames = np.arange(total, dtype=np.uint16)[:, None, None, None]
    for start in range(0, total, 7):
        sampler.add(frames[start : start + 7])
    chosen = [int(frame.item()) for frame in sampler.frames()]
    assert len(chosen) == min(total, 12)
    assert chosen[0] == 0
    assert chosen[-1] >= 0.9 * (total - 1)
    gaps = np.diff(chosen)
    assert (gaps > 0).all()
    assert total < 12 or gaps.max() <= gaps.min() + max(2, total // 12)


# Videos


def moving_square(count, height=32, width=48, start=0):
    """A bright square that moves by one pixel a frame.  uint8[T, H, W, 3]."""
    frames = np.full((count, height, width, 3), (200, 40, 90), np.uint8)
    for index in range(count):
        frames[index, 8:24, start + index : start + index + 16] = (30, 220, 120)
    return frames


def write(path, chunks, **options):
    with VideoWriter(path, fps=12, **options) as writer:
        for chunk in chunks:
            writer.write(chunk)


def boxes(data, *names):
    """Contents of nested boxes of an mp4; `stsd` and its entries have a header."""
    [name, *rest] = names
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8].decode("latin1")
        if kind == name:
            skip = {"stsd": 16, "avc1": 86}.get(name, 8)
            found = data[at + skip : at + size]
            return boxes(found, *rest) if rest else found
        at += size
    raise AssertionError(f"no box {name}")


def test_video_round_trip_keeps_frames_in_order(tmp_path):
    path = tmp_path / "a.mp4"
    video = moving_square(10)
    write(path, [video[:1], jnp.asarray(video[1:4]), video[4:]])
    read = media.read_video(path)
    assert read.shape == video.shape
    # Luma, the only plane of full resolution: 77 around the square, 172 inside.
    luma = read[:, 16] @ np.array([0.2126, 0.7152, 0.0722])
    assert (luma > 125).argmax(-1).tolist() == list(range(10))
    np.testing.assert_array_equal(media.read_video(path, max_frames=4), read[:4])
    np.testing.assert_array_equal(media.read_first_frame(path), read[0])


@pytest.mark.parametrize("colour", [(200, 40, 90), (30, 220, 120), (255, 255, 255)])
def test_video_keeps_colours(tmp_path, colour):
    path = tmp_path / "a.mp4"
    write(path, [np.full((3, 32, 48, 3), colour, np.uint8)])
    read = media.read_video(path)
    # Two levels for 8-bit YUV; taking BT.601 for BT.709 would be off by five.
    np.testing.assert_allclose(read, np.broadcast_to(colour, read.shape), atol=2)


def test_video_is_what_browsers_play(tmp_path):
    path = tmp_path / "a.mp4"
    write(path, [moving_square(5)], metadata={"title": "A = B", "comment": "hello"})
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 12
        assert file.metadata["title"] == "A = B"
        assert file.metadata["comment"] == "hello"
        # BT.709 and limited range, every field (ITU-T H.273, table 2 to 4).
        assert (context.color_primaries, context.color_trc) == (1, 1)
        assert (context.colorspace, context.color_range) == (1, 1)
        frame = next(file.decode(video=0))
        assert (frame.color_primaries, frame.color_trc) == (1, 1)
        assert (frame.colorspace, frame.color_range) == (1, 1)
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    path_to = ("moov", "trak", "mdia", "minf", "stbl", "stsd", "avc1", "colr")
    colr = boxes(data, *path_to)
    assert colr[:4] == b"nclx"
    assert colr[4:10] == bytes([0, 1, 0, 1, 0, 1])
    assert colr[10] >> 7 == 0  # not full range


def test_odd_sizes_are_padded(tmp_path):
    write(tmp_path / "a.mp4", [np.full((2, 5, 7, 3), 128, np.uint8)])
    read = media.read_video(tmp_path / "a.mp4")
    assert read.shape == (2, 6, 8, 3)
    np.testing.assert_allclose(read, 128, atol=2)


def test_the_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with VideoWriter(path, fps=12) as writer:
        writer.write(moving_square(3))
        assert path.read_bytes() == b"old"
    assert path.read_bytes() != b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_a_failed_block_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def fail():
        with VideoWriter(path, fps=12) as writer:
            writer.write(moving_square(3))
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_an_interrupted_block_keeps_what_was_made(tmp_path):
    path = tmp_path / "a.mp4"

    def interrupt():
        with VideoWriter(path, fps=12) as writer:
            writer.write(moving_square(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert len(media.read_video(path)) == 3


def test_ctrl_c_while_the_file_is_completed_waits_for_it(tmp_path, monkeypatch):
    import signal

    path = tmp_path / "a.mp4"
    finish = VideoWriter._finish

    def interrupted_finish(self):
        signal.raise_signal(signal.SIGINT)
        finish(self)

    monkeypatch.setattr(VideoWriter, "_finish", interrupted_finish)
    with processes.default_signals():
        with pytest.raises(KeyboardInterrupt):
            write(path, [moving_square(3)])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(media.read_video(path)) == 3


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_kind_of_image(tmp_path, mode, orientation):
    from PIL import Image, ImageOps

    gray = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    image = Image.fromarray(gray)
    if mode == "I;16":
        image = Image.fromarray(gray.astype(np.uint16) << 8)
    elif mode != "L":
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    if mode == "I;16":
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    expected = np.asarray(upright.convert("RGB"))
    np.testing.assert_array_equal(media.read_image(tmp_path / "a.png"), expected)


def test_no_chunks_make_no_file(tmp_path):
    write(tmp_path / "a.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_wrong_chunks_are_refused(tmp_path):
    for chunk in (np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 3), np.float32)):
        with pytest.raises(ValueError, match=r"must be uint8\[T, H, W, 3\], got"):
            write(tmp_path / "a.mp4", [chunk])
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_fails_is_an_error_and_not_a_hang(tmp_path, monkeypatch):
    def full(self, pixels):
        raise OSError(errno.ENOSPC, "No space left on device")

    def run():
        with VideoWriter(tmp_path / "a.mp4", fps=12) as writer:
            writer.write(moving_square(2))
            while writer._encoder is None:
                time.sleep(0.01)
            monkeypatch.setattr(type(writer._encoder), "add", full)
            for _ in range(200):
                writer.write(moving_square(20))
                writer.wait()

    with pytest.raises(
        OSError, match=r"a\.mp4 cannot be written: No space left"
    ) as info:
        run()
    assert info.value.errno == errno.ENOSPC  # what the command line looks at
    assert list(tmp_path.iterdir()) == []


def test_encoding_overlaps_the_caller(tmp_path, monkeypatch):
    """`write` returns while the chunk before is still being encoded."""
    started, go_on = threading.Event(), threading.Event()
    consume = VideoWriter._consume

    def slow(self, chunk):
        started.set()
        assert go_on.wait(20)
        consume(self, chunk)

    monkeypatch.setattr(VideoWriter, "_consume", slow)
    arrived = []
    with VideoWriter(tmp_path / "a.mp4", fps=12, on_chunk=arrived.append) as writer:
        writer.write(moving_square(2))
        assert started.wait(20)
        writer.write(moving_square(2))
        assert arrived == []
        go_on.set()
    assert [len(chunk) for chunk in arrived] == [2, 2]


def test_the_queue_is_bounded(tmp_path, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(VideoWriter, "_consume", lambda self, chunk: go_on.wait(20))
    monkeypatch.setattr(VideoWriter, "_finish", lambda self: None)
    monkeypatch.setattr(video_writer.os, "replace", lambda *_: None)
    written = []

    def run():
        with VideoWriter(tmp_path / "a.mp4", fps=12) as writer:
            for index in range(8):
                writer.write(moving_square(1))
                writer.wait()
                written.append(index)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 5
    while len(written) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(written) == 3  # one in the encoder's hands, two in the queue
    go_on.set()
    thread.join(20)
    assert len(written) == 8


def test_array_writer_joins_chunks(tmp_path):
    chunks = [np.arange(6.0).reshape(1, 2, 3), np.arange(3.0).reshape(1, 1, 3)]
    with ArrayWriter(tmp_path / "a.npy", axis=1) as writer:
        for chunk in chunks:
            writer.write(jnp.asarray(chunk))
    np.testing.assert_array_equal(
        np.load(tmp_path / "a.npy"), np.concatenate(chunks, axis=1)
    )


def test_missing_and_damaged_videos_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.mp4 does not exist"):
        media.read_video(tmp_path / "a.mp4")
    write(tmp_path / "b.mp4", [moving_square(2)])
    for content in (b"", b"not a video", (tmp_path / "b.mp4").read_bytes()[:500]):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(ValueError, match=r"video file .*a\.mp4 cannot be read: \S"):
            media.read_video(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="cannot be read"):
        media.read_first_frame(tmp_path / "a.mp4")


def test_no_encoder_says_what_to_do(monkeypatch):
    def missing(name, mode):
        raise ValueError(name)

    monkeypatch.setattr(av.codec, "Codec", missing)
    with pytest.raises(RuntimeError, match=r"no encoder libx264 .* package av"):
        VideoWriter(pathlib.Path("a.mp4"), fps=12)
