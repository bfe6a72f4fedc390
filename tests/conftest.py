"""Settings of the whole test run; they must stand before jax is imported."""

import itertools
import os

from tests import worst_errors

# Compiling is most of the suite's time and LLVM's optimisation most of compiling:
# 2.6 times less processor time for the pipeline tests (jax 0.10.2, 2 cores).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--worst-errors",
        action="store_true",
        help="print the worst error of each file of parity tests; with -v of each test",
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
