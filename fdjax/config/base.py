"""Configs: frozen dataclasses whose `setup()` builds the component they describe.

A config prints as a tree, compares and hashes by value, and makes variants of itself
(`derive_config`). `fdjax.config.serialize` brings it to JSON and back.
"""

import dataclasses
import enum
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from fdjax.config import values as config_values

ComponentType = TypeVar("ComponentType", covariant=True)
ConfigType = TypeVar("ConfigType")


@dataclasses.dataclass(frozen=True)
class Component:
    """What a config's `setup()` builds: static, hashable, holds no arrays.

    Equal configs give equal components, so that a jit cache keyed by a component is
    shared between them. Modules derived from the config are cached properties.

    Attributes:
        config: The frozen config it was built from.
    """

    config: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstantiateConfig(Generic[ComponentType]):
    """Base of every component's config: keyword-only, frozen, hashable.

    `InstantiateConfig[T]` is the config of a T. A subclass sets `_target` to the
    component class that it configures, and derives from the config of its category
    (`DecoderConfig`, ...), by which the fields that hold it are typed. What a component
    and its network share, such as sizes, may be a frozen dataclass without this base:
    it nests, prints and is saved like a config.
    """

    _target: type = Component
    """Class that `setup()` instantiates with this config as its only argument."""

    def setup(self) -> ComponentType:
        """Builds the component that this config describes.

        Raises:
            TypeError: A field has another type than it declares, nested ones too.
        """
        check_config(self)
        return self._target(self)

    def to_text(self) -> str:
        """The config as an indented tree, one field a line."""
        return "\n".join(_tree_lines(type(self).__name__, self))

    def __str__(self) -> str:
        return self.to_text()


def is_config(value: Any) -> bool:
    """Whether a value is a node of a config tree: a frozen dataclass, no component."""
    return not isinstance(value, type) and is_config_class(type(value))


def is_config_class(candidate: Any) -> bool:
    """Whether the instances of a class are nodes of a config tree."""
    params = getattr(candidate, "__dataclass_params__", None)
    return (
        isinstance(candidate, type)
        and params is not None
        and params.frozen
        and not issubclass(candidate, Component)
    )


def nested_configs(config: Any) -> Iterator[tuple[str, Any]]:
    """The configs that a config's fields hold: "name" or "name[index]", and config."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if is_config(value):
            yield field.name, value
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if is_config(item):
                    yield f"{field.name}[{index}]", item


def derive_config(base: ConfigType, /, **changes: Any) -> ConfigType:
    """A variant of a config; the base stays as it is.

    A dict walks into the config that the field holds, any other value replaces it:

        derive_config(RUNNER, pipeline={"diffusion_model": {"seed": 7}}, fps=24)

    The validation in every changed config's `__post_init__` runs again.

    Raises:
        KeyError: A field does not exist; the message has its path and the nearest name.
        TypeError: A value has the wrong type, or a dict is given for a field that
            holds no config.
        ValueError: From the validation; a note says where.
    """
    return _patch(base, changes, type(base).__name__)


def check_config(config: Any) -> None:
    """Checks that every field, nested ones too, has the type that it declares.

    Raises:
        TypeError: With the path, the requirement and the value.
    """
    _check_fields(config, type(config).__name__)


def class_path(config_class: type) -> str:
    """Where a class is defined, as "module:QualifiedName"."""
    return f"{config_class.__module__}:{config_class.__qualname__}"


def format_value(value: Any) -> str:
    """A field's value as one line of text, the way it is shown to users."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, type):
        return class_path(value)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        items = ", ".join(map(format_value, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    return repr(value)


def shown_fields(config: Any) -> list[str]:
    """Names of the fields, without `_target` where the class decides it."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    if "_target" in defaults and config._target is defaults["_target"]:
        del defaults["_target"]
    return list(defaults)


def _tree_lines(label: str, value: Any) -> list[str]:
    if is_config(value):
        children = [(name, getattr(value, name)) for name in shown_fields(value)]
    elif isinstance(value, tuple) and any(map(is_config, value)):
        children = [(f"[{index}]", item) for index, item in enumerate(value)]
    else:
        return [f"{label}: {format_value(value)}"]
    lines = [f"{label}:"]
    for name, child in children:
        if is_config(child):
            name = f"{name}: {type(child).__name__}"
        lines += ["    " + line for line in _tree_lines(name, child)]
    return lines


def _patch(config: Any, changes: Mapping[str, Any], path: str) -> Any:
    types = config_values.field_types(type(config))
    updates = {}
    for name, value in changes.items():
        if name not in types:
            hint = config_values.did_you_mean(name, types)
            raise KeyError(
                f"Unknown field at {path}: {type(config).__name__}.{name}{hint}"
            )
        where, current = f"{path}.{name}", getattr(config, name)
        if isinstance(value, Mapping):
            if not is_config(current):
                raise TypeError(
                    f"Cannot apply a nested dict patch at {where}: it holds "
                    f"{current!r}, not a config; give a whole value instead."
                )
            updates[name] = _patch(current, value, where)
            continue
        check_value(value, types[name], where)
        updates[name] = config_values.normalise(value, types[name])
    try:
        return dataclasses.replace(config, **updates)
    except (TypeError, ValueError) as error:
        error.add_note(f"in {path}")
        raise


def check_value(value: Any, annotation: Any, path: str) -> None:
    """Checks one value against the type of its field.

    Raises:
        TypeError: It has another type; names path, requirement and value.
    """
    if config_values.matches(value, annotation):
        return
    kind = type(value)
    # A config's repr is a page; its class says what is wrong.
    got = f"a {kind.__name__}" if is_config(value) else f"{value!r} ({kind.__name__})"
    wanted = config_values.describe(annotation)
    # Of the right type: what is wrong is its size, unless the type says so itself.
    if kind in (int, float) and config_values.matches(kind(0), annotation):
        range_ = config_values.out_of_range(value, kind)
        wanted += "" if " from " in wanted else f" {range_}".rstrip()
    raise TypeError(f"{path} must be {wanted}, got {got}.")


def _check_fields(config: Any, path: str) -> None:
    for name, annotation in config_values.field_types(type(config)).items():
        check_value(getattr(config, name), annotation, f"{path}.{name}")
    for name, nested in nested_configs(config):
        _check_fields(nested, f"{path}.{name}")


def paths_of(tree: Any, wanted: Any) -> list[str]:
    """Where a config stands in another one, fields joined by dots."""
    found = []
    for name, part in nested_configs(tree):
        found += [name] if part is wanted else []
        found += [f"{name}.{path}" for path in paths_of(part, wanted)]
    return found
