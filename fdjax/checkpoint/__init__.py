"""Parameters on disk: found, fetched, restored, saved."""

from fdjax.checkpoint.metadata import Metadata, check_fit, config_hash, describe
from fdjax.checkpoint.store import (
    is_intact,
    load_params,
    open_lazily,
    param_shapes,
    read_metadata,
    restore,
    save,
)

__all__ = [
    "Metadata",
    "check_fit",
    "config_hash",
    "describe",
    "is_intact",
    "load_params",
    "open_lazily",
    "param_shapes",
    "read_metadata",
    "restore",
    "save",
]
