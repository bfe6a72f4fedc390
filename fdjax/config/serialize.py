"""Configs as JSON and back, and their hash.

A saved config names classes. Which names it may use is decided by the caller, with a
value: `KnownClasses`. Its table of short names keeps files readable when a module
moves; whatever else a file names must belong to one of its packages.
"""

import dataclasses
import enum
import hashlib
import importlib
import json
import math
import pathlib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from fdjax.config import base, strict_json
from fdjax.config import values as config_values

_MAX_TEXT = 120  # letters of a value in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownClasses:
    """The classes that a saved config may name.

    Attributes:
        names: Configs, enums and components by the short names that files use.
        packages: Top-level packages; other classes of theirs are "module:Class".
    """

    names: Mapping[str, type] = dataclasses.field(default_factory=dict)
    packages: frozenset[str] = frozenset()

    def name_of(self, kind: type) -> str:
        """The short name of a class, or "module:Class" if it is not in the table."""
        name = kind.__qualname__
        return name if self.names.get(name) is kind else base.class_path(kind)

    def find(self, name: Any) -> type:
        """The class that `name_of` gave this name.

        Raises:
            ValueError: There is none, or its package is not allowed.
        """
        if not isinstance(name, str):
            raise ValueError(f"a class is named by a text, got {name!r:.{_MAX_TEXT}}")
        module, colon, qualified_name = name.partition(":")
        if not colon:
            if name not in self.names:
                hint = config_values.did_you_mean(name, self.names)
                raise ValueError(
                    f"no method that is installed uses a class {name!r}{hint}"
                )
            return self.names[name]
        package = module.partition(".")[0]
        if package not in self.packages:
            raise ValueError(
                f"class {name!r} is in no package that registers methods; those are "
                f"{sorted(self.packages)}"
            )
        known = self.names.get(qualified_name)
        if known is not None and known.__module__.partition(".")[0] == package:
            return known  # wherever it is by now
        try:
            found: Any = importlib.import_module(module)
            for part in qualified_name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"class {name!r} does not exist: {error}") from None
        if not isinstance(found, type):
            raise ValueError(f"{name!r} is not a class")
        return found


def class_names(configs: Iterable[Any]) -> dict[str, type]:
    """A table for `KnownClasses` of all that configs, or their classes, are made of.

    These are the classes of the configs, of those nested in them and of those that
    their fields are typed with, the bases of all these, their enums and components. A
    name that two classes share is left out.
    """
    found: dict[type, None] = {}
    for config in configs:
        _collect(config, found)
    table: dict[str, type] = {}
    clashes = set()
    for kind in found:
        if table.setdefault(kind.__qualname__, kind) is not kind:
            clashes.add(kind.__qualname__)
    return {name: kind for name, kind in table.items() if name not in clashes}


def to_json(
    config: Any, *, classes: KnownClasses | None = None, indent: int | None = 2
) -> str:
    """The config as JSON, from which `from_json` makes an equal one.

    Args:
        config: The config.
        classes: Those that `from_json` will be given. None: every class is named by
            its own name alone, for a record that is compared and not read back.
        indent: Spaces per level.

    Raises:
        TypeError: A field holds something else than numbers, texts, paths, enums,
            classes of components, None, configs, and tuples of these.
    """
    name_of = classes.name_of if classes is not None else _bare_name
    return json.dumps(_encode(config, Any, _root(config), name_of), indent=indent)


def from_json(text: str, *, classes: KnownClasses) -> Any:
    """The config that `to_json` wrote. Fields that it lacks get their defaults.

    Nothing in the text is executed, and a module is imported only if it belongs to one
    of the packages that `classes` allows.

    Raises:
        ValueError: It is no JSON, is nested too deeply, or names a class that is not
            allowed.
        KeyError: It names a field that does not exist.
        TypeError: A value has the wrong type.
    """
    try:
        tree = strict_json.parse(text)
    except ValueError as error:
        raise ValueError(f"A config must be JSON, but {error}.") from None
    if not (isinstance(tree, dict) and "_class" in tree):
        raise ValueError('A config must be a JSON object with the key "_class".')
    config = _Decoder(classes).decode(tree, "config")
    base.check_config(config)
    return config


def config_hash(config: Any) -> str:
    """SHA-256 of the canonical JSON; equal configs give it in every process.

    Classes count by package and name: it survives a module that moves.
    """
    tree = _encode(config, Any, _root(config), _package_and_name)
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _root(config: Any) -> str:
    return type(config).__name__


def _bare_name(kind: type) -> str:
    return kind.__qualname__


def _package_and_name(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}:{kind.__qualname__}"


def _collect(value: Any, found: dict[type, None]) -> None:
    """Adds what a value of a config tree is made of."""
    if base.is_config(value):
        _collect_class(type(value), found)
        for field in dataclasses.fields(value):
            _collect(getattr(value, field.name), found)
    elif isinstance(value, tuple):
        for item in value:
            _collect(item, found)
    elif isinstance(value, enum.Enum):
        found[type(value)] = None
    elif isinstance(value, type):
        _collect_class(value, found)


def _collect_class(kind: Any, found: dict[type, None]) -> None:
    """Adds a class that a config may hold, its bases and the types of its fields."""
    if kind in found:
        return
    if issubclass(kind, enum.Enum | base.Component):
        found[kind] = None
    elif base.is_config_class(kind):
        found[kind] = None
        for parent in kind.__bases__:
            _collect_class(parent, found)
        for field in dataclasses.fields(kind):
            if isinstance(field.default, type):
                _collect_class(field.default, found)
        for annotation in config_values.field_types(kind).values():
            for part in _classes_in(annotation):
                _collect_class(part, found)


def _classes_in(annotation: Any) -> Iterator[type]:
    """Classes that a type is made of: A and B for `tuple[A | B, ...] | None`."""
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        yield annotation
    for part in typing.get_args(annotation):
        yield from _classes_in(part)


def _encode(
    value: Any, annotation: Any, path: str, name_of: Callable[[type], str]
) -> Any:
    """A value as JSON has it; what JSON lacks is a dict with one underscored key."""
    value = config_values.normalise(value, annotation)
    if base.is_config(value):
        types = config_values.field_types(type(value))
        tree = {"_class": name_of(type(value))}
        for name in base.shown_fields(value):
            field = getattr(value, name)
            tree[name] = _encode(field, types[name], f"{path}.{name}", name_of)
        return tree
    if isinstance(value, enum.Enum):
        return {"_enum": f"{name_of(type(value))}.{value.name}"}
    if isinstance(value, float) and not math.isfinite(value):
        return {"_float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is tuple:
        parts = config_values.item_types(value, annotation)
        return [
            _encode(item, part, f"{path}[{index}]", name_of)
            for index, (item, part) in enumerate(zip(value, parts, strict=True))
        ]
    if isinstance(value, pathlib.PurePath):
        return {"_path": str(value)}
    if isinstance(value, type) and issubclass(value, base.Component):
        return {"_type": name_of(value)}
    raise TypeError(
        f"{path} holds {value!r} ({type(value).__name__}), which has no JSON form; a "
        "config holds numbers, texts, paths, enums, None, configs and tuples, and "
        "names a dtype by its text."
    )


@dataclasses.dataclass(frozen=True)
class _Decoder:
    """Reads what `_encode` wrote."""

    classes: KnownClasses

    def decode(self, tree: Any, path: str) -> Any:
        if isinstance(tree, list):
            items = enumerate(tree)
            return tuple(self.decode(item, f"{path}[{index}]") for index, item in items)
        if not isinstance(tree, dict):
            return tree
        if "_class" in tree:
            return self._config(tree, path)
        kinds: dict[str, Callable[[Any], Any]] = {
            "_enum": self._enum,
            "_float": float,
            "_path": pathlib.Path,
            "_type": self._component,
        }
        if len(tree) != 1 or next(iter(tree)) not in kinds:
            raise ValueError(
                f"{path} must be a config or one of {sorted(kinds)}, got "
                f"{str(tree)[:_MAX_TEXT]}."
            )
        [(kind, text)] = tree.items()
        if not isinstance(text, str):
            raise ValueError(
                f"{path}: {kind} must be a text, got {text!r:.{_MAX_TEXT}}"
            )
        try:
            return kinds[kind](text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {kind} {error}") from None

    def _config(self, tree: Mapping[str, Any], path: str) -> Any:
        try:
            config_class: Any = self.classes.find(tree["_class"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if not base.is_config_class(config_class):
            raise ValueError(f"{path}: {tree['_class']!r} is not the class of a config")
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
            values[name] = self.decode(item, f"{path}.{name}")
            base.check_value(values[name], types[name], f"{path}.{name}")
        try:
            return config_class(**values)
        except (TypeError, ValueError) as error:
            error.add_note(f"in {path}")
            raise

    def _component(self, name: str) -> type:
        found = self.classes.find(name)
        if not issubclass(found, base.Component):
            raise ValueError(f"{name!r} is not the class of a component")
        return found

    def _enum(self, name: str) -> enum.Enum:
        kind, _, member = name.rpartition(".")
        found = self.classes.find(kind)
        if not (issubclass(found, enum.Enum) and member in found.__members__):
            raise ValueError(f"{name!r} is not a member of an enum")
        return found[member]
