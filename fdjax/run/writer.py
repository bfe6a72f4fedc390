"""Writes a video while it is made: encoding runs on a thread beside the device."""

import contextlib
import fractions
import os
import pathlib
import platform
import queue
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from fdjax.checkpoint import files, temporary
from fdjax.run import media, signals

# Without the flags colours are off by up to 4 levels, with them by 1.5.
_TO_BT709 = (
    "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_inp"
)

# x264's AVX-512 code of mbtree reads memory that nothing has written (core 165, seen
# with MALLOC_PERTURB_): the same frames then give another file from call to call. AVX,
# which jaxlib requires, is exact and no slower here.
_X264 = {"x264-params": "asm=MMX2,SSE2Fast,SSSE3,SSE4.2,AVX"}

_BT709, _LIMITED = 1, 1  # ITU-T H.273: colours, transfer and matrix; 16 to 235

Verdict = Callable[[], bool]
"""Says whether a chunk is to be written; may wait for it."""

ChunkListener = Callable[[np.ndarray], None]
"""Is called on the writer's thread with every chunk that arrived on the host."""


class ChunkWriter(Protocol):
    """Takes the chunks of a rollout and makes one file of them."""

    def write(self, chunk: Any, keep: "Verdict | None" = None) -> None:
        """Takes the next chunk; waits for nothing.

        Args:
            chunk: An array, or a tree of them.
            keep: Asked on the writer's thread before the chunk is written; if it says
                no, the file ends before this chunk.
        """

    def wait(self) -> None:
        """Waits while too many chunks are not written yet.

        Apart from `write`, so that the device can be given more to do in between.
        """

    def __enter__(self) -> "ChunkWriter":
        """Starts."""

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        """Completes the file; after a failure leaves an earlier file as it was."""


class NullWriter:
    """Writes nothing, but waits like a writer: for processes other than the first."""

    paths: tuple[pathlib.Path, ...] = ()

    def __init__(self) -> None:
        self._chunk: Any = None

    def write(self, chunk: Any, keep: Verdict | None = None) -> None:
        """Takes the next chunk."""
        del keep
        self._chunk = chunk

    def wait(self) -> None:
        """Waits for the chunk."""
        jax.block_until_ready(self._chunk)
        self._chunk = None

    def __enter__(self) -> "NullWriter":
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        del kind, value, traceback


class _ThreadedWriter:
    """Moves chunks to the host and `_consume`s them, both on a thread.

    While more than `queue_size` chunks are left, `wait` blocks, so that the device does
    not run ahead without bound.
    """

    def __init__(
        self,
        path: pathlib.Path,
        on_chunk: ChunkListener | None,
        queue_size: int = 2,
    ):
        self.path = path
        with files.explain_write(path):
            self._place = temporary.Temporary(path)
        self._on_chunk = on_chunk
        self._queue: queue.Queue = queue.Queue()
        self._queue_size, self._left = queue_size, 0
        self._taken = threading.Condition()
        self._error: BaseException | None = None
        self._empty = True
        self._ended = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def write(self, chunk: Any, keep: Verdict | None = None) -> None:
        """Takes the next chunk, a numpy or jax array; waits for nothing.

        Args:
            chunk: The chunk.
            keep: See `ChunkWriter.write`.

        Raises:
            OSError: An earlier chunk could not be written; names the file.
            RuntimeError: Writing an earlier chunk failed.
        """
        self._check()
        if isinstance(chunk, jax.Array):
            chunk.copy_to_host_async()
        with self._taken:
            self._left += 1
        self._queue.put((chunk, keep))

    def wait(self) -> None:
        """Waits until at most `queue_size` chunks are left."""
        with self._taken:
            self._taken.wait_for(lambda: self._left <= self._queue_size)

    def close(self) -> None:
        """Writes what waits and gives the file its own name; no chunks, no file.

        Raises:
            OSError, RuntimeError: Writing failed; the temporary file is removed.
        """
        with signals.held():
            try:
                self._stop()
                self._check()
                if not self._empty:
                    with self._explained():
                        self._finish()
                        self._place.commit()
            finally:
                self._discard()

    def abort(self) -> None:
        """Drops what waits and removes the temporary file."""
        self._error = self._error or RuntimeError("writing was given up")
        self._stop()
        self._discard()

    def __enter__(self) -> "_ThreadedWriter":
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        del value, traceback
        # An interrupted rollout keeps what was made; a failed one leaves the old file.
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.abort()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            with self._taken:
                self._left -= 1
                self._taken.notify_all()
            if self._error is not None or self._ended:
                continue  # keep emptying the queue: wait() may be waiting for room
            chunk, keep = item
            try:
                self._ended = keep is not None and not keep()
                if self._ended:
                    continue
                chunk = np.asarray(chunk)
                with self._explained():
                    self._consume(chunk)
                self._empty = False
                if self._on_chunk is not None:
                    self._on_chunk(chunk)
            except BaseException as error:  # raised again by write() or close()
                self._error = error

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Names the file, and what is there now, where the system does not."""
        try:
            yield
        except OSError as error:  # PyAV's own errors derive from it
            there = (
                "what was there before this run is unchanged"
                if os.path.lexists(self.path)
                else "nothing of it is kept"
            )
            reason = error.strerror or str(error)
            message = f"{self.path} cannot be written: {reason}; {there}"
            raise OSError(error.errno, message) from error

    def _consume(self, chunk: np.ndarray) -> None:
        raise TypeError(f"{type(self).__name__} must define _consume")

    def _finish(self) -> None:
        """Completes the temporary file."""

    def _discard(self) -> None:
        self._place.discard()


class ArrayWriter(_ThreadedWriter):
    """Collects chunks and saves them as one `.npy`, joined along an axis."""

    def __init__(
        self, path: pathlib.Path, *, axis: int, on_chunk: ChunkListener | None = None
    ):
        self._axis = axis
        self._chunks: list[np.ndarray] = []
        super().__init__(path, on_chunk)

    def _consume(self, chunk: np.ndarray) -> None:
        self._chunks.append(chunk)

    def _finish(self) -> None:
        with self._place.path.open("wb") as file:
            # Handed a real file, numpy's C code tells an error without its number.
            plain: Any = types.SimpleNamespace(write=file.write)
            np.lib.format.write_array(plain, np.concatenate(self._chunks, self._axis))


class VideoWriter(_ThreadedWriter):
    """An mp4 that browsers play: H.264, yuv420p, index in front.

    Chunks are uint8[T, H, W, 3]; an odd height or width is padded by its last row or
    column. The colours are tagged BT.709, in the stream and in the file.
    """

    # PyAV itself and not imageio's plugin of it, which sets neither colour tags nor
    # the container's options, and converts colours without the flags.

    def __init__(
        self,
        path: pathlib.Path,
        *,
        fps: float,
        metadata: Mapping[str, str] | None = None,
        on_chunk: ChunkListener | None = None,
    ):
        """Starts the thread; the encoder starts with the first chunk.

        Args:
            path: Ends in `.mp4`; its directory exists.
            fps: Frames per second.
            metadata: Tags of the file, e.g. title and comment.
            on_chunk: Is told of every chunk that was handed to the encoder.

        Raises:
            RuntimeError: There is no encoder.
        """
        media.check_video_encoder()
        self._rate = fractions.Fraction(fps).limit_denominator(1001)
        self._metadata = dict(metadata or {})
        self._encoder: _Encoder | None = None
        super().__init__(path, on_chunk)

    def _consume(self, chunk: np.ndarray) -> None:
        if chunk.ndim != 4 or chunk.shape[-1] != 3 or chunk.dtype != np.uint8:
            raise ValueError(
                "A chunk of video must be uint8[T, H, W, 3], got "
                f"{chunk.dtype}{list(chunk.shape)}."
            )
        odd = [size % 2 for size in chunk.shape[1:3]]
        if any(odd):
            pad = [(0, 0), *((0, more) for more in odd), (0, 0)]
            chunk = np.pad(chunk, pad, mode="edge")
        if self._encoder is None:
            size = chunk.shape[1:3]
            self._encoder = _Encoder(self._place.path, size, self._rate, self._metadata)
        for frame in chunk:
            self._encoder.add(np.ascontiguousarray(frame))

    def _finish(self) -> None:
        assert self._encoder is not None
        self._encoder.finish()

    def _discard(self) -> None:
        if self._encoder is not None:
            self._encoder.close()
        super()._discard()


class _Encoder:
    """Frames uint8[H, W, 3] of one size into an mp4."""

    def __init__(
        self,
        path: pathlib.Path,
        size: tuple[int, int],
        rate: fractions.Fraction,
        metadata: Mapping[str, str],
    ):
        import av

        height, width = size
        self._container = av.open(
            str(path), "w", format="mp4", options={"movflags": "faststart"}
        )
        self._container.metadata.update(metadata)
        stream: Any = self._container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        stream.options = {
            "crf": "18",
            "preset": "veryfast",
            **(_X264 if is_x86 else {}),
        }
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        context.thread_type = "FRAME"  # slices, PyAV's default, compress less well
        self._stream, self._interval, self._count = stream, 1 / rate, 0
        self._graph = graph = av.filter.Graph()
        source = graph.add_buffer(
            width=width,
            height=height,
            format=av.VideoFormat("rgb24"),
            time_base=self._interval,
        )
        scale, arguments = _TO_BT709.split("=", 1)
        graph.link_nodes(
            source,
            graph.add(scale, arguments),
            graph.add("format", "yuv420p"),
            graph.add("buffersink"),
        ).configure()

    def add(self, pixels: np.ndarray) -> None:
        """Encodes one frame."""
        import av

        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = self._count, self._interval
        self._count += 1
        self._graph.push(frame)
        converted: Any = self._graph.pull()
        converted.colorspace = converted.color_primaries = _BT709
        converted.color_trc, converted.color_range = _BT709, _LIMITED
        self._container.mux(self._stream.encode(converted))

    def finish(self) -> None:
        """Encodes what waits and completes the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def close(self) -> None:
        """Lets go of the file, complete or not."""
        with contextlib.suppress(OSError):
            self._container.close()
