"""Names of a run's files: each run has a number, so that no two runs mix."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs at one time may take one name
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def reserved(folder: pathlib.Path, name: str, *, overwrite: bool) -> Iterator[str]:
    """A name for the files of a run; no other run takes it within the block.

    `NAME` where no file of such a run is there, else `NAME-2`, `NAME-3` and so on, one
    more than the highest.

    Args:
        folder: Where the files will be.
        name: Of the method.
        overwrite: Take `name` itself, whatever is there.
    """
    if overwrite:
        yield name
        return
    number = _first_free(folder, name)
    while True:
        candidate = name if number == 1 else f"{name}-{number}"
        with _lock(folder / f".{candidate}.running") as free:
            # Between the look and the lock another run may have ended.
            if free and _first_free(folder, name) <= number:
                yield candidate
                return
        number += 1


def remove_leftovers(folder: pathlib.Path, name: str, written: set[str]) -> None:
    """Removes files of an earlier run of this name that the new one did not replace.

    Files of single views are left, as their names are not ours to know.

    Args:
        folder: Where the files are.
        name: Of the run.
        written: Names of the files of the new run.
    """
    stem = re.escape(name)
    pattern = rf"{stem}(\.session\d+)?\.(mp4|npy)|{stem}\.(png|session)"
    for file in folder.iterdir():
        if re.fullmatch(pattern, file.name) and file.name not in written:
            file.unlink(missing_ok=True)


def _first_free(folder: pathlib.Path, name: str) -> int:
    """One more than the highest number that files have; 1 where there are none."""
    stem = rf"{re.escape(name)}(?:-([1-9]\d{{0,8}}))?"
    pattern = re.compile(rf"{stem}\..+|stats_{stem}\.json")
    taken = [0]
    for file in folder.iterdir():
        if match := pattern.fullmatch(file.name):
            taken.append(int(match[1] or match[2] or 1))
    return max(taken) + 1


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[bool]:
    """Holds a lock if nobody does; whether that is so. It ends with its process."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("a"))
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:  # a file system without locks
                pass
        if not path.exists() or not os.path.samestat(
            os.fstat(file.fileno()), path.stat()
        ):
            yield False  # who held it has removed it since it was opened here
            return
        stack.callback(path.unlink, missing_ok=True)
        yield True
