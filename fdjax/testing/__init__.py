"""What tests of a method need: the contract suite and its comparisons."""

from fdjax.testing.contract import (
    CHECKS,
    TOLERANCE,
    PipelineCase,
    assert_close,
    count_compilations,
)

__all__ = [
    "CHECKS",
    "TOLERANCE",
    "PipelineCase",
    "assert_close",
    "count_compilations",
]
