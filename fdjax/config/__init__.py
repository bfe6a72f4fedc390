"""Configs as values: frozen dataclasses, variants of them, JSON and back."""

from fdjax.config.base import (
    Component,
    InstantiateConfig,
    check_config,
    class_path,
    derive_config,
    format_value,
    is_config,
)
from fdjax.config.serialize import (
    KnownClasses,
    class_names,
    config_hash,
    from_json,
    to_json,
)
from fdjax.config.values import DTypeName, Seed

__all__ = [
    "Component",
    "DTypeName",
    "InstantiateConfig",
    "KnownClasses",
    "Seed",
    "check_config",
    "class_names",
    "class_path",
    "config_hash",
    "derive_config",
    "format_value",
    "from_json",
    "is_config",
    "to_json",
]
