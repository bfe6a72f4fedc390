"""The key layouts that this package knows, and which of them a checkpoint has."""

import importlib
from collections.abc import Collection

from fdjax_convert.rules.rules import Layout

MODULES = ("wan_dit", "wan_vae", "taehv", "umt5", "clip")
"""Modules of this package that export `LAYOUTS`."""


def layouts(architecture: str | None = None) -> tuple[Layout, ...]:
    """All layouts, or those of one architecture."""
    found: list[Layout] = []
    for name in MODULES:
        found.extend(importlib.import_module(f"fdjax_convert.tables.{name}").LAYOUTS)
    return tuple(
        layout
        for layout in found
        if architecture is None or layout.architecture == architecture
    )


def detect(keys: Collection[str]) -> tuple[Layout, ...]:
    """The layouts that these keys (wrappers and prefixes removed) belong to.

    One file can hold several components (a VAE's encoder and decoder), each of which
    has its own layout.
    """
    keys = frozenset(keys)
    return tuple(layout for layout in layouts() if layout.detect(keys))
