"""What is being written and not complete yet, and what killed processes left of it.

It lies in a hidden folder beside its destination NAME:

    .fdjax-XXXXXXXX.tmp/lock      locked (flock) by who writes, for as long as it lives
    .fdjax-XXXXXXXX.tmp/new/NAME  what becomes NAME by a rename
    .fdjax-XXXXXXXX.tmp/old/NAME  what NAME was, where two names cannot be swapped

A lock ends with its process, however that ends, and counts between containers and
hosts that share the file system; process ids and host names do not. So each write
removes the folders beside it that nobody holds. Where there are no locks, age decides.

Nothing here waits for the disk itself: a kill at any instant is harmless, a power cut
can still lose what was written in the last seconds.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock between processes
    fcntl = None  # type: ignore[assignment]

_PREFIX, _SUFFIX, _RESUMABLE = ".fdjax-", ".tmp", ".part"
_DAY = 86400.0  # seconds
_WEEK = 7 * _DAY
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


class Temporary:
    """A place to write what appears at `path` whole or not at all.

    Threads and processes that write one path have places of their own; the last one
    to finish stays.

    Args:
        path: The destination; its directory exists.

    Attributes:
        path: Where to write: absolute, with the name of the destination.

    Raises:
        OSError: Nothing can be written in the directory of `path`.
    """

    def __init__(self, path: pathlib.Path):
        self._destination = path.absolute()
        sweep(self._destination.parent)
        self._lock: int | None
        self._folder, self._lock = _make_folder(self._destination.parent)
        self.path = self._folder / "new" / path.name
        self.path.parent.mkdir()

    def commit(self, *, overwrite: bool = True) -> None:
        """Gives it the name of the destination, at one instant.

        Args:
            overwrite: Replace what is there; a directory is swapped for the new one,
                and deleted when that stands.

        Raises:
            FileExistsError: Something is there, and `overwrite` is off.
        """
        if not overwrite and os.path.lexists(self._destination):
            raise _exists(self._destination)
        _put(self.path, self._destination, self._folder, overwrite)

    def discard(self) -> None:
        """Removes what is left of it; to be called in any case, at the end."""
        if self._lock is not None:
            if os.path.isdir(self.path):
                _remove_for_good(self._folder)
            _remove(self._folder)
            os.close(self._lock)
            self._lock = None


@contextlib.contextmanager
def resumable(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a place to write what a later process may go on with, if this one fails.

    Who wants the same path meanwhile waits. It is kept until a week has passed since
    the last byte.

    Args:
        path: The destination; rename the place to it when it is complete.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    folder = path.parent / f"{_PREFIX}{digest}{_RESUMABLE}"
    while True:
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # removed in between
            lock = _take_lock(folder, wait=True)
            if lock is not None:
                break
    place = folder / "new" / path.name
    try:
        place.parent.mkdir(exist_ok=True)
        yield place
    finally:
        with contextlib.suppress(OSError):
            place.parent.rmdir()  # unless something is left in it
            _remove(folder)
        os.close(lock)


def settle(path: pathlib.Path) -> None:
    """Completes the replacement of `path` that a kill has interrupted.

    For readers who find nothing there. Where names cannot be swapped, there is an
    instant between two renames at which a path that is being replaced is absent.
    """
    path = path.absolute()
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    for folder in _folders(path.parent):
        if os.path.lexists(folder / "old" / path.name):
            with contextlib.suppress(OSError):
                lock = _take_lock(folder, wait=True)
                if lock is not None:
                    _restore(folder)
                    os.close(lock)


def sweep(directory: pathlib.Path) -> None:
    """Removes what dead processes left in a directory; what cannot be is left."""
    for folder in _folders(directory):
        with contextlib.suppress(OSError):
            _sweep_folder(folder)


def _sweep_folder(folder: pathlib.Path) -> None:
    begun = folder.name.endswith(_RESUMABLE) and any((folder / "new").glob("*"))
    young = _WEEK if begun else 0.0
    if fcntl is None:
        young = max(young, _DAY)
    if young and _age(folder) < young:
        return
    lock = _take_lock(folder, wait=False, without_locks=_DAY)
    if lock is None:
        return
    try:
        _restore(folder)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _folders(directory: pathlib.Path) -> list[pathlib.Path]:
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return []
    endings = (_SUFFIX, _RESUMABLE)
    found = [n for n in names if n.startswith(_PREFIX) and n.endswith(endings)]
    return [directory / name for name in sorted(found)]


def _make_folder(directory: pathlib.Path) -> tuple[pathlib.Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        name = tempfile.mkdtemp(_SUFFIX, _PREFIX, directory)
        # Another process may sweep it before it is locked.
        with contextlib.suppress(FileNotFoundError):
            lock = _take_lock(pathlib.Path(name), wait=False)
            if lock is not None:
                return pathlib.Path(name), lock


def _take_lock(
    folder: pathlib.Path, *, wait: bool, without_locks: float = 0.0
) -> int | None:
    """The descriptor that holds the lock of a folder; None if another has it.

    Args:
        folder: An existing folder.
        wait: Wait until it is free; None then means that the folder has gone.
        without_locks: Age in seconds from which a folder counts as free where the file
            system has no locks.

    Raises:
        OSError: The folder has gone, or cannot be written.
    """
    path = folder / "lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.stat(path), os.fstat(lock)):
            return lock
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno in _NO_LOCKS and _age(folder) >= without_locks:
            return lock
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _age(folder: pathlib.Path) -> float:
    """Seconds since anything in a folder was written."""
    times = [folder.stat().st_mtime]
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if name != "lock":
                with contextlib.suppress(OSError):
                    times.append(os.lstat(os.path.join(root, name)).st_mtime)
    return time.time() - max(times)


def _put(
    new: pathlib.Path, path: pathlib.Path, folder: pathlib.Path, overwrite: bool
) -> None:
    """Renames `new` to `path`, whatever is there."""
    old = folder / "old" / path.name
    while True:
        try:
            # Replaces a file by a file, and an empty directory by a directory.
            os.replace(new, path)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
            if not overwrite:
                raise _exists(path) from None
        try:
            if _exchange()(new, path):
                return
            _remove(old)  # of a round before: another process has put something there
            old.parent.mkdir(exist_ok=True)
            os.rename(path, old)
        except FileNotFoundError:
            continue  # another process is replacing it
        try:
            os.replace(new, path)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED:
                os.rename(old, path)
                raise


def _restore(folder: pathlib.Path) -> None:
    """Ends a replacement between its two renames, given the folder's lock."""
    for old in (folder / "old").glob("*"):
        new, path = folder / "new" / old.name, folder.parent / old.name
        if os.path.lexists(new) and not os.path.lexists(path):
            os.rename(new, path)


@functools.cache
def _exchange() -> Callable[[pathlib.Path, pathlib.Path], bool]:
    """A function that swaps two names at one instant; false if the system cannot."""
    library: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    here, swap = -100, 2  # AT_FDCWD; RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        call = functools.partial(library.renameat2, here)
        between: tuple[int, ...] = (here,)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        call, between = library.renamex_np, ()
    else:
        return lambda one, other: False

    def exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
        if not call(os.fsencode(one), *between, os.fsencode(other), swap):
            return True
        code = ctypes.get_errno()
        if code in _NO_EXCHANGE:
            return False
        raise OSError(code, os.strerror(code), str(other))

    return exchange


def _exists(path: pathlib.Path) -> FileExistsError:
    return FileExistsError(f"{path} exists; remove it or choose another path.")


def _remove(path: pathlib.Path) -> None:
    """Removes a file, or a directory with what is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_for_good(folder: pathlib.Path) -> None:
    """Removes a folder, in which threads of a failed save may still write."""
    absent = False
    for _ in range(40):
        _remove(folder)
        time.sleep(0.05)
        if absent and not os.path.lexists(folder):
            return
        absent = not os.path.lexists(folder)
