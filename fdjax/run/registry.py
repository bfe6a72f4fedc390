"""Finds the methods that are installed: plug-ins, ours included.

A method registers through the entry-point group `fdjax.runner_configs`, or through the
environment variable `FDJAX_RUNNER_CONFIGS="slug=module:ATTR,..."`. Either names a
`RunnerConfig`, a dict of slug to `RunnerConfig`, or a callable without arguments that
returns one of these.
"""

import dataclasses
from collections.abc import Mapping

from fdjax.run import plugins
from fdjax.run.plugins import BrokenPlugin, Entry
from fdjax.run.runner import RunnerConfig


@dataclasses.dataclass(frozen=True)
class Discovery:
    """What one look at all registrations found.

    Attributes:
        configs: Runner configs by slug, sorted.
        sources: Where each slug is registered.
        broken: Registrations that gave no method.
    """

    configs: dict[str, RunnerConfig]
    sources: dict[str, str]
    broken: tuple[BrokenPlugin, ...]


def runner_configs() -> dict[str, RunnerConfig]:
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
    configs: dict[str, RunnerConfig] = {}
    sources: dict[str, str] = {}
    entries, broken = plugins.entries()
    for entry in entries:
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


def _load(entry: Entry, broken: list[BrokenPlugin]) -> dict[str, RunnerConfig]:
    """Runner configs of one registration; what is wrong goes to `broken`."""
    try:
        value = entry.load()
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


def _reason(entry: Entry, error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    missing = getattr(error, "name", None)
    if entry in plugins.clone_entries() and missing == entry.package:
        text += " (this clone is not installed: use scripts/run.py)"
    return text
