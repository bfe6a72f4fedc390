"""Configs as values: frozen dataclasses, variants of them, JSON and back."""

from fdjax.config.base import (
    Component,
    InstantiateConfig,
    check_config,
    class_path,
    config_hash,
    derive_config,
    format_value,
    from_json,
    shown_fields,
    to_json,
)

__all__ = [
    "Component",
    "InstantiateConfig",
    "check_config",
    "class_path",
    "config_hash",
    "derive_config",
    "format_value",
    "from_json",
    "shown_fields",
    "to_json",
]
