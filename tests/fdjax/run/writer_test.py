"""What is written is the same every time, and says why it could not be."""

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from fdjax.run import writer as video_writer
from fdjax.run.writer import ArrayWriter, VideoWriter

NOISE = np.random.default_rng(0).integers(0, 256, (40, 96, 160, 3)).astype(np.uint8)

ENCODE = """
import pathlib, sys
import numpy as np
from fdjax.run.writer import VideoWriter
random = np.random.default_rng(0)
picture = np.kron(random.integers(0, 256, (24, 32, 3)), np.ones((8, 8, 1), int))
with VideoWriter(pathlib.Path(sys.argv[1]), fps=16) as writer:
    for n in range(24):
        noise = random.integers(-6, 7, (96, 160, 3))
        frame = picture[n : n + 96, 2 * n : 2 * n + 160] + noise
        writer.write(frame.clip(0, 255).astype(np.uint8)[None])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="MALLOC_PERTURB_ is glibc's")
def test_the_same_frames_make_the_same_file(tmp_path):
    """Whatever memory held before: the encoder must not read what nobody wrote."""
    files = []
    for filling in ("0", "85", "170"):
        files.append(tmp_path / f"{filling}.mp4")
        subprocess.run(
            [sys.executable, "-c", ENCODE, files[-1]],
            env={
                **os.environ,
                "MALLOC_PERTURB_": filling,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "JAX_PLATFORMS": "cpu",
            },
            check=True,
        )
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.parametrize("kind", ["video", "array"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, kind):
    """With a limit on the size of files, which fails as a full disk does."""
    path = tmp_path / ("a.mp4" if kind == "video" else "a.npy")
    path.write_bytes(b"old")

    def write():
        with (
            VideoWriter(path, fps=12) if kind == "video" else ArrayWriter(path, axis=0)
        ) as writer:
            for start in range(0, len(NOISE), 4):
                writer.write(NOISE[start : start + 4])

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(
            OSError, match=rf"{path.name} cannot be written: \w.*run is unchanged"
        ) as info:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert info.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_other_processes_wait_for_the_chunk_only_when_told():
    class Chunk:
        waited = False

        def block_until_ready(self):
            self.waited = True
            return self

    chunk, writer = Chunk(), video_writer.NullWriter()
    writer.write(chunk)
    assert not chunk.waited
    writer.wait()
    assert chunk.waited
