"""Command-line flags of a config: one for every field, nested ones dotted."""

import dataclasses
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import flags

from fdjax import config as config_lib
from fdjax.config import docs as config_docs
from fdjax.config import is_config
from fdjax.config import values as config_values

_WIDTH = 88
_LONGEST_DEFAULT = 300  # letters shown of a default; prompts can be long


@dataclasses.dataclass(frozen=True)
class ConfigField:
    """One field of a nested config, as the command line knows it.

    Attributes:
        path: Dotted, e.g. `pipeline.diffusion_model.seed`.
        annotation: Its type.
        value: Its present value.
        doc: The text under it in the source.
        settable: Whether a text can stand for its values.
    """

    path: str
    annotation: Any
    value: Any
    doc: str
    settable: bool

    @property
    def is_config(self) -> bool:
        """Whether it holds a config: then only None can be given, where allowed."""
        return is_config(self.value)

    @property
    def is_bool(self) -> bool:
        """Whether `--flag` alone means true."""
        if self.annotation is Any:
            return isinstance(self.value, bool)
        return self.annotation in (bool, bool | None)

    def parse(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
            ValueError: It stands for none; the message says what is required.
        """
        if self.is_config:
            if text in ("None", "none"):
                return None
            raise ValueError(
                f"must be None, got {text!r}; its parts are set by --{self.path}.NAME"
            )
        return config_values.parse(text, self.annotation, self.value)


def config_fields(config: Any, prefix: str = "") -> Iterator[ConfigField]:
    """Every field of a config, depth first; the parts of a config follow it."""
    # Typed loosely: a class can be hashed, whatever its instances do.
    config_class: Any = type(config)
    types = config_values.field_types(config_class)
    docs = config_docs.field_docs(config_class)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, annotation in types.items():
        if name == "_target":
            continue
        value = getattr(config, name)
        if is_config(value):
            # `Any` allows None, but only a default of None says that it makes sense.
            optional = config_values.is_optional(annotation)
            settable = optional and (annotation is not Any or defaults[name] is None)
        else:
            settable = config_values.can_parse(annotation, value)
        path = prefix + name
        yield ConfigField(path, annotation, value, docs.get(name, ""), settable)
        if is_config(value):
            yield from config_fields(value, f"{path}.")


class UnknownFlagError(ValueError):
    """A flag that no field and no general flag has."""


class _FieldParser(flags.ArgumentParser):
    """Lets absl parse a flag by the type of its field."""

    def __init__(self, field: ConfigField):
        self._field = field
        self.syntactic_help = config_values.describe(field.annotation)

    def parse(self, argument: Any) -> Any:
        return self._field.parse(argument) if isinstance(argument, str) else argument


def define_flags(fields: Iterable[ConfigField], flag_values: flags.FlagValues) -> None:
    """Defines a flag for every field that can be set.

    Raises:
        ValueError: A field has the name of a general flag.
    """
    for field in fields:
        if not field.settable:
            continue
        if field.path in flag_values:
            raise ValueError(
                f"The config field {field.path!r} has the name of a flag of fdjax-run; "
                "rename the field."
            )
        flag = flags.Flag(
            _FieldParser(field),
            None,
            field.path,
            None,
            field.doc,
            boolean=field.is_bool,
        )
        flags.DEFINE_flag(flag, flag_values)


def normalise(arguments: Sequence[str], flag_values: flags.FlagValues) -> list[str]:
    """Arguments as absl wants them: `--name=value`, `--name` or `--noname`.

    Dashes and underscores in names are the same; `--no-name` is `--noname`; `--name
    true` is `--name=true`; values are left alone.

    Raises:
        ValueError: An unknown flag or an argument that is none, with the nearest
            names; or a flag without its value.
    """
    known = {name: flag_values[name].boolean for name in flag_values}
    result = []
    rest = iter(arguments)
    pushed_back: list[str] = []
    while (token := pushed_back.pop() if pushed_back else next(rest, None)) is not None:
        if token in ("-h", "-help"):
            token = "--help"
        if not token.startswith("--") or token == "--":
            raise ValueError(
                f"unexpected argument {token!r}; values follow a flag, e.g. "
                f"--prompt {token!r}"
            )
        name, equals, value = token[2:].partition("=")
        name = name.replace("-", "_")
        negated = name.removeprefix("no_" if name.startswith("no_") else "no")
        if name in known:
            if not equals and known[name]:
                value = next(rest, "")
                if value.lower() in ("true", "false", "none"):
                    equals = "="
                elif value:
                    pushed_back.append(value)
            elif not equals:
                following = next(rest, None)
                if following is None:
                    raise ValueError(f"flag --{name} needs a value")
                equals, value = "=", following
            result.append(f"--{name}{equals}{value if equals else ''}")
        elif name.startswith("no") and known.get(negated) and not equals:
            result.append(f"--no{negated}")
        else:
            raise UnknownFlagError(_unknown(name, list(known)))
    return result


def _unknown(name: str, known: list[str]) -> str:
    # A forgotten prefix is the most common mistake: --seed for --pipeline....seed.
    same_end = [path for path in known if path.rpartition(".")[2] == name]
    if same_end:
        return f"unknown flag --{name}; did you mean --{' or --'.join(same_end[:3])}?"
    return f"unknown flag --{name}{config_values.did_you_mean(name, known)}"


def overrides(
    fields: Iterable[ConfigField], flag_values: flags.FlagValues
) -> dict[str, Any]:
    """The flags that were given, as nested patches for `derive_config`.

    Raises:
        ValueError: A part of a config is set that another flag sets to None.
    """
    patch: dict[str, Any] = {}
    for field in fields:
        if not field.settable or not flag_values[field.path].present:
            continue
        *parents, name = field.path.split(".")
        node = patch
        for depth, parent in enumerate(parents):
            node = node.setdefault(parent, {})
            if node is None:
                raise ValueError(
                    f"flag --{field.path} sets a part of "
                    f"--{'.'.join(parents[: depth + 1])}, which another flag sets to "
                    "None; leave one of them out"
                )
        node[name] = flag_values[field.path].value
    return patch


def format_help(config: Any) -> str:
    """Every field as a flag, with its type, default and text, one section a config."""
    sections: dict[str, list[ConfigField]] = {"": []}
    configs: dict[str, Any] = {"": config}
    for field in config_fields(config):
        if field.is_config:
            configs[field.path] = field.value
        sections.setdefault(field.path.rpartition(".")[0], []).append(field)
    lines: list[str] = []
    for path, fields in sections.items():
        lines += _section_lines(path, configs[path])
        for field in fields:
            lines += _field_lines(field)
    return "\n".join(lines)


def _section_lines(path: str, config: Any) -> list[str]:
    title = f"{path or 'fields'} ({type(config).__name__})"
    summary = config_docs.summary(type(config))
    return ["", *textwrap.wrap(f"{title}: {summary}" if summary else title, _WIDTH)]


def _field_lines(field: ConfigField) -> list[str]:
    if field.is_config:
        what = "config, its parts below"
        what += "; or None" if field.settable else ""
    elif field.annotation is Any and field.value is None:
        what = "None; set another value in Python"
    elif field.settable:
        what = f"{config_values.describe(field.annotation)}; default "
        what += textwrap.shorten(
            config_lib.format_value(field.value), _LONGEST_DEFAULT, placeholder=" ..."
        )
    else:
        what = f"{config_values.describe(field.annotation)}; set it in Python"
    lines = textwrap.wrap(
        f"--{field.path}  ({what})",
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    doc = " ".join(field.doc.split())
    indent = " " * 6
    return lines + textwrap.wrap(
        doc, _WIDTH, initial_indent=indent, subsequent_indent=indent
    )
