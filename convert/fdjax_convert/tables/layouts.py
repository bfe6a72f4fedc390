"""The key layouts that this package knows, and which of them a checkpoint has."""

import dataclasses
from collections.abc import Collection

from fdjax_convert.rules.rules import HasKeys, Layout
from fdjax_convert.tables import (
    clip,
    cosmos_dit,
    cosmos_reason1,
    taehv,
    umt5,
    wan_dit,
    wan_vae,
)

ALL: tuple[Layout, ...] = (
    *wan_dit.LAYOUTS,
    *cosmos_dit.LAYOUTS,
    *wan_vae.LAYOUTS,
    *taehv.LAYOUTS,
    *umt5.LAYOUTS,
    *clip.LAYOUTS,
    *cosmos_reason1.LAYOUTS,
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


@dataclasses.dataclass(frozen=True)
class Part:
    """A component in a file: keys of one layout, all with one prefix.

    Attributes:
        layout: The layout.
        prefix: What stands in front of its keys: "", or it ends in a dot.
    """

    layout: Layout
    prefix: str = ""


def parts(keys: Collection[str]) -> tuple[Part, ...]:
    """The components that keys belong to, under whatever prefix each of them stands.

    A file may hold a network, its VAE and its text encoder, or one network twice.
    """
    present = frozenset(keys)
    found = [Part(layout) for layout in detect(present)]
    tails: dict[str, list[str]] = {}
    for key in present:
        tails.setdefault(_tail(key), []).append(key)
    for layout in ALL:
        if not isinstance(layout.detect, HasKeys):
            continue
        anchor = min(layout.detect.keys)
        for key in sorted(tails.get(_tail(anchor), ())):
            prefix = key.removesuffix(anchor)
            if key.endswith(f".{anchor}") and all(
                prefix + other in present for other in layout.detect.keys
            ):
                found.append(Part(layout, prefix))
    return tuple(one for one in found if not any(_within(one, o) for o in found))


def members(found: Collection[Part], prefix: str, keys: Collection[str]) -> list[str]:
    """The keys under a prefix that belong to no part with a longer one."""
    inner = tuple(
        {p.prefix for p in found if p.prefix != prefix and p.prefix.startswith(prefix)}
    )
    return [k for k in keys if k.startswith(prefix) and not k.startswith(inner or "\0")]


def _tail(key: str) -> str:
    """The last two names of a key."""
    return ".".join(key.rsplit(".", 2)[-2:])


def _within(part: Part, other: Part) -> bool:
    """Whether the keys of a part are those by which a larger one is known."""
    if not isinstance(other.layout.detect, HasKeys) or part.prefix == other.prefix:
        return False
    return part.prefix.startswith(other.prefix) and any(
        (other.prefix + key).startswith(part.prefix) for key in other.layout.detect.keys
    )
