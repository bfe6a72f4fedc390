"""What tests of a method need: the contract suite and its comparisons."""

from fdjax.testing.case import (
    TOLERANCE,
    PipelineCase,
    assert_close,
    count_compilations,
)
from fdjax.testing.collectives import collectives
from fdjax.testing.contract import CHECKS
from fdjax.testing.tolerance import tolerance

__all__ = [
    "CHECKS",
    "TOLERANCE",
    "PipelineCase",
    "assert_close",
    "collectives",
    "count_compilations",
    "tolerance",
]
