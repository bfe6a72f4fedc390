"""What a run needs is known before anything is read or allocated."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import pytest

from fdjax.config import derive_config
from fdjax.run import downloads, memory, needs
from tests.tiny_runner import CONFIG, TinyRunner


def test_size_text():
    sizes = {0: "0 MB", 5: "1 MB", 28_300_000: "28 MB", 11_360_000_000: "11.4 GB"}
    assert {size: memory.size_text(size) for size in sizes} == sizes
    assert memory.size_text(7 * 10**15) == "7,000.0 TB"


def test_num_bytes_of_arrays_keys_and_shapes():
    tree = {"a": jnp.zeros((3, 5), jnp.bfloat16), "b": (jnp.zeros(4, jnp.int8),)}
    assert memory.num_bytes(tree) == 34
    huge = jax.ShapeDtypeStruct((10**6, 10**6, 10), jnp.float32)
    assert memory.num_bytes(huge) == 4 * 10**13
    assert memory.num_bytes(jax.random.key(0)) == 8


def test_this_machine_has_memory():
    assert memory.host_memory() > 10**8
    assert memory.device_memory() == (memory.host_memory(), "this machine")


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        (
            {"pipeline": {"diffusion_model": {"transformer": {"channels": 2**20}}}},
            False,
        ),
        ({"pixel_height": 16384, "pixel_width": 16384}, False),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_made(
    tmp_path, monkeypatch, changes, fits
):
    monkeypatch.setattr(memory, "host_memory", lambda: 10**9)
    monkeypatch.setattr(
        TinyRunner, "load_weights", lambda *_, **__: pytest.fail("weights read")
    )
    config = derive_config(CONFIG, output_dir=str(tmp_path), **changes)
    if fits:
        config.setup().prepare()
        return
    with pytest.raises(
        ValueError, match=r"needs at least .*B of memory: .* has 1\.0 GB"
    ):
        config.setup().prepare()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixel_width": 16386}, "pixel_width must be at most 16384, got 16386"),
        ({"pixel_height": 2**31 - 2}, "pixel_height must be at most 16384"),
        ({"fps": 1001}, "fps must be at most 1000, got 1001"),
    ],
)
def test_no_file_holds_such_a_video(changes, message):
    with pytest.raises(ValueError, match=message):
        derive_config(CONFIG, **changes)


def test_a_large_method_says_what_it_needs(caplog):
    large = needs.Needs(
        one_shot={"text_encoder": 12 * 10**9},
        weights={"transformer": 3 * 10**9},
        cache=5,
    )
    with caplog.at_level(logging.INFO):
        large.announce("big")
    assert "big needs at least 12.0 GB of the memory of this machine" in caplog.text
    assert "runs on the CPU" in caplog.text
    assert "--tiny" in caplog.text
    caplog.clear()
    dataclasses.replace(large, one_shot={}, weights={}).announce("small")
    assert not caplog.records


def test_a_device_that_is_not_there_is_a_mistake(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda': no such device\nmore")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(
        ValueError, match=r"JAX_PLATFORMS=cuda: Unable .* device\. Unset"
    ):
        memory.check_device()


FILES = {
    "t/model-00001-of-00002.safetensors": 4 * 10**9,
    "t/model-00002-of-00002.safetensors": 10**9,
    "t/model.safetensors.index.json": 1000,
    "t/other.safetensors": 7,
    "vae.pth": 10**9,
}


class Site:
    """Stands in for the site's answer about a repository."""

    def model_info(self, repo, **_):
        if repo == "a/unreachable":
            raise OSError("no network")
        kind = type("File", (), {})
        siblings = []
        for name, size in FILES.items():
            siblings.append(kind())
            siblings[-1].rfilename, siblings[-1].size = name, size
        return type("Info", (), {"siblings": siblings})


@pytest.fixture
def site(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Site)
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None
    )
    monkeypatch.setattr(downloads, "_cache", lambda: tmp_path)
    monkeypatch.setattr(downloads.fetch, "is_offline", lambda: False)


def test_downloads_are_told_with_their_size(site, caplog, tmp_path, monkeypatch):
    with caplog.at_level(logging.INFO):
        downloads.announce(
            ["hf://a/b/t/model.safetensors.index.json", "hf://a/b/vae.pth", "/a/file"]
        )
    assert f"To download, once: 6.0 GB; to {tmp_path} (" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        downloads.announce(["hf://a/unreachable/x.pth"])
        downloads.announce(["/a/file"])
    [record] = caplog.records
    assert "https://huggingface.co/a/unreachable/blob/main/x.pth" in record.getMessage()
    monkeypatch.setattr(downloads.files.shutil, "disk_usage", lambda _: Disk)
    with pytest.raises(OSError, match=r"too full: 1\.00 GB are needed"):
        downloads.announce(["hf://a/b/vae.pth"])


class Disk:
    free = 10
