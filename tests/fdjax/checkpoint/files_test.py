"""Prompts, output directories, outputs that appear whole."""

import errno
import os
import pathlib

import pytest

from fdjax.checkpoint import files, temporary


def test_a_text_is_the_prompt():
    assert files.read_prompt(" a beach, 4k ") == " a beach, 4k "


def test_a_txt_file_holds_the_prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("\ufeff\n  \n  first é \n second\n", encoding="utf-8")
    assert files.read_prompt(str(path)) == "first é"
    assert files.read_prompt(path) == "first é"
    other = tmp_path / "prompt"
    other.write_text("x")
    assert files.read_prompt(other) == "x"
    assert files.read_prompt(str(other)) == str(other)


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_an_empty_prompt_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="prompt must be a text or a path"):
        files.read_prompt(text)
    path = tmp_path / "prompt.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"prompt\.txt has no line that is not empty"):
        files.read_prompt(str(path))


def test_a_missing_or_binary_prompt_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prompt file no\.txt does not exist"):
        files.read_prompt("no.txt")
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="must be UTF-8"):
        files.read_prompt(path)


def test_output_dir_is_made_and_left_empty(tmp_path):
    folder = files.check_output_dir(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_output_dir_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PermissionError, match="file cannot be written: it is a file"):
        files.check_output_dir(tmp_path / "file")
    with pytest.raises(PermissionError, match="below cannot be written: Not a dir"):
        files.check_output_dir(tmp_path / "file" / "below")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(temporary.tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError, match="cannot be written: Permission denied"):
        files.check_output_dir(tmp_path)


def test_atomic_output_renames_on_success_only(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with files.atomic_output(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"

    def fail():
        with files.atomic_output(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_cache_dir_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path))
    assert files.cache_dir() == tmp_path
    monkeypatch.delenv("FDJAX_CACHE_DIR")
    assert files.cache_dir() == pathlib.Path.home() / ".cache" / "fdjax"


@pytest.mark.parametrize("end", [".txt", "\n.txt", "\0.txt", " on a sign: read me.txt"])
def test_a_long_text_that_ends_in_txt_is_no_traceback(end):
    with pytest.raises(FileNotFoundError, match=r"does not exist; a prompt") as info:
        files.read_prompt("a cat " * 50 + end)
    assert len(str(info.value).splitlines()) == 1
    assert len(str(info.value)) < 300


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("FDJAX_CACHE_DIR", str(place))
        with pytest.raises(OSError, match=r"cannot be written .*set FDJAX_CACHE_DIR"):
            files.cache_folder("xla")
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    assert files.cache_folder("xla") == tmp_path / "cache" / "xla"
    assert list((tmp_path / "cache" / "xla").iterdir()) == []

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(temporary.tempfile, "mkdtemp", refuse)
    with pytest.raises(OSError, match=r"Read-only .*set FDJAX_CACHE_DIR"):
        files.cache_folder("xla")


def test_a_full_disk_names_the_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    full = OSError(errno.ENOSPC, "No space left on device")

    def fill(error):
        with files.atomic_output(path) as place:
            place.write_text("half")
            raise error

    with pytest.raises(
        OSError, match=r"a\.txt cannot be written: No space left"
    ) as info:
        fill(full)
    assert info.value.errno == errno.ENOSPC
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "input.pt")
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: 'input"):
        fill(missing)  # of something that is read meanwhile
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
