"""Configs: frozen dataclasses whose `setup()` builds the component they describe."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Component:
    """What a config's `setup()` builds: static, hashable, holds no arrays.

    Equal configs give equal components, so that a jit cache keyed by a component is
    shared between them. Modules derived from the config are `functools.cached_property`.

    Attributes:
        config: The frozen config it was built from.
    """

    config: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstantiateConfig:
    """Base of every config: keyword-only, frozen, hashable.

    A subclass sets `_target` to the component class it configures.
    """

    _target: type = Component
    """Class that `setup()` instantiates with this config as its only argument."""

    def setup(self) -> Any:
        """Builds the component that this config describes."""
        return self._target(self)
