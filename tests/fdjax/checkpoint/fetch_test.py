"""Local paths, Hugging Face and other addresses, against servers on this machine."""

import errno
import hashlib
import json
import shutil
import urllib.parse

import pytest

from fdjax.checkpoint import fetch as fetching
from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.fetch import fetch, fetch_file

BODY = bytes(range(256)) * 5000

pytestmark = pytest.mark.usefixtures("caches")


def test_local_paths_are_used_as_they_are(tmp_path, monkeypatch):
    path = tmp_path / "owner" / "repo.pt"
    path.parent.mkdir()
    path.write_bytes(b"x")
    assert fetch(path) == path
    monkeypatch.chdir(tmp_path)
    assert fetch("owner/repo.pt").read_bytes() == b"x"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch("~/owner/repo.pt") == path
    with pytest.raises(FileNotFoundError, match=r"at missing\.pt; set --source"):
        fetch("missing.pt", flag="--source")
    with pytest.raises(ValueError, match=r"s3://bucket/key: must be a local path"):
        fetch("s3://bucket/key")


# --- Hugging Face -----------------------------------------------------------------


def test_a_file_of_the_hub_is_fetched_once(hub):
    hub.files["owner/repo/folder/a.pt"] = BODY
    path = fetch("hf://owner/repo/folder/a.pt")
    assert path.read_bytes() == BODY
    assert fetching.known_sha256(path) == hashlib.sha256(BODY).hexdigest()
    gets = [r for r in hub.requests if r[0] == "GET"]
    assert (
        fetch(f"https://huggingface.co/owner/repo/blob/{'0' * 40}/folder/a.pt") == path
    )
    assert [r for r in hub.requests if r[0] == "GET"] == gets


def test_an_index_of_the_hub_brings_its_shards(hub):
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    hub.files["owner/repo/t/m.safetensors.index.json"] = json.dumps(index).encode()
    hub.files["owner/repo/t/1.safetensors"] = b"one"
    hub.files["owner/repo/t/2.safetensors"] = b"two"
    for source in ("owner/repo/t/m.safetensors.index.json", "hf://owner/repo/t"):
        path = fetch(source)
        assert path.name == "m.safetensors.index.json"
        assert path.with_name("1.safetensors").read_bytes() == b"one"
        assert path.with_name("2.safetensors").read_bytes() == b"two"


def test_folders_of_the_hub(hub):
    hub.files["owner/repo/a.safetensors"] = b"one"
    hub.files["owner/repo/README.md"] = b"text"
    assert fetch("owner/repo").read_bytes() == b"one"
    hub.files["owner/repo/b.pth"] = b"two"
    with pytest.raises(FileNotFoundError, match=r"several .* a\.safetensors, b\.pth"):
        fetch("owner/repo")
    hub.files["owner/parts/vae/v.safetensors"] = b"one"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint.*: vae/v\.safetensors"):
        fetch("owner/parts")
    assert fetch("owner/parts/vae").read_bytes() == b"one"


def test_a_broken_connection_to_the_hub_is_resumed(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.files["owner/repo/a.pt"] = BODY
    hub.drop_after = [300_000]
    assert fetch("owner/repo/a.pt").read_bytes() == BODY
    gets = [r for r in hub.requests if r[0] == "GET" and r[1].endswith("/a.pt")]
    ranges = [r[2] for r in gets]
    assert len(ranges) == 2
    assert ranges[1].startswith("bytes=")
    assert ranges[1] != "bytes=0-"


def test_what_is_missing_on_the_hub_is_explained(hub):
    hub.files["owner/repo/a.pt"] = BODY
    with pytest.raises(FileNotFoundError) as error:
        fetch("owner/repo/b.pt", flag="--checkpoint_path")
    text = str(error.value)
    assert "b.pt cannot be fetched: owner/repo has no such file" in text
    assert "Get it from https://huggingface.co/owner/repo/blob/main/b.pt" in text
    assert "set --checkpoint_path to the local file" in text
    with pytest.raises(
        FileNotFoundError, match=r"no repository .* no local file x/y/a"
    ):
        fetch("x/y/a.pt")
    with pytest.raises(
        FileNotFoundError, match=r"no repository x/y, or you have no acc"
    ):
        fetch("hf://x/y")


def test_a_licence_that_was_not_accepted_is_explained(hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*args, **kwargs):
        raise errors.GatedRepoError.__new__(errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(FileNotFoundError, match=r"licence: accept it .* HF_TOKEN"):
        fetch("owner/repo/a.pt")


def test_offline_mode_uses_the_cache_only(hub, monkeypatch):
    from huggingface_hub import constants

    hub.files["owner/repo/t/a.pt"] = BODY
    path = fetch("owner/repo/t/a.pt")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert fetch("owner/repo/t/a.pt") == path
    assert fetch("owner/repo/t") == path.parent
    with pytest.raises(FileNotFoundError, match=r"not in the cache, and offline mode"):
        fetch("owner/repo/t/b.pt")
    assert hub.requests == []


@pytest.mark.parametrize("get", [fetch, fetch_file])
def test_data_sets_of_the_hub(hub, get):
    hub.files["owner/repo/t/a.json"] = b"{}"
    for source in (
        "hf://datasets/owner/repo/t/a.json",
        "https://huggingface.co/datasets/owner/repo/blob/main/t/a.json",
        "HF://spaces/owner/repo@v1/t/a.json",
    ):
        assert get(source).read_bytes() == b"{}"
    gets = {request[1] for request in hub.requests if request[0] == "GET"}
    assert gets == {
        "datasets/owner/repo/resolve/main/t/a.json",
        "spaces/owner/repo/resolve/v1/t/a.json",
    }


def test_a_disk_that_is_full_is_not_called_a_missing_file(hub, monkeypatch):
    import huggingface_hub

    def fill(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fill)
    with pytest.raises(OSError, match=r"HF_HOME.*was written") as error:
        fetch("owner/repo/a.pt")
    assert error.value.errno == errno.ENOSPC


def test_a_file_that_is_not_what_the_hub_states_is_refused(hub):
    hub.files["owner/repo/a.pt"] = BODY
    hub.tags["owner/repo/a.pt"] = "ab" * 32
    for _ in range(2):  # and it does not stay
        with pytest.raises(CheckpointError, match=r"corrupt: its sha256 must be abab"):
            fetch("owner/repo/a.pt")
    del hub.tags["owner/repo/a.pt"]
    assert fetch("owner/repo/a.pt").read_bytes() == BODY


def test_what_is_in_the_cache_is_not_read_again(hub, monkeypatch):
    hub.files["owner/repo/a.pt"] = BODY
    path = fetch("owner/repo/a.pt")
    monkeypatch.setattr(fetching, "sha256", lambda path: pytest.fail("was read"))
    assert fetch("owner/repo/a.pt") == path


@pytest.mark.parametrize("get", [fetch, fetch_file])
@pytest.mark.parametrize(
    "source",
    [
        "owner/repo@refs/pr/7/t/a.json",
        "hf://owner/repo@refs%2Fpr%2F7/t/a.json",
        "https://huggingface.co/owner/repo/resolve/refs%2Fpr%2F7/t/a.json",
    ],
)
def test_revisions_work_for_every_kind_of_file(hub, get, source):
    hub.files["owner/repo/t/a.json"] = b"{}"
    assert get(source).read_bytes() == b"{}"
    gets = [request[1] for request in hub.requests if request[0] == "GET"]
    assert gets == ["owner/repo/resolve/refs/pr/7/t/a.json"]


def test_the_site_of_the_environment_is_the_hub(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    hub.files["owner/repo/a.pt"] = BODY
    path = fetch(f"{hub.url}/owner/repo/resolve/main/a.pt")
    assert path == fetch("hf://owner/repo/a.pt")
    with pytest.raises(FileNotFoundError, match=f"Get it from {hub.url}/owner/repo/"):
        fetch("owner/repo/b.pt")


# --- other addresses --------------------------------------------------------------


def test_a_url_is_fetched_once(server):
    server.files["x/a.pt"] = BODY
    path = fetch(server.url + "/x/a.pt")
    assert path.name == "a.pt"
    assert path.read_bytes() == BODY
    assert fetch(server.url + "/x/a.pt") == path
    assert len(server.requests) == 1
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]
    assert list(path.parent.parent.iterdir()) == [path.parent]


def test_broken_connections_are_resumed(server):
    server.files["a.pt"] = BODY
    server.drop_after = [400_000, 0, 500_000]
    assert fetch(server.url + "/a.pt").read_bytes() == BODY
    ranges = [request[2] for request in server.requests]
    assert ranges == [None, "bytes=400000-", "bytes=400000-", "bytes=900000-"]


def test_the_next_run_goes_on_where_the_last_one_ended(server):
    server.files["a.pt"] = BODY
    server.drop_after = [100_000, 100_000, 100_000, 100_000]
    with pytest.raises(FileNotFoundError, match=r"goes on from there") as error:
        fetch(server.url + "/a.pt", flag="--source")
    assert "set --source to the local file" in str(error.value)
    server.requests.clear()
    assert fetch(server.url + "/a.pt").read_bytes() == BODY
    assert [request[2] for request in server.requests] == ["bytes=400000-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server):
    server.files["a.pt"] = BODY
    server.drop_after = [100_000] * 4
    with pytest.raises(FileNotFoundError):
        fetch(server.url + "/a.pt")
    server.files["a.pt"] = BODY[::-1]
    assert fetch(server.url + "/a.pt").read_bytes() == BODY[::-1]


def test_checksums_are_checked(server):
    server.files["a.pt"] = BODY
    right = hashlib.sha256(BODY).hexdigest()
    assert fetch(f"{server.url}/a.pt#sha256={right}").read_bytes() == BODY
    with pytest.raises(ValueError, match=rf"must have sha256 {'0' * 64}.*has {right}"):
        fetch(f"{server.url}/a.pt#sha256={'0' * 64}")
    with pytest.raises(ValueError, match="must have sha256"):
        fetch(f"{server.url}/a.pt#sha256={'0' * 64}")


def test_errors_of_the_server_are_explained(server):
    with pytest.raises(FileNotFoundError, match=r"/missing\.pt cannot be .*404"):
        fetch(server.url + "/missing.pt")
    assert len(server.requests) == 1  # it will not be there a second later either
    server.status["busy.pt"] = 503
    with pytest.raises(FileNotFoundError, match="503"):
        fetch(server.url + "/busy.pt")
    assert len(server.requests) == 5


def test_offline_mode_forbids_urls(server, monkeypatch):
    server.files["a.pt"] = BODY
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    with pytest.raises(FileNotFoundError, match="offline mode is on"):
        fetch(server.url + "/a.pt")
    assert server.requests == []


def test_a_disk_without_room_is_seen_before_the_download(server, monkeypatch):
    server.files["a.pt"] = BODY
    usage = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="too full") as error:
        fetch(server.url + "/a.pt")
    assert error.value.errno == errno.ENOSPC


def test_a_cache_that_cannot_be_written_names_its_variable(
    server, monkeypatch, tmp_path
):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "file" / "cache"))
    server.files["a.pt"] = BODY
    with pytest.raises(
        OSError, match=r"cannot be written \(Not a dir.*FDJAX_CACHE_DIR"
    ):
        fetch(server.url + "/a.pt")


@pytest.mark.parametrize(
    "name", ["%2e%2e", "a%2Fb.png", "a%00b", "x" * 300, "", "ü%20%3F"]
)
def test_the_name_in_a_url_is_no_path(server, name, caches):
    server.files[urllib.parse.unquote(name)] = b"x"
    path = fetch_file(f"{server.url}/{name}")
    downloads = (caches / "cache" / "downloads").resolve()
    assert path.resolve().parent.parent == downloads


def test_the_directory_belongs_to_what_is_kept(server):
    server.files |= {"a/start.png": b"one", "b/start.png": b"two"}
    assert fetch_file(server.url + "/a/start.png").read_bytes() == b"one"
    assert fetch_file(server.url + "/b/start.png").read_bytes() == b"two"


def test_versions_of_what_is_remote(hub):
    assert fetching.cached_version("hf://owner/repo/a.pt") == ""
    assert fetching.cached_version("hf://owner/repo") == ""
    assert fetching.cached_version(hub.url + "/a.pt") == ""
    versions = set()
    hub.files["owner/repo/a.pt"] = BODY
    fetch("hf://owner/repo/a.pt")
    for content in (b"one", b"two"):
        hub.files["a.pt"] = content
        path = fetch(hub.url + "/a.pt")
        versions.add(fetching.cached_version(hub.url + "/a.pt"))
        shutil.rmtree(path.parent)
    assert len(versions - {""}) == 2
    digest = hashlib.sha256(BODY).hexdigest()
    assert fetching.cached_version("hf://owner/repo/a.pt") == digest
    assert fetching.cached_version("hf://owner/repo") == "0" * 40
    assert fetching.cached_version(hub.url + "/a.pt#sha256=ab") == "ab"


def test_the_query_belongs_to_what_is_kept(server):
    server.files["a.png"] = b"one"
    first = fetch_file(server.url + "/a.png?v=1")
    server.files["a.png"] = b"two"
    assert fetch_file(server.url + "/a.png?v=2").read_bytes() == b"two"
    assert fetch_file(server.url + "/a.png?v=1") == first
    assert first.name == "a.png"
    assert first.read_bytes() == b"one"


# --- single files -----------------------------------------------------------------


def test_a_single_file_is_itself(tmp_path, monkeypatch):
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    path.write_text("x")
    assert fetch_file(path) == path
    monkeypatch.chdir(tmp_path)
    assert fetch_file("images/a.png").read_text() == "x"
    with pytest.raises(FileNotFoundError, match="input file images is a directory"):
        fetch_file("images")
    for missing in ("b", "images/b.png", str(path) + "x"):
        with pytest.raises(FileNotFoundError, match=f"image {missing} does not exist"):
            fetch_file(missing, what="image")


def test_a_single_file_of_the_hub(hub):
    hub.files["owner/repo/sub/tokenizer.json"] = b"{}"
    hub.files["owner/repo/sub/picture.png"] = b"png"
    assert fetch_file("hf://owner/repo/sub/tokenizer.json").read_bytes() == b"{}"
    assert fetch_file("owner/repo/sub/picture.png").read_bytes() == b"png"
    with pytest.raises(FileNotFoundError, match=r"set the image to the local file"):
        fetch_file("owner/repo/sub/other.png", what="image")
    with pytest.raises(FileNotFoundError, match="hf://owner/repo must name a file"):
        fetch_file("hf://owner/repo")


def test_a_single_file_that_cannot_be_fetched_leaves_nothing(server, caches):
    with pytest.raises(FileNotFoundError, match=r"/no\.png cannot be fetched.*404"):
        fetch_file(server.url + "/no.png")
    assert not list((caches / "cache" / "downloads").iterdir())
