"""Ways to name a file: on this machine, in a package, on Hugging Face, elsewhere."""

from pathlib import Path

import pytest

import fdjax.checkpoint
from fdjax.checkpoint.address import (
    HubAddress,
    LocalAddress,
    UrlAddress,
    local_path,
    parse,
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://a/b/c/d.pt", HubAddress("a/b", "c/d.pt")),
        ("a/b/c/d.pt", HubAddress("a/b", "c/d.pt")),
        ("hf://a/b@v1.0/d.pt", HubAddress("a/b", "d.pt", "v1.0")),
        ("hf://a/b", HubAddress("a/b")),
        ("Wan-AI/Wan2.1-T2V-1.3B/", HubAddress("Wan-AI/Wan2.1-T2V-1.3B")),
        ("https://huggingface.co/a/b", HubAddress("a/b")),
        (
            "https://huggingface.co/a/b/resolve/main/c/d%20e.pt?download=true",
            HubAddress("a/b", "c/d e.pt", "main"),
        ),
        (
            "https://www.huggingface.co/a/b/blob/v1/d.pt",
            HubAddress("a/b", "d.pt", "v1"),
        ),
        ("http://hf.co/a/b/tree/main/folder", HubAddress("a/b", "folder", "main")),
        ("hf://a/b@refs/pr/7/c/d.pt", HubAddress("a/b", "c/d.pt", "refs/pr/7")),
        ("a/b@refs%2Fpr%2F7/d.pt", HubAddress("a/b", "d.pt", "refs/pr/7")),
        (
            "https://huggingface.co/a/b/resolve/refs%2Fpr%2F7/d.pt",
            HubAddress("a/b", "d.pt", "refs/pr/7"),
        ),
        ("hf://a/b@refs/pr/7", HubAddress("a/b", "", "refs/pr/7")),
        ("https://mirror.org/x/a/b/blob/v1/d.pt", HubAddress("a/b", "d.pt", "v1")),
        ("https://mirror.org/y/d.pt", UrlAddress("https://mirror.org/y/d.pt")),
        ("https://x.org/a/c.pt?v=1", UrlAddress("https://x.org/a/c.pt?v=1")),
        ("http://x.org/c.pt#sha256=AB", UrlAddress("http://x.org/c.pt", "ab")),
        ("HF://a/b/d.pt", HubAddress("a/b", "d.pt")),
        ("HTTPS://x.org/D.pt", UrlAddress("https://x.org/D.pt")),
        ("hf://datasets/a/b/c/d.pt", HubAddress("a/b", "c/d.pt", kind="dataset")),
        (
            "hf://datasets/a/b@refs/convert/parquet/d.json",
            HubAddress("a/b", "d.json", "refs/convert/parquet", "dataset"),
        ),
        ("datasets/a/b/d.png", HubAddress("a/b", "d.png", kind="dataset")),
        (
            "https://huggingface.co/datasets/a/b/resolve/refs%2Fpr%2F7/d.pt",
            HubAddress("a/b", "d.pt", "refs/pr/7", "dataset"),
        ),
        ("https://huggingface.co/datasets/a/b", HubAddress("a/b", kind="dataset")),
        (
            "https://mirror.org/x/spaces/a/b/blob/v1/d.png?download=true",
            HubAddress("a/b", "d.png", "v1", "space"),
        ),
        ("file:///a/b%20c.pt", LocalAddress(Path("/a/b c.pt"))),
        ("file://localhost/a/b.pt", LocalAddress(Path("/a/b.pt"))),
        ("checkpoints/c.pt", LocalAddress(Path("checkpoints/c.pt"))),
        (
            "datasets/mine/c.safetensors",
            LocalAddress(Path("datasets/mine/c.safetensors")),
        ),
        ("12:30/c.pt", LocalAddress(Path("12:30/c.pt"))),
        ("-c.pt", LocalAddress(Path("-c.pt"))),
        ("/a/b/c.pt", LocalAddress(Path("/a/b/c.pt"))),
        (Path("a/b/c.pt"), LocalAddress(Path("a/b/c.pt"))),
        ("./a/b.pt", LocalAddress(Path("a/b.pt"))),
        ("~/a/b.pt", LocalAddress(Path.home() / "a/b.pt")),
        ("model.pt", LocalAddress(Path("model.pt"))),
        (
            "package://fdjax.checkpoint/x/y.pt",
            LocalAddress(Path(fdjax.checkpoint.__file__).parent / "x/y.pt"),
        ),
    ],
)
def test_ways_to_name_a_file(source, expected, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.org/x/")
    assert parse(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "hf://onlyowner",
        "hf:///a/b",
        "https://huggingface.co/a",
        "https://huggingface.co/a/b/commits/main",
        "https://huggingface.co/a/b/raw/main/c.pt",
        "hf://a/b@/c.pt",
        "hf://datasets/a",
        "https://huggingface.co/datasets/a/b/commits/main",
        "file://server/a.pt",
        "file:a/b.pt",
    ],
)
def test_addresses_that_cannot_be_read_are_refused(source):
    with pytest.raises(ValueError, match=r"must (look like|name a revision|have two)"):
        parse(source)


def test_other_schemes_and_packages_are_refused():
    for scheme in ("s3", "gs", "ftp", "az"):
        with pytest.raises(ValueError, match=rf"{scheme}://a/b: must be a local path"):
            parse(f"{scheme}://a/b")
    with pytest.raises(ValueError, match="must name a server"):
        parse("https:///a")
    for text in ("package://no_such_package/a", "package://json.decoder/a"):
        with pytest.raises(FileNotFoundError, match=r"no package .* is installed"):
            parse(text)


@pytest.mark.parametrize(
    "source", ["hf:a/b/c.pt", "https:/x.org/c.pt", Path("https://x.org/c.pt"), "s3:a/b"]
)
def test_a_lost_slash_is_named(source):
    with pytest.raises(ValueError, match="must have two slashes behind the colon"):
        parse(source)


@pytest.mark.parametrize("source", ["C:\\models\\c.pt", "d:/models/c.pt"])
def test_paths_of_windows_are_named(source, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="it is one of Windows"):
        parse(source)
    monkeypatch.chdir(tmp_path)
    Path(source).parent.mkdir(parents=True, exist_ok=True)
    Path(source).write_text("x")  # which is a name like any other here
    assert parse(source) == LocalAddress(Path(source))


def test_what_is_here_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_path("owner/repo") is None
    (tmp_path / "owner" / "repo").mkdir(parents=True)
    assert local_path("owner/repo") == Path("owner/repo")
    assert local_path("hf://owner/repo") is None
    assert local_path("https://example.org/a") is None


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (HubAddress("a/b"), "https://huggingface.co/a/b"),
        (HubAddress("a/b", "c"), "https://huggingface.co/a/b/tree/main/c"),
        (
            HubAddress("a/b", "c/d.pt", "refs/pr/7"),
            "https://huggingface.co/a/b/blob/refs%2Fpr%2F7/c/d.pt",
        ),
        (
            HubAddress("a/b", "c/d.pt", kind="dataset"),
            "https://huggingface.co/datasets/a/b/blob/main/c/d.pt",
        ),
    ],
)
def test_pages_for_people_are_read_back(address, url, monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert address.url == url
    assert parse(address.text) == address
    assert parse(url).repo == address.repo
    assert parse(url).kind == address.kind
    assert parse(url).path == address.path
