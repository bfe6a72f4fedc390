"""Memory-mapped checkpoint files: bytes are read when a tensor is asked for."""

import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.tensors import LazyTensor


class MappedFile:
    """A file mapped read-only into memory, with bounds checked.

    Args:
        path: An existing, non-empty file; or what messages call it.
        content: Its bytes, where they are in memory already.

    Attributes:
        path: The file.
        size: Its length in bytes.
    """

    def __init__(self, path: Path | str, content: bytes | None = None):
        self.path = path
        self._map: mmap.mmap | bytes
        if content is not None:
            self._map, self.size = content, len(content)
            return
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if not self.size:
                raise CheckpointError(f"{path} is empty: the download did not finish")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def bytes(self, start: int, length: int) -> bytes:
        """A copy of `length` bytes from `start`; fewer at the end of the file."""
        return self._map[start : start + length]

    @property
    def view(self) -> memoryview:
        """All of it, without a copy."""
        return memoryview(self._map)

    def tensor(
        self,
        start: int,
        dtype: np.dtype,
        shape: Sequence[int],
        strides: Sequence[int] | None = None,
    ) -> LazyTensor:
        """A tensor whose first element is at byte `start`.

        Args:
            start: Byte offset of element (0, …, 0).
            dtype: Element type.
            shape: Sizes.
            strides: In elements, none negative; None for C order.
        """
        shape = tuple(shape)
        count = 0
        if math.prod(shape):
            steps = strides if strides is not None else c_strides(shape)
            last = sum(
                (size - 1) * step for size, step in zip(shape, steps, strict=True)
            )
            count = last + 1
        length = count * dtype.itemsize
        if start < 0 or start + length > self.size:
            raise CheckpointError(
                f"{self.path} is truncated: it ends at byte {self.size}, a tensor "
                f"{dtype}{list(shape)} at byte {start + length}"
            )

        def load() -> np.ndarray:
            if not count:
                return np.zeros(shape, dtype)
            self._advise("MADV_WILLNEED", start, length)
            flat = np.frombuffer(self._map, dtype, count, start)
            if strides is None:
                return flat.reshape(shape)
            sizes = tuple(step * dtype.itemsize for step in strides)
            return np.lib.stride_tricks.as_strided(flat, shape, sizes, writeable=False)

        def release() -> None:
            self._advise("MADV_DONTNEED", start, length)

        return LazyTensor(shape, dtype, load, release)

    def _advise(self, advice: str, start: int, length: int) -> None:
        """Passes an advice on pages to the kernel, where there is such a thing."""
        option = getattr(mmap, advice, None)
        if option is not None and length and isinstance(self._map, mmap.mmap):
            page = start - start % mmap.PAGESIZE
            self._map.madvise(option, page, length + start - page)


def c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a tensor in C order."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
