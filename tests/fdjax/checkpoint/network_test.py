"""No network, a slow one, and many who want the same file of it."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from fdjax.checkpoint import network
from fdjax.checkpoint.fetch import fetch, fetch_file

BODY = bytes(range(256)) * 5000

pytestmark = pytest.mark.usefixtures("caches")


def closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize("get", [fetch, fetch_file])
@pytest.mark.parametrize("source", ["hf://o/r/a.json", "o/r@v1/t/a.json", "URL/a.json"])
def test_no_network_is_found_out_once_and_soon(hub, monkeypatch, capfd, get, source):
    from huggingface_hub import constants

    monkeypatch.undo()  # sleeping is real
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    url = closed_port()
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "no-cache")
    start = time.monotonic()
    with pytest.raises(
        FileNotFoundError, match=r"cannot be .*refused.*local f"
    ) as info:
        get(source.replace("URL", url))
    assert time.monotonic() - start < 5
    assert capfd.readouterr() == ("", "")
    assert str(info.value).count("refused") == 1


def test_a_name_server_that_is_silent_is_not_waited_for(hub, monkeypatch):
    from huggingface_hub import constants

    def wait(*_, **__):
        released.wait(60)
        raise OSError("late")

    released = threading.Event()
    monkeypatch.setattr(network.socket, "create_connection", wait)
    monkeypatch.setattr(network, "_PATIENCE", 0.2)
    monkeypatch.setattr(constants, "ENDPOINT", "https://silent.example")
    try:
        with pytest.raises(FileNotFoundError, match=r"silent\.example does not answer"):
            fetch("hf://owner/repo/a.pt")
    finally:
        released.set()


def test_a_proxy_is_what_has_to_be_reached(monkeypatch):
    url = closed_port()
    monkeypatch.setenv("https_proxy", url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert network._target("https://huggingface.co/a")[1:] == (
        "127.0.0.1",
        int(url.rpartition(":")[2]),
    )
    assert "refused" in network.unreachable("https://huggingface.co/a")


def test_without_a_network_the_cache_is_used(hub, monkeypatch):
    from huggingface_hub import constants

    hub.files["owner/repo/t/a.pt"] = BODY
    path = fetch("owner/repo/t/a.pt")
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    assert fetch("owner/repo/t/a.pt") == path
    assert fetch("owner/repo/t") == path.parent
    with pytest.raises(FileNotFoundError, match=r"not in the cache, .* be reached"):
        fetch("owner/repo/u")


def test_a_server_that_cannot_be_reached_is_explained(hub, monkeypatch):
    from huggingface_hub import constants

    url = closed_port()
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    for source in ("owner/repo/a.pt", "owner/repo"):
        with pytest.raises(
            FileNotFoundError, match=r"cannot be fetched: .*Get it from"
        ):
            fetch(source)


def _in_threads(count, work):
    results = []

    def run():
        start.wait()
        try:
            results.append(work())
        except BaseException as error:
            results.append(error)

    start = threading.Barrier(count)
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("site", ["url", "hub"])
def test_threads_that_want_one_file_share_one_download(hub, site):
    hub.files["owner/repo/a.pt"] = BODY
    hub.files["a.pt"] = BODY
    source = "hf://owner/repo/a.pt" if site == "hub" else f"{hub.url}/a.pt"
    paths = _in_threads(4, lambda: fetch(source))
    assert [path.read_bytes() for path in paths] == [BODY] * 4
    assert len([request for request in hub.requests if request[0] == "GET"]) == 1


def test_processes_that_want_one_file_share_one_download(server):
    server.files["a.pt"] = BODY
    code = "import sys; from fdjax.checkpoint.fetch import fetch; fetch(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, server.url + "/a.pt"]
    children = [
        subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    assert [child.wait() for child in children] == [0] * 4
    assert len(server.requests) == 1
