"""The components of the installed methods: what a checkpoint can be for."""

import dataclasses

from fdjax.config.values import did_you_mean
from fdjax.contract.component import ParametricComponent, leaves
from fdjax.run import registry


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A component that a checkpoint may fill.

    Attributes:
        method: Slug of a method that has it.
        name: Its name in the pipeline's params, e.g. "transformer".
        component: The component.
    """

    method: str
    name: str
    component: ParametricComponent


def components(
    method: str | None = None, name: str | None = None
) -> tuple[Candidate, ...]:
    """Components with parameters, each config once, by slug.

    Args:
        method: Slug; None takes all methods.
        name: Name in the pipeline's params; None takes all.

    Raises:
        ValueError: There is no such method or component; names the nearest.
    """
    configs = registry.runner_configs()
    if method is not None and method not in configs:
        hint = did_you_mean(method, configs)
        raise ValueError(f"unknown method {method!r}{hint}; see fdjax-run --help")
    found: list[Candidate] = []
    names: set[str] = set()
    for slug in configs if method is None else (method,):
        parts = leaves(configs[slug].pipeline.setup().components)
        names |= set(parts)
        for part, component in parts.items():
            wanted = name in (None, part) and component.architecture
            if wanted and all(component != other.component for other in found):
                found.append(Candidate(slug, part, component))
    if name is not None and name not in names:
        of = f"method {method!r}" if method else "any method"
        raise ValueError(f"no component {name!r} of {of}; there are {sorted(names)}")
    return tuple(found)
