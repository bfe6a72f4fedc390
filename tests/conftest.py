"""Settings of the whole test run; they must stand before jax is imported."""

import itertools
import os
import shutil
import tempfile

import numpy as np
import pytest

from tests import processes, worst_errors

# Compiling is most of the suite's time and LLVM's optimisation most of compiling:
# 2.6 times less processor time for the pipeline tests (jax 0.10.2, 2 cores).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# What one process of the run has compiled, the others load: workers and the commands
# that tests start. Reading is ten times faster than compiling, and jax reports it as a
# compilation, so that tests can count. Never the user's folder, which would outlive the
# run: what does not compile any more would be found there.
_COMPILED = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    _COMPILED = tempfile.mkdtemp(prefix="fdjax-tests-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_unconfigure():
    if _COMPILED is not None:
        shutil.rmtree(_COMPILED, ignore_errors=True)


@pytest.fixture(autouse=True)
def _no_child_outlives_its_test():
    with processes.reaped():
        yield


@pytest.fixture
def default_signals():
    """Ctrl-C and SIGHUP do what they do in a shell, under `nohup … &` too."""
    with processes.default_signals():
        yield


@pytest.fixture
def chunks(monkeypatch):
    """The chunks of what runs, of the first session, before they become bytes."""
    from fdjax.run import media

    found, to_uint8 = [], media.to_uint8

    def record(video):
        found.append(np.asarray(video)[0])
        return to_uint8(video)

    monkeypatch.setattr(media, "to_uint8", record)
    return found


def pytest_addoption(parser):
    parser.addoption(
        "--worst-errors",
        action="store_true",
        help="print the worst error of each file of parity tests; with -v of each test",
    )
    parser.addoption(
        "--robustness-examples",
        type=int,
        default=0,
        metavar="N",
        help="examples of each fuzz test, random; without it a few, always the same",
    )

    parser.addoption(
        "--robustness-trials",
        type=int,
        default=0,
        metavar="N",
        help="kill each kind of writer N times more, and before every operation",
    )
    parser.addoption(
        "--robustness-chunks",
        type=int,
        default=0,
        metavar="N",
        help="stream N chunks in the soak, in place of a few hundred",
    )


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--worst-errors"):
        return
    reports = itertools.chain(*terminalreporter.stats.values())
    errors = worst_errors.errors_of_tests(reports)
    terminalreporter.section("worst errors, relative to the output's scale")
    for every_test in (False, True)[: 1 + (config.option.verbose > 0)]:
        for line in worst_errors.table(errors, every_test):
            terminalreporter.write_line(line)
