"""Finds the methods that are installed: plug-ins, ours included.

A method registers through the entry-point group `fdjax.runner_configs`, or through the
environment variable `FDJAX_RUNNER_CONFIGS="slug=module:ATTR,..."`. Either names a
`RunnerConfig`, a dict of slug to `RunnerConfig`, or a callable without arguments that
returns one of these.

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
from collections.abc import Iterator, Mapping
from typing import Any

import fdjax

GROUP = "fdjax.runner_configs"
"""Entry-point group of methods."""

VARIABLE = "FDJAX_RUNNER_CONFIGS"
"""Environment variable that adds methods without installing anything."""


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
class Discovery:
    """What one look at all registrations found.

    Attributes:
        configs: Runner configs by slug, sorted.
        sources: Where each slug is registered.
        broken: Registrations that gave no method.
    """

    configs: dict[str, Any]
    sources: dict[str, str]
    broken: tuple[BrokenPlugin, ...]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One registration, not loaded yet: a slug or label, and `module:ATTR`."""

    name: str
    value: str
    origin: str
    slug_required: bool = False

    @property
    def source(self) -> str:
        return f"{self.origin}: {self.name} = {self.value}"


def runner_configs() -> dict[str, Any]:
    """Runner configs of all working methods by slug, sorted.

    Raises:
        ValueError: Two registrations claim one slug; both are named.
    """
    return discover().configs


def broken_plugins() -> tuple[BrokenPlugin, ...]:
    """Registrations that gave no method, each with its reason."""
    return discover().broken


def discover() -> Discovery:
    """Loads every registration. Broken ones never take the others down.

    Raises:
        ValueError: Two registrations claim one slug; both are named.
    """
    configs: dict[str, Any] = {}
    sources: dict[str, str] = {}
    broken: list[BrokenPlugin] = []
    for entry in _entries(broken):
        for slug, config in _load(entry, broken).items():
            if slug in configs and configs[slug] != config:
                raise ValueError(
                    f"Two methods are called {slug!r}: one from {sources[slug]}, one "
                    f"from {entry.source}. Rename one, or remove its registration."
                )
            configs[slug] = config
            sources.setdefault(slug, entry.source)
    order = sorted(configs)
    return Discovery(
        configs={slug: configs[slug] for slug in order},
        sources={slug: sources[slug] for slug in order},
        broken=tuple(broken),
    )


def method_packages() -> set[str]:
    """Top-level packages that register methods, and fdjax itself."""
    modules = [entry.value.partition(":")[0] for entry in _entries([])]
    return {"fdjax"} | {module.strip().partition(".")[0] for module in modules}


def _entries(broken: list[BrokenPlugin]) -> Iterator[_Entry]:
    own = _clone_entries()
    yield from own
    points = importlib.metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda point: (point.name, point.value)):
        distribution = point.dist.name if point.dist else "unknown"
        if not (own and distribution == "fdjax"):
            yield _Entry(point.name, point.value, f"package {distribution}")
    for text in os.environ.get(VARIABLE, "").split(","):
        slug, equals, value = (part.strip() for part in text.partition("="))
        module, colon, attribute = (part.strip() for part in value.partition(":"))
        if all((slug, equals, module, colon, attribute)):
            yield _Entry(slug, f"{module}:{attribute}", VARIABLE, slug_required=True)
        elif text.strip():
            broken.append(
                BrokenPlugin(
                    slug,
                    f"{VARIABLE}: {text.strip()}",
                    "must have the form slug=module:ATTR",
                )
            )


@functools.cache
def _clone_entries() -> tuple[_Entry, ...]:
    """Our own methods as the clone's pyproject has them; none where installed."""
    path = pathlib.Path(fdjax.__file__).parent.parent / "pyproject.toml"
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return ()
    if project.get("name") != "fdjax":
        return ()
    table = project.get("entry-points", {}).get(GROUP, {})
    return tuple(
        _Entry(name, value, "fdjax's pyproject.toml")
        for name, value in sorted(table.items())
    )


def _load(entry: _Entry, broken: list[BrokenPlugin]) -> dict[str, Any]:
    """Runner configs of one registration; what is wrong goes to `broken`."""
    from fdjax.run.runner import RunnerConfig

    try:
        value = _resolve(entry.value)
        if not isinstance(value, Mapping | RunnerConfig) and callable(value):
            value = value()
    except (Exception, SystemExit) as error:  # a plug-in may fail in any way
        broken.append(BrokenPlugin(entry.name, entry.source, _reason(entry, error)))
        return {}
    if isinstance(value, RunnerConfig):
        label = entry.name if entry.slug_required else value.runner_name
        value = {label: value}
    if not isinstance(value, Mapping):
        reason = (
            "must be a RunnerConfig, a dict of them or a callable that returns one, "
            f"got {type(value).__name__}"
        )
        broken.append(BrokenPlugin(entry.name, entry.source, reason))
        return {}
    good = {}
    for slug, config in value.items():
        if not isinstance(config, RunnerConfig):
            reason = f"{slug!r} must be a RunnerConfig, got {type(config).__name__}"
        elif config.runner_name != slug:
            reason = f"slug {slug!r} must equal runner_name {config.runner_name!r}"
        else:
            good[slug] = config
            continue
        broken.append(BrokenPlugin(entry.name, entry.source, reason))
    return good


def _resolve(value: str) -> Any:
    module, _, attribute = value.partition(":")
    found = importlib.import_module(module.strip())
    for part in attribute.split("[")[0].strip().split("."):
        found = getattr(found, part)
    return found


def _reason(entry: _Entry, error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    package = entry.value.partition(".")[0]
    if entry in _clone_entries() and getattr(error, "name", None) == package:
        text += " (this clone is not installed: use scripts/run.py)"
    return text
