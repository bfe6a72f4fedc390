"""What is registered: the entries of methods, and the classes that they are made of.

In a clone, fdjax's own methods are read from the `pyproject.toml` beside the package,
so that they are found without an installation and are never stale. Entry points of
other packages are read from their installation: editing them needs a reinstall.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import os
import pathlib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

import fdjax
from fdjax import schedulers
from fdjax.config import KnownClasses, class_names, is_config
from fdjax.contract.encoder import NullEncoderConfig

GROUP = "fdjax.runner_configs"
"""Entry-point group of methods."""

VARIABLE = "FDJAX_RUNNER_CONFIGS"
"""Environment variable that adds methods without installing anything."""

_DISTRIBUTION = "fdjax"
# Parts of the runtime that a derived config may hold though no method's does.
_RUNTIME_PARTS = (
    NullEncoderConfig,
    schedulers.EulerSchedulerConfig,
    schedulers.FlowMatchSchedulerConfig,
    schedulers.UniPCSchedulerConfig,
)


@dataclasses.dataclass(frozen=True)
class BrokenPlugin:
    """A registration that gave no method.

    Attributes:
        name: Its slug or label.
        source: Where it is registered and what it names.
        reason: What went wrong, in one line.
    """

    name: str
    source: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registration: a slug or label, and `module:ATTR`.

    Attributes:
        name: The slug or label.
        value: `module:ATTR`.
        origin: Where it is registered.
        own: Whether it is one of fdjax's own.
        slug_required: Whether `name` must be the slug.
    """

    name: str
    value: str
    origin: str
    own: bool = False
    slug_required: bool = False

    @property
    def source(self) -> str:
        """Where it is registered and what it names."""
        return f"{self.origin}: {self.name} = {self.value}"

    @property
    def package(self) -> str:
        """Top-level package of its module."""
        return self.value.partition(":")[0].strip().partition(".")[0]

    def load(self) -> Any:
        """What it names, called if it is neither a config nor a mapping.

        Raises:
            Exception, SystemExit: Whatever the plug-in raises.
        """
        module, _, attribute = self.value.partition(":")
        found = importlib.import_module(module.strip())
        for part in attribute.split("[")[0].strip().split("."):
            found = getattr(found, part)
        if not (isinstance(found, Mapping) or is_config(found)) and callable(found):
            found = found()
        return found


def entries() -> tuple[list[Entry], list[BrokenPlugin]]:
    """All registrations, ours first, and those that are not well formed."""
    own = clone_entries()
    found, broken = list(own), []
    points = importlib.metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda point: (point.name, point.value)):
        distribution = point.dist.name if point.dist else "unknown"
        is_own = distribution == _DISTRIBUTION
        if not (own and is_own):
            origin = f"package {distribution}"
            found.append(Entry(point.name, point.value, origin, own=is_own))
    for text in os.environ.get(VARIABLE, "").split(","):
        slug, equals, value = (part.strip() for part in text.partition("="))
        module, colon, attribute = (part.strip() for part in value.partition(":"))
        if all((slug, equals, module, colon, attribute)):
            found.append(
                Entry(slug, f"{module}:{attribute}", VARIABLE, slug_required=True)
            )
        elif text.strip():
            source = f"{VARIABLE}: {text.strip()}"
            reason = "must have the form slug=module:ATTR"
            broken.append(BrokenPlugin(slug, source, reason))
    return sorted(found, key=lambda entry: not entry.own), broken


def method_packages() -> frozenset[str]:
    """Top-level packages that register methods, and fdjax itself."""
    return frozenset({"fdjax"} | {entry.package for entry in entries()[0]})


def known_classes() -> KnownClasses:
    """The classes that a saved config may name: those of all registered methods.

    The short names of fdjax's own classes stand whatever is installed beside it; one
    that only plug-ins use is short if no other plug-in has a class of that name.
    """
    own: list[Any] = list(_RUNTIME_PARTS)
    others: list[Any] = []
    for entry in entries()[0]:
        (own if entry.own else others).extend(_configs_of(entry))
    names = class_names(others) | class_names(own)
    return KnownClasses(names=names, packages=method_packages())


def _configs_of(entry: Entry) -> Iterable[Any]:
    """The configs that a registration names; none if it is broken."""
    try:
        value = entry.load()
    except (Exception, SystemExit):  # a plug-in may fail in any way
        return ()
    values = value.values() if isinstance(value, Mapping) else (value,)
    return filter(is_config, values)


@functools.cache
def clone_entries() -> tuple[Entry, ...]:
    """Our own methods as the clone's pyproject has them; none where installed."""
    path = pathlib.Path(fdjax.__file__).parent.parent / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return ()
    if project.get("name") != _DISTRIBUTION:
        return ()
    table = project.get("entry-points", {}).get(GROUP, {})
    return tuple(
        Entry(name, value, "fdjax's pyproject.toml", own=True)
        for name, value in sorted(table.items())
    )
