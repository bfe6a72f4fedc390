"""Compiler flags: defaults are added, the user's own win."""

import os
import subprocess
import sys
import types

import jax
import pytest

from fdjax.run import xla_flags

FLAG = "--xla_gpu_enable_triton_gemm"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", f"{FLAG}=false"),
        ("--xla_dump_to=/x", f"--xla_dump_to=/x {FLAG}=false"),
        (f"{FLAG}=true", f"{FLAG}=true"),
        (f"{FLAG}", f"{FLAG}"),
    ],
)
def test_defaults_are_added_and_never_override(given, expected):
    assert xla_flags.with_defaults(given) == expected


def test_later_versions_get_none(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    assert xla_flags.with_defaults("") == ""


def test_set_defaults_changes_the_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/x")
    xla_flags.set_defaults()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/x {FLAG}=false"


def test_xla_knows_the_flags():
    code = (
        "from fdjax.run import xla_flags; xla_flags.set_defaults(); "
        "import jax; jax.devices()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("given", [None, "0.5"])
def test_most_of_a_gpus_memory_is_taken_unless_the_user_says_otherwise(
    monkeypatch, given
):
    name = "XLA_PYTHON_CLIENT_MEM_FRACTION"
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv(name, "")  # noted, so that it is undone
    monkeypatch.delenv(name)
    if given is not None:
        monkeypatch.setenv(name, given)
    xla_flags.set_defaults()
    assert os.environ[name] == (given or xla_flags.MEMORY_FRACTION)


def test_a_cache_that_cannot_be_written_is_said_once(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "file"))
    updates = []
    settings = types.SimpleNamespace(
        jax_compilation_cache_dir=None, update=lambda *pair: updates.append(pair)
    )
    monkeypatch.setattr(jax, "config", settings)
    xla_flags.enable_compilation_cache()
    assert updates == []
    assert "not kept: the cache " in caplog.text
    assert "set FDJAX_CACHE_DIR to a folder that can" in caplog.text
