"""What tests of a method need: the contract suite and its comparisons."""

from fdjax.testing.contract import (
    CHECKS,
    TOLERANCE,
    PipelineCase,
    assert_close,
    count_compilations,
)
from fdjax.testing.tolerance import tolerance

__all__ = [
    "CHECKS",
    "TOLERANCE",
    "PipelineCase",
    "assert_close",
    "count_compilations",
    "tolerance",
]
