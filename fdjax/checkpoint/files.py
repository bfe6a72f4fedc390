"""Outputs that appear whole or not at all, locks, full disks, and prompt files."""

import contextlib
import errno
import os
import pathlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # not a POSIX system: no lock between processes
    fcntl = None  # type: ignore[assignment]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_SIGNS = ("no space left on device", "disk quota exceeded", "file too large")


def cache_dir() -> pathlib.Path:
    """Where fdjax keeps what it can make again: FDJAX_CACHE_DIR or ~/.cache/fdjax."""
    given = os.environ.get("FDJAX_CACHE_DIR")
    return pathlib.Path(given or "~/.cache/fdjax").expanduser()


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
    if not path.is_file():
        raise FileNotFoundError(f"prompt file {path} does not exist.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {path} must be UTF-8 text: {error}.") from None
    for line in lines:
        if line.strip():
            return line.strip()
    raise ValueError(f"prompt file {path} has no line that is not empty.")


def check_output_dir(path: str | os.PathLike) -> pathlib.Path:
    """Makes a directory and writes a probe into it; returns its path.

    Raises:
        PermissionError: It cannot be made or written; the message says why.
    """
    path = pathlib.Path(path).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".fdjax-probe-"):
            pass
    except OSError as error:
        reason = "it is a file" if path.is_file() else (error.strerror or str(error))
        raise PermissionError(
            f"output directory {path} cannot be written: {reason}."
        ) from None
    return path


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """A hidden name beside `path`, with its suffix, for what is not complete yet."""
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")


@contextlib.contextmanager
def atomic_output(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write to, and renames it to `path` on success."""
    temporary = temporary_path(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file that appears whole or not at all."""
    with atomic_output(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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

    A failure removes it. What a killed process left behind is removed by the next
    write to the same path.

    Raises:
        FileExistsError: `path` exists and `overwrite` is off.
    """
    path = path.absolute()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; remove it or choose another path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    prefix = f".{path.name}.partial-{host}-"
    for stale in path.parent.glob(f".{path.name}.partial-*"):
        process = stale.name.removeprefix(prefix).partition("-")[0]
        if stale.name.startswith(prefix) and not _is_alive(process):
            shutil.rmtree(stale, ignore_errors=True)
    partial = path.with_name(f"{prefix}{os.getpid()}-{threading.get_ident()}")
    partial.mkdir()
    try:
        yield partial
        replaced = path.with_name(partial.name + "-replaced")
        if overwrite and path.exists():
            path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        _remove_tree(partial)


def _remove_tree(path: pathlib.Path) -> None:
    """Removes a directory, in which threads of a failed save may still write."""
    absent = not path.exists()
    for _ in range(0 if absent else 40):
        shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)
        if absent and not path.exists():
            return
        absent = not path.exists()


@contextlib.contextmanager
def file_lock(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock that other processes wait for; the file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _is_alive(process: str) -> bool:
    """Whether a process id, written in decimal, is running on this host."""
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
