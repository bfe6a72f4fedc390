"""Which files a rollout's output becomes: every session and view, apart or tiled."""

import contextlib
import dataclasses
import functools
import math
import operator
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fdjax.axes import Array, PyTree
from fdjax.run import media, writer

Arrangement = Literal["separate", "tiled"]
"""A file for every session and view, or all of them in one picture."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of a run.

    Attributes:
        name: Tells it from the other files; "" where there is only one.
        is_video: Whether it is a video, or an array joined along time.
        pick: Its chunk among the leaves of a chunk's output: uint8[T, H, W, 3] for a
            video, else the array.
    """

    name: str
    is_video: bool
    pick: Callable[[list[Array]], Array]


def parts(output: PyTree, arrangement: Arrangement, *, decoded: bool) -> list[Part]:
    """The files that chunks like this one make, videos first.

    A leaf float[B, T, H, W, 3] of a decoder is video; any other leaf, and latents, are
    arrays, kept whole with their sessions.

    Args:
        output: One chunk's output of `generate`.
        arrangement: How sessions and views of video are put into files.
        decoded: Whether it comes from a decoder.

    Raises:
        ValueError: Views of different size cannot be tiled.
    """
    leaves = jax.tree_util.tree_leaves_with_path(output)
    keystr = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    names = [keystr(path) for path, _ in leaves]
    shapes = [leaf.shape for _, leaf in leaves]
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for _, leaf in leaves]
    is_video = [
        decoded and real and len(shape) == 5 and shape[-1] == 3
        for real, shape in zip(floating, shapes, strict=True)
    ]
    videos = [index for index, video in enumerate(is_video) if video]
    if arrangement == "tiled" and videos:
        sizes = {shapes[index][:4] for index in videos}
        if len(sizes) > 1:
            raise ValueError(
                "arrangement='tiled' needs views of one size and length, got "
                f"[B, T, H, W] {sorted(sizes)}; take 'separate'."
            )
        found = [Part("", True, functools.partial(_pick_tiled, videos))]
    else:
        found = [
            Part(
                _join(names[index], f"session{session}" if sessions > 1 else ""),
                True,
                functools.partial(_pick_session, index, session),
            )
            for index in videos
            for sessions in [shapes[index][0]]
            for session in range(sessions)
        ]
    return found + [
        Part(names[index], False, operator.itemgetter(index))
        for index, video in enumerate(is_video)
        if not video
    ]


class OutputWriter:
    """A `ChunkWriter` of whole outputs: one writer per part, made at the first chunk.

    Args:
        path: Path of the only file; parts with a name put it before the ending.
        arrangement: See `parts`.
        decoded: Whether outputs come from a decoder.
        fps: Frames per second of videos.
        metadata: Tags of videos.
        on_chunk: Is told of the first part's chunks when they are on the host.
        above: What a chunk's video is compared with; see `RunnerInputs.above`.
        first: Index of the first chunk in the session.

    Attributes:
        paths: The files, in the order of `parts`; the comparison is the last.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        arrangement: Arrangement,
        decoded: bool,
        fps: int,
        metadata: dict[str, str],
        on_chunk: writer.ChunkListener,
        above: Callable[[int], Sequence[ArrayLike]] | None = None,
        first: int = 0,
    ):
        self.paths: list[pathlib.Path] = []
        self._above, self._index = above, first
        self._path, self._arrangement, self._decoded = path, arrangement, decoded
        self._fps, self._metadata, self._on_chunk = fps, metadata, on_chunk
        self._writers: list[tuple[Part, writer.ChunkWriter]] = []
        self._stack = contextlib.ExitStack()

    def write(self, chunk: PyTree, keep: writer.Verdict | None = None) -> None:
        """Takes the output of the next chunk; see `ChunkWriter.write`."""
        if not self._writers:
            self._open(chunk)
        leaves = jax.tree.leaves(chunk)
        # Made bytes on the device: a quarter of float32 goes to the host.
        is_video = [self._is_video(x) for x in leaves]
        pixels = [
            media.to_uint8(x) if video else x
            for x, video in zip(leaves, is_video, strict=True)
        ]
        if self._above is not None:
            maps = [media.to_uint8(jnp.asarray(x)) for x in self._above(self._index)]
            videos = [x for x, video in zip(pixels, is_video, strict=True) if video]
            pixels.append(_stack(_tile(maps), _tile(videos)))
        self._index += 1
        for part, file in self._writers:
            file.write(part.pick(pixels), keep)

    def wait(self) -> None:
        """Waits while any file has too many chunks left."""
        for _, file in self._writers:
            file.wait()

    def __enter__(self) -> "OutputWriter":
        self._stack.__enter__()
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        self._stack.__exit__(kind, value, traceback)

    def _is_video(self, leaf: Array) -> bool:
        return bool(parts(leaf, "separate", decoded=self._decoded)[0].is_video)

    def _open(self, chunk: PyTree) -> None:
        """Makes the writers for outputs like this one."""
        found = parts(chunk, self._arrangement, decoded=self._decoded)
        if self._above is not None:
            found.append(Part("comparison", True, operator.itemgetter(-1)))
        for part in found:
            suffix = ".mp4" if part.is_video else ".npy"
            path = self._path.with_name(_join(self._path.stem, part.name) + suffix)
            listener = None if self._writers else self._on_chunk
            file: Any
            if part.is_video:
                file = writer.VideoWriter(
                    path, fps=self._fps, metadata=self._metadata, on_chunk=listener
                )
            else:
                file = writer.ArrayWriter(path, axis=1, on_chunk=listener)
            self._writers.append((part, self._stack.enter_context(file)))
            self.paths.append(path)


def _pick_session(index: int, session: int, leaves: list[Array]) -> Array:
    return leaves[index][session]


def _pick_tiled(videos: list[int], leaves: list[Array]) -> Array:
    return _tile([leaves[index] for index in videos])


@jax.jit
def _tile(views: list[Array]) -> Array:
    """Views uint8[B, T, H, W, 3] side by side, sessions below each other.

    One view: sessions in reading order, as square as it gets; gaps are black.

    Returns:
        uint8[T, rows * H, columns * W, 3].
    """
    sessions, length, height, width, _ = views[0].shape
    # [B, V, T, H, W, 3] -> [B V, T, H, W, 3]
    pictures = jnp.stack(views, axis=1).reshape(-1, length, height, width, 3)
    columns = len(views) if len(views) > 1 else math.ceil(math.sqrt(sessions))
    rows = -(-len(pictures) // columns)
    gaps = rows * columns - len(pictures)
    # [rows columns, T, H, W, 3]
    pictures = jnp.pad(pictures, [(0, gaps)] + [(0, 0)] * 4)
    # [rows, columns, T, H, W, 3]
    grid = pictures.reshape(rows, columns, length, height, width, 3)
    # [T, rows, H, columns, W, 3]
    grid = grid.transpose(2, 0, 3, 1, 4, 5)
    return grid.reshape(length, rows * height, columns * width, 3)


@jax.jit
def _stack(above: Array, below: Array) -> Array:
    """Two videos uint8[T, H, W, 3] of one size as one, uint8[T, 2 H, W, 3]."""
    return jnp.concatenate([above, below], axis=1)


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
