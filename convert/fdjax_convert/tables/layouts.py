"""The key layouts that this package knows, and which of them a checkpoint has."""

from collections.abc import Collection

from fdjax_convert.rules.rules import Layout
from fdjax_convert.tables import clip, taehv, umt5, wan_dit, wan_vae

ALL: tuple[Layout, ...] = (
    *wan_dit.LAYOUTS,
    *wan_vae.LAYOUTS,
    *taehv.LAYOUTS,
    *umt5.LAYOUTS,
    *clip.LAYOUTS,
)
"""A module of this package holds the tables of one network as its `LAYOUTS`."""


def layouts(architecture: str | None = None) -> tuple[Layout, ...]:
    """All layouts, or those of one architecture."""
    return tuple(one for one in ALL if architecture in (None, one.architecture))


def detect(keys: Collection[str]) -> tuple[Layout, ...]:
    """The layouts that these keys (wrappers and prefixes removed) belong to.

    One file can hold several components (a VAE's encoder and decoder), each of which
    has its own layout.
    """
    keys = frozenset(keys)
    return tuple(layout for layout in ALL if layout.detect(keys))
