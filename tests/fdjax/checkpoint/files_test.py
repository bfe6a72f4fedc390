"""Prompts, output directories, downloads, outputs that appear whole."""

import functools
import http.server
import os
import pathlib
import threading

import pytest

from fdjax.checkpoint import files


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

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", refuse)
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


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server of `tmp_path/site`; gives its URL."""
    (tmp_path / "site").mkdir()
    handler = functools.partial(_QuietHandler, directory=str(tmp_path / "site"))
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_a_url_is_downloaded_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "site" / "a b.bin").write_bytes(b"one")
    path = files.resolve_input(f"{server}/a%20b.bin?x=1")
    assert path.name == "a b.bin"
    assert path.read_bytes() == b"one"
    (tmp_path / "site" / "a b.bin").write_bytes(b"two")
    assert files.resolve_input(f"{server}/a%20b.bin").read_bytes() == b"one"


def test_a_failed_download_leaves_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"/no\.png cannot be downloaded.*404"):
        files.resolve_input(f"{server}/no.png")
    with pytest.raises(FileNotFoundError, match="cannot be downloaded"):
        files.resolve_input("http://127.0.0.1:9/x.png")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_path_is_itself(tmp_path):
    (tmp_path / "a").write_text("x")
    assert files.resolve_input(tmp_path / "a") == tmp_path / "a"
    with pytest.raises(FileNotFoundError, match="b does not exist"):
        files.resolve_input(tmp_path / "b")


def test_a_hub_file_is_downloaded(tmp_path, monkeypatch):
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        return str(tmp_path / "blob")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    path = files.resolve_input("hf://owner/repo/sub/file.json")
    assert path == tmp_path / "blob"
    assert asked == [("owner/repo", "sub/file.json")]


@pytest.mark.parametrize("url", ["hf://", "hf://owner", "hf://owner/repo/"])
def test_a_hub_url_names_a_file(url):
    with pytest.raises(FileNotFoundError, match="must be hf://owner/repository/path"):
        files.resolve_input(url)


def test_a_hub_file_that_cannot_be_had_names_the_remedy(monkeypatch):
    from huggingface_hub import errors

    def download(*_):
        raise errors.LocalEntryNotFoundError("offline.\nlong story")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=r"offline\. With the file at hand"):
        files.resolve_input("hf://owner/repo/file.json")
