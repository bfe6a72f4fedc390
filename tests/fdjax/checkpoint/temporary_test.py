"""What is not complete: out of sight, with an owner, swept when that has died."""

import errno
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from fdjax.checkpoint import files, temporary

LEAVE = """
import os, pathlib, sys
from fdjax.checkpoint import temporary
place = temporary.Temporary(pathlib.Path(sys.argv[1]))
place.path.write_bytes(b"half")
os.write(1, os.fsencode(place.path))
os.close(1)
{end}
"""


def child(path, end):
    """A process that has begun to write `path`, and the place where it writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVE.format(end=end), path], stdout=subprocess.PIPE
    )
    place = pathlib.Path(os.fsdecode(process.stdout.read()))
    process.stdout.close()
    return process, place


@pytest.fixture
def no_swap(monkeypatch):
    """A file system on which two names cannot be swapped."""
    monkeypatch.setattr(temporary, "_exchange", lambda: lambda one, other: False)


@pytest.fixture(params=["swap", "no swap"])
def either_system(request):
    if request.param == "no swap":
        request.getfixturevalue("no_swap")


def age(folder, seconds):
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (time.time() - seconds,) * 2)


def test_what_a_dead_process_left_is_removed_by_the_next_write(tmp_path):
    process, place = child(tmp_path / "a.mp4", "os.kill(os.getpid(), 9)")
    process.wait()
    assert place.read_bytes() == b"half"
    files.write_text(tmp_path / "other.txt", "x")
    assert os.listdir(tmp_path) == ["other.txt"]


def test_what_a_living_process_writes_is_left_alone_however_old(tmp_path):
    process, place = child(tmp_path / "a.mp4", "sys.stdin.read()")
    try:
        age(place.parents[1], 1e7)
        files.write_text(tmp_path / "other.txt", "x")
        assert place.read_bytes() == b"half"
    finally:
        process.kill()
        process.wait()
    temporary.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["other.txt"]


def test_the_beginning_of_a_run_sweeps_its_directory(tmp_path):
    process, _ = child(tmp_path / "a.mp4", "os.kill(os.getpid(), 9)")
    process.wait()
    files.check_output_dir(tmp_path)
    assert os.listdir(tmp_path) == []


def test_without_locks_age_decides(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    process, place = child(tmp_path / "a.mp4", "os.kill(os.getpid(), 9)")
    process.wait()
    monkeypatch.setattr(temporary.fcntl, "flock", refuse)
    files.write_text(tmp_path / "other.txt", "x")
    assert place.exists()
    age(place.parents[1], 2 * 86400)
    files.write_text(tmp_path / "other.txt", "x")
    assert os.listdir(tmp_path) == ["other.txt"]


def test_a_name_may_have_the_full_length(tmp_path):
    path = tmp_path / ("a" * 251 + ".txt")
    files.write_text(path, "x")
    with files.atomic_directory(tmp_path / ("b" * 255)) as folder:
        (folder / "c").write_text("y")
    assert path.read_text() == "x"


@pytest.mark.parametrize("name", ["12:30", "-a", "new\nline", "a[1]", "ü %20 '\\", "~"])
def test_odd_names_are_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    files.write_text(pathlib.Path(name), "x")
    for _ in range(2):
        with files.atomic_directory(
            pathlib.Path(f"{name}.d"), overwrite=True
        ) as folder:
            (folder / "c").write_text("y")
    assert sorted(os.listdir()) == sorted([name, f"{name}.d"])
    assert os.listdir(f"{name}.d") == ["c"]


def write_folder(path, content):
    with files.atomic_directory(path, overwrite=True) as folder:
        for name in "abc":
            (folder / name).write_text(content)


@pytest.mark.usefixtures("either_system")
def test_a_directory_is_replaced(tmp_path):
    path = tmp_path / "d"
    for content in "123":
        write_folder(path, content)
        assert {(path / name).read_text() for name in "abc"} == {content}
        assert os.listdir(tmp_path) == ["d"]
    with (
        pytest.raises(FileExistsError, match=r"d exists; remove it"),
        files.atomic_directory(path),
    ):
        pass


@pytest.mark.usefixtures("either_system")
@pytest.mark.parametrize("new_is_folder", [False, True])
def test_a_file_and_a_directory_replace_each_other(tmp_path, new_is_folder):
    path = tmp_path / "x"
    if new_is_folder:
        files.write_text(path, "old")
        write_folder(path, "new")
        assert (path / "a").read_text() == "new"
    else:
        write_folder(path, "old")
        files.write_text(path, "new")
        assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]


def test_nothing_is_deleted_before_the_new_one_stands(tmp_path, no_swap, monkeypatch):
    path, rename = tmp_path / "d", os.rename
    write_folder(path, "old")

    def fail(source, destination):
        rename(source, destination)
        if os.fspath(destination) != os.fspath(path):  # it has just been moved away
            monkeypatch.setattr(temporary.os, "replace", refuse)

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(temporary.os, "rename", fail)
    with pytest.raises(OSError, match=r"d cannot be written: Input/output error"):
        write_folder(path, "new")
    assert (path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["d"]


KILL_BETWEEN = """
import os, pathlib, sys
from fdjax.checkpoint import files, temporary
temporary._exchange = lambda: lambda one, other: False
path, replace, moved = pathlib.Path(sys.argv[1]), os.replace, []
rename = os.rename
os.rename = lambda a, b: (rename(a, b), moved.append(1))
os.replace = lambda a, b: os.kill(os.getpid(), 9) if moved else replace(a, b)
with files.atomic_directory(path, overwrite=True) as folder:
    for name in "abc":
        (folder / name).write_text("new")
"""


@pytest.mark.parametrize("next_one", ["reader", "writer of it", "writer of another"])
def test_a_kill_between_two_renames_is_made_good(tmp_path, next_one):
    path = tmp_path / "d"
    write_folder(path, "old")
    done = subprocess.run([sys.executable, "-c", KILL_BETWEEN, path])
    assert done.returncode == -9
    assert not path.exists()
    if next_one == "reader":
        temporary.settle(path)
    elif next_one == "writer of it":
        with (
            pytest.raises(FileExistsError, match="d exists"),
            files.atomic_directory(path),
        ):
            pass
    else:
        files.write_text(tmp_path / "other", "x")
    assert {(path / name).read_text() for name in "abc"} == {"new"}


@pytest.mark.usefixtures("either_system")
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_threads_that_write_one_path_get_in_nobodys_way(tmp_path, kind):
    path, errors = tmp_path / "x", []
    start = threading.Barrier(6)

    def write(content):
        try:
            start.wait()
            for _ in range(8):
                if kind == "file":
                    files.write_text(path, content * 50_000)
                else:
                    write_folder(path, content)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(c,)) for c in "123456"]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        if kind == "file" and path.exists():
            seen.add(path.read_text())
    assert not errors
    assert all(text in [c * 50_000 for c in "123456"] for text in seen)
    if kind == "directory":
        assert len({(path / name).read_text() for name in "abc"}) == 1
    assert os.listdir(tmp_path) == ["x"]


def test_what_can_be_gone_on_with_stays_for_a_week(tmp_path):
    path = tmp_path / "big.pt"
    for content in (b"a", b"ab"):
        with temporary.resumable(path) as place:
            assert content.startswith(place.read_bytes() if place.exists() else b"")
            place.write_bytes(content)
        temporary.sweep(tmp_path)
    [folder] = tmp_path.iterdir()
    age(folder, 6 * 86400)
    temporary.sweep(tmp_path)
    assert folder.exists()
    age(folder, 8 * 86400)
    files.write_text(tmp_path / "other", "x")
    assert os.listdir(tmp_path) == ["other"]


def test_nothing_stays_of_what_was_not_begun(tmp_path):
    with temporary.resumable(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == []


def _append(path):
    for _ in range(20):
        with temporary.resumable(path) as place:
            count = int(place.read_text()) if place.exists() else 0
            time.sleep(0.001)
            place.write_text(str(count + 1))


def test_one_process_at_a_time_goes_on(tmp_path):
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_append, args=(tmp_path / "n",)) for _ in "12"]
    for process in others:
        process.start()
    _append(tmp_path / "n")
    for process in others:
        process.join()
    with temporary.resumable(tmp_path / "n") as place:
        assert place.read_text() == "60"


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="Not a directory"):
        files.write_text(tmp_path / "file" / "a", "x")
