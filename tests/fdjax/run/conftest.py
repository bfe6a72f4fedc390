"""Fixtures that run `fdjax-run` within the test's process."""

import pytest

from fdjax.run import cli, plugins, registry
from tests.tiny_runner import CONFIG, TinyRunner


@pytest.fixture
def tiny_method(monkeypatch, tmp_path):
    """One method and one broken plug-in; a working directory of its own."""
    monkeypatch.setattr(
        registry,
        "discover",
        lambda: registry.Discovery(
            configs={"tiny": CONFIG},
            sources={"tiny": "test"},
            broken=(plugins.BrokenPlugin("bad", "package x: bad = y:Z", "E: why"),),
        ),
    )
    monkeypatch.setenv(plugins.VARIABLE, "tiny=tests.tiny_runner:RUNNER_CONFIGS")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fdjax_run(capsys):
    """Runs a command; gives exit code, standard output and standard error."""

    def run(*arguments):
        code = cli.run(list(arguments))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def resolve(fdjax_run, monkeypatch):
    """The config that a command would run."""
    configs = []
    monkeypatch.setattr(TinyRunner, "run", lambda self: configs.append(self.config))

    def run(*arguments):
        code, _, error = fdjax_run("tiny", *arguments)
        assert code == 0, error
        return configs.pop()

    return run
