"""Outputs that appear whole or not at all, full disks, prompts and the cache folder."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

from fdjax.checkpoint import temporary

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_SIGNS = ("no space left on device", "disk quota exceeded", "file too large")


def cache_dir() -> pathlib.Path:
    """Where fdjax keeps what it can make again: FDJAX_CACHE_DIR or ~/.cache/fdjax."""
    given = os.environ.get("FDJAX_CACHE_DIR")
    return pathlib.Path(os.path.expanduser(given or "~/.cache/fdjax"))


def cache_folder(name: str) -> pathlib.Path:
    """Makes a folder of the cache, and sees whether it can be written.

    Raises:
        OSError: It cannot; names the variable that moves the cache.
    """
    path = cache_dir() / name
    with explain_cache(path):
        path.mkdir(parents=True, exist_ok=True)
        temporary.Temporary(path / "probe").discard()
    return path


@contextlib.contextmanager
def explain_cache(path: pathlib.Path) -> Iterator[None]:
    """Makes a cache that cannot be written name the variable that moves it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        raise OSError(
            error.errno,
            f"the cache {path} cannot be written ({error.strerror}); set "
            "FDJAX_CACHE_DIR to a folder that can",
        ) from error


def read_prompt(value: str | os.PathLike) -> str:
    """The prompt that a config field stands for.

    A path, or a text that ends in `.txt`, is a file: its first line that is not empty
    is the prompt. Any other text is the prompt itself.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The text, or the file, is empty or not UTF-8.
    """
    if isinstance(value, str) and not value.strip().endswith(".txt"):
        if not value.strip():
            raise ValueError(
                "prompt must be a text or a path to a .txt file, got an empty text."
            )
        return value
    path = pathlib.Path(value if not isinstance(value, str) else value.strip())
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise FileNotFoundError(
            f"prompt file {shorten(path)} does not exist; a prompt that is a text must "
            "not end in .txt."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {path} must be UTF-8 text: {error}.") from None
    for line in lines:
        if line.strip():
            return line.strip()
    raise ValueError(f"prompt file {path} has no line that is not empty.")


def shorten(text: object, length: int = 120) -> str:
    """A text for a message: on one line, and cut where it is longer."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def check_output_dir(path: str | os.PathLike) -> pathlib.Path:
    """Makes a directory and writes a probe into it; returns its path.

    Raises:
        PermissionError: It cannot be made or written; the message says why.
    """
    path = pathlib.Path(os.path.expanduser(path))
    try:
        path.mkdir(parents=True, exist_ok=True)
        temporary.Temporary(path / "probe").discard()
    except OSError as error:
        reason = "it is a file" if path.is_file() else (error.strerror or str(error))
        raise PermissionError(
            f"output directory {path} cannot be written: {reason}."
        ) from None
    return path


@contextlib.contextmanager
def atomic_output(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, and renames it to `path` on success.

    Raises:
        OSError: It cannot be written; the message names `path` and the reason.
    """
    with explain_write(path):
        place = temporary.Temporary(path)
        try:
            yield place.path
            place.commit()
        finally:
            place.discard()


@contextlib.contextmanager
def explain_write(path: pathlib.Path) -> Iterator[None]:
    """Makes errors of the system about what becomes `path` name it, and the reason."""
    try:
        yield
    except OSError as error:
        named = "" if error.filename is None else str(error.filename)
        other = named and f"{os.sep}.fdjax-" not in named
        if other or not error.strerror:
            raise
        raise OSError(
            error.errno, f"{path} cannot be written: {error.strerror}"
        ) from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file that appears whole or not at all."""
    with atomic_output(path) as place:
        place.write_text(text, encoding="utf-8")


def file_lengths(directory: pathlib.Path) -> dict[str, int]:
    """Length in bytes of every file under `directory`, by its path inside."""
    return {
        file.relative_to(directory).as_posix(): file.stat().st_size
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


@contextlib.contextmanager
def atomic_directory(
    path: pathlib.Path, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Gives an empty directory beside `path`, renamed to `path` on success.

    A failure removes it, and a kill leaves `path` as it was. What it replaces is
    deleted when the new one stands.

    Raises:
        FileExistsError: `path` exists and `overwrite` is off.
    """
    temporary.settle(path)
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists; remove it or choose another path.")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    with explain_write(path):
        place = temporary.Temporary(path)
        try:
            place.path.mkdir()
            yield place.path
            place.commit(overwrite=overwrite)
        finally:
            place.discard()


def check_free_space(path: pathlib.Path, num_bytes: int) -> None:
    """Checks that the disk of `path` has room for `num_bytes`.

    Raises:
        OSError: It has not; names the disk, what is needed and what is free.
    """
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    if free < num_bytes:
        raise OSError(
            errno.ENOSPC,
            f"the disk of {path} is too full: {num_bytes / 1e9:.2f} GB are needed, "
            f"{free / 1e9:.2f} GB are free; make room, or choose another place",
        )


@contextlib.contextmanager
def explain_full_disk(path: pathlib.Path) -> Iterator[None]:
    """Turns the many errors of a full disk into one OSError that says so."""
    try:
        yield
    except Exception as error:
        text = f"{error}".lower()
        full = isinstance(error, OSError) and error.errno in _FULL
        if full or any(sign in text for sign in _FULL_SIGNS):
            raise OSError(
                errno.ENOSPC,
                f"the disk filled up while {path} was written, nothing of it was kept; "
                "make room, or choose another place",
            ) from error
        raise
