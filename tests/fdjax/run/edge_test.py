"""What the user of a command line sees, whatever goes wrong in it."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from absl import flags

from fdjax.run import edge


def failing(error):
    def command():
        raise error

    return command


def test_a_code_is_handed_through(capsys):
    assert edge.guard("tool", lambda: 0) == 0
    assert edge.guard("tool", lambda: 7) == 7
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("size must be 3, got 4"), "size must be 3, got 4"),
        (KeyError("Unknown field 'x'"), "Unknown field 'x'"),
        (KeyError(), "KeyError"),
        (FileNotFoundError("There is no file a.pt."), "There is no file a.pt."),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.pt"),
            "No such file or directory: a.pt",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (IsADirectoryError("a is a folder"), "a is a folder"),
        (TimeoutError("the server is silent"), "the server is silent"),
        (flags.IllegalFlagValueError("flag --n=x: must be int"), "flag --n=x: must "),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(capsys, error, text):
    assert edge.guard("tool", failing(error)) == edge.MISTAKE == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"tool: error: {text}")
    assert len(err.splitlines()) == 1


def test_a_note_says_where_in_a_config(capsys):
    error = ValueError("must be even")
    error.add_note("in Car.engine")
    error.add_note("another library's advice")
    assert edge.guard("tool", failing(error)) == 2
    assert capsys.readouterr().err == "tool: error: must be even (in Car.engine)\n"


def test_debug_shows_the_traceback_of_a_mistake(capsys):
    assert edge.guard("tool", failing(ValueError("no")), debug=True) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("tool: error: no\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_exit_code_1(capsys, number):
    error = OSError(number, "the disk is full")
    assert edge.guard("tool", failing(error)) == edge.FAILURE == 1
    assert capsys.readouterr().err == "tool: error: the disk is full\n"


@pytest.mark.parametrize("text", ["", "Wrote a.mp4."])
def test_ctrl_c_is_exit_code_130(capsys, text):
    code = edge.guard("tool", failing(KeyboardInterrupt(text)))
    assert code == edge.INTERRUPTED == 130
    assert capsys.readouterr().err == f"\ntool: interrupted. {text}".rstrip() + "\n"


def library_error(kind):
    """Raised by a library, which does not know what it was asked for."""
    if kind == "json":
        json.loads("[" * 100_000)
    elif kind == "path":
        pathlib.Path("a\0b").stat()
    elif kind == "numpy":
        np.zeros(3).reshape(2, 2)
    else:
        {}["a_key_of_ours"]


@pytest.mark.parametrize("kind", ["path", "numpy", "key"])
def test_an_error_of_a_library_is_one_line_and_a_file(capsys, folder, kind):
    assert edge.guard("tool", lambda: library_error(kind)) == edge.MISTAKE
    [line] = capsys.readouterr().err.splitlines()
    [file] = folder.iterdir()
    assert line.startswith("tool: error: ")
    assert line.endswith(f"(traceback: {file})")
    assert "library_error" in file.read_text()


def test_nesting_without_end_is_one_line_and_a_file(capsys, folder):
    assert edge.guard("tool", lambda: library_error("json")) == edge.FAILURE
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("tool: failed: RecursionError: ")


def test_a_long_text_of_a_bug_is_cut(capsys, folder):
    assert edge.guard("tool", failing(TypeError("x" * 100_000))) == edge.FAILURE
    [line] = capsys.readouterr().err.splitlines()
    assert len(line) < 1000
    assert "x" * 100_000 in next(folder.iterdir()).read_text()


def test_a_list_of_problems_of_ours_is_told_whole(capsys, folder):
    problems = "a.pt cannot be used:\n  one\n  two"
    assert edge.guard("tool", failing(ValueError(problems))) == edge.MISTAKE
    assert capsys.readouterr().err == f"tool: error: {problems}\n"


def test_nobody_left_to_read_is_no_error(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys.stderr, "write", refuse)
    assert edge.guard("tool", failing(ValueError("no"))) == edge.MISTAKE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "error", [TypeError("a bug\nand more"), RuntimeError("a bug"), ZeroDivisionError()]
)
def test_a_bug_is_one_line_and_a_file(capsys, folder, error):
    assert edge.guard("tool", failing(error)) == 1
    out, err = capsys.readouterr()
    [file] = folder.iterdir()
    kind = type(error).__name__
    first = str(error).partition("\n")[0] or kind
    assert (out, err) == ("", f"tool: failed: {kind}: {first} (traceback: {file})\n")
    text = file.read_text()
    assert text.startswith("Traceback")
    assert "in command" in text
    assert str(error) in text


def test_a_bug_is_shown_where_no_file_can_be_written(capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "mkstemp", failing_call)
    assert edge.guard("tool", failing(TypeError("a bug"))) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("tool: failed: TypeError: a bug (traceback above)\n")


def failing_call(**_):
    raise PermissionError("read-only")


def test_debug_shows_the_traceback_of_a_bug(capsys, folder):
    assert edge.guard("tool", failing(TypeError("a bug")), debug=True) == 1
    assert capsys.readouterr().err.startswith("Traceback")
    assert not list(folder.iterdir())


def test_a_reader_that_goes_away_is_quiet():
    program = (
        "import sys\nfrom fdjax.run import edge\n"
        "sys.exit(edge.guard('tool', lambda: print('x\\n' * 100000) or 0))"
    )
    root = pathlib.Path(edge.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
    ) as running:
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 1
