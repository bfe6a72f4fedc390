"""Configs: frozen dataclasses whose `setup()` builds the component they describe.

A config prints as a tree, compares and hashes by value, makes variants of itself
(`derive_config`), and goes to JSON and back (`to_json`, `from_json`).
"""

import dataclasses
import enum
import hashlib
import importlib
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp

from fdjax.config import values as config_values

ConfigType = TypeVar("ConfigType", bound="InstantiateConfig")


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
class InstantiateConfig:
    """Base of every config: keyword-only, frozen, hashable.

    A subclass sets `_target` to the component class it configures.
    """

    _target: type = Component
    """Class that `setup()` instantiates with this config as its only argument."""

    def setup(self) -> Any:
        """Builds the component that this config describes."""
        return self._target(self)

    def to_text(self) -> str:
        """The config as an indented tree, one field a line."""
        return "\n".join(_tree_lines(type(self).__name__, self))

    def __str__(self) -> str:
        return self.to_text()


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


def check_config(config: InstantiateConfig) -> None:
    """Checks that every field, nested ones too, has the type that it declares.

    Raises:
        TypeError: With the path, the requirement and the value.
    """
    _check_fields(config, type(config).__name__)


def config_hash(config: InstantiateConfig) -> str:
    """SHA-256 of the canonical JSON; equal configs give it in every process."""
    tree = _encode(config, Any, type(config).__name__)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def to_json(config: InstantiateConfig, *, indent: int | None = 2) -> str:
    """The config as JSON, from which `from_json` makes an equal one.

    Raises:
        TypeError: A field holds something else than numbers, texts, paths, dtypes,
            enums, classes of components, None, configs, and tuples of these.
    """
    return json.dumps(_encode(config, Any, type(config).__name__), indent=indent)


def from_json(text: str) -> Any:
    """The config that `to_json` wrote. Fields that it lacks get their defaults.

    Nothing in the text is executed. Classes are looked up among the config classes
    that are loaded; a module is imported only if it belongs to fdjax or to a package
    that registers methods, and only its `InstantiateConfig` classes are used.

    Raises:
        ValueError: It is no JSON, or names a class that is not allowed.
        KeyError: It names a field that does not exist.
        TypeError: A value has the wrong type.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"A config must be JSON, but {error}.") from None
    if not (isinstance(tree, dict) and "_class" in tree):
        raise ValueError('A config must be a JSON object with the key "_class".')
    config = _decode(tree, "config")
    check_config(config)
    return config


def class_path(config_class: type) -> str:
    """Where a class is defined, as "module:QualifiedName"."""
    return f"{config_class.__module__}:{config_class.__qualname__}"


def format_value(value: Any) -> str:
    """A field's value as one line of text, the way it is shown to users."""
    if config_values.is_dtype(value):
        return jnp.dtype(value).name
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


def shown_fields(config: InstantiateConfig) -> list[str]:
    """Names of the fields, without `_target` where the class decides it."""
    names = [field.name for field in dataclasses.fields(config)]
    if config._target is _default_target(type(config)):
        names.remove("_target")
    return names


def _default_target(config_class: type[InstantiateConfig]) -> Any:
    return config_class.__dataclass_fields__["_target"].default


def _tree_lines(label: str, value: Any) -> list[str]:
    if isinstance(value, InstantiateConfig):
        children = [(name, getattr(value, name)) for name in shown_fields(value)]
    elif isinstance(value, tuple) and any(
        isinstance(item, InstantiateConfig) for item in value
    ):
        children = [(f"[{index}]", item) for index, item in enumerate(value)]
    else:
        return [f"{label}: {format_value(value)}"]
    lines = [f"{label}:"]
    for name, child in children:
        if isinstance(child, InstantiateConfig):
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
            if not isinstance(current, InstantiateConfig):
                raise TypeError(
                    f"Cannot apply a nested dict patch at {where}: it holds "
                    f"{current!r}, not a config; give a whole value instead."
                )
            updates[name] = _patch(current, value, where)
            continue
        _check_value(value, types[name], where)
        updates[name] = config_values.normalise(value, types[name])
    try:
        return dataclasses.replace(config, **updates)
    except (TypeError, ValueError) as error:
        error.add_note(f"in {path}")
        raise


def _check_value(value: Any, annotation: Any, path: str) -> None:
    if not config_values.matches(value, annotation):
        raise TypeError(
            f"{path} must be {config_values.describe(annotation)}, "
            f"got {value!r} ({type(value).__name__})."
        )


def _check_fields(config: InstantiateConfig, path: str) -> None:
    for name, annotation in config_values.field_types(type(config)).items():
        value = getattr(config, name)
        _check_value(value, annotation, f"{path}.{name}")
        for index, item in enumerate(value if isinstance(value, tuple) else (value,)):
            if isinstance(item, InstantiateConfig):
                suffix = f"[{index}]" if isinstance(value, tuple) else ""
                _check_fields(item, f"{path}.{name}{suffix}")


def _encode(value: Any, annotation: Any, path: str) -> Any:
    """A value as JSON has it; what JSON lacks is a dict with one underscored key."""
    value = config_values.normalise(value, annotation)
    if isinstance(value, InstantiateConfig):
        types = config_values.field_types(type(value))
        tree = {"_class": class_path(type(value))}
        for name in shown_fields(value):
            tree[name] = _encode(getattr(value, name), types[name], f"{path}.{name}")
        return tree
    if isinstance(value, enum.Enum):
        return {"_enum": f"{class_path(type(value))}.{value.name}"}
    if config_values.is_dtype(value):
        return {"_dtype": jnp.dtype(value).name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"_float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is tuple:
        parts = config_values.item_types(value, annotation)
        return [
            _encode(item, part, f"{path}[{index}]")
            for index, (item, part) in enumerate(zip(value, parts, strict=True))
        ]
    if isinstance(value, pathlib.PurePath):
        return {"_path": str(value)}
    if isinstance(value, type) and issubclass(value, Component):
        return {"_type": class_path(value)}
    raise TypeError(
        f"{path} holds {value!r} ({type(value).__name__}), which has no JSON form; a "
        "config holds numbers, texts, paths, dtypes, enums, None, configs and tuples."
    )


def _decode(tree: Any, path: str) -> Any:
    if isinstance(tree, list):
        return tuple(
            _decode(item, f"{path}[{index}]") for index, item in enumerate(tree)
        )
    if not isinstance(tree, dict):
        return tree
    if "_class" in tree:
        return _decode_config(tree, path)
    kinds: dict[str, Callable[[str], Any]] = {
        "_dtype": lambda name: config_values.parse(name, jnp.dtype),
        "_enum": _find_enum,
        "_float": float,
        "_path": pathlib.Path,
        "_type": lambda name: _find_class(name, Component),
    }
    if len(tree) != 1 or next(iter(tree)) not in kinds:
        raise ValueError(f"{path} must be a config or one of {set(kinds)}, got {tree}.")
    [(kind, text)] = tree.items()
    try:
        return kinds[kind](text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {kind} {error}") from None


def _decode_config(tree: Mapping[str, Any], path: str) -> Any:
    try:
        config_class = _find_class(tree["_class"], InstantiateConfig)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    types = config_values.field_types(config_class)
    values = {}
    for name, item in tree.items():
        if name == "_class":
            continue
        if name not in types:
            hint = config_values.did_you_mean(name, types)
            raise KeyError(
                f"Unknown field at {path}: {config_class.__name__}.{name}{hint}"
            )
        values[name] = _decode(item, f"{path}.{name}")
        _check_value(values[name], types[name], f"{path}.{name}")
    try:
        return config_class(**values)
    except (TypeError, ValueError) as error:
        error.add_note(f"in {path}")
        raise


def _find_class(name: str, base: type) -> Any:
    """The subclass of `base` that `class_path` gave this name."""
    if not isinstance(name, str):
        raise ValueError(f"a class is named by a text, got {name!r}")
    for known in reversed(_subclasses(base)):
        if class_path(known) == name:
            return known
    module, _, qualified_name = name.partition(":")
    from fdjax.run import registry  # builds on this module

    if module.partition(".")[0] not in registry.method_packages():
        raise ValueError(
            f"class {name!r} is not loaded, and {module!r} is in no package that "
            f"registers methods; import it first."
        )
    try:
        found: Any = importlib.import_module(module)
        for part in qualified_name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"class {name!r} does not exist: {error}") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{name!r} is not a subclass of {base.__name__}")
    return found


def _find_enum(name: str) -> enum.Enum:
    """A member of an enum that some loaded module defines."""
    module, _, qualified_name = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, enum.Enum):
        raise ValueError(f"{name!r} is not a member of a loaded enum")
    return found


def _subclasses(base: Any) -> list[Any]:
    below = (_subclasses(subclass) for subclass in base.__subclasses__())
    return [base, *itertools.chain.from_iterable(below)]
