"""Parameters on disk: found, fetched, restored, saved."""

from fdjax.checkpoint.load import check_local, load_params, origin, read_torch
from fdjax.checkpoint.metadata import Metadata, check_fit, describe, weights_hash
from fdjax.checkpoint.store import (
    is_intact,
    open_lazily,
    param_shapes,
    read_metadata,
    restore,
    save,
)

__all__ = [
    "Metadata",
    "check_fit",
    "check_local",
    "describe",
    "is_intact",
    "load_params",
    "open_lazily",
    "origin",
    "param_shapes",
    "read_metadata",
    "read_torch",
    "restore",
    "save",
    "weights_hash",
]
