"""Presets: a picture, a prompt, controls and settings, to be shared as one thing.

A preset is a folder with a `preset.json`, or such a file of any name: an object of
fields of the method's config, nested or dotted, and the method's slug.

    {"method": "maze-world", "prompt": "red brick maze at dusk",
     "controls": "walk.json", "pipeline.diffusion_model.seed": 7}

Its files lie beside it. It says what is made, not where, and reads nothing outside.
"""

import json
import os
import pathlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from fdjax.checkpoint import files
from fdjax.config import derive_config, is_config
from fdjax.config.values import did_you_mean, field_types
from fdjax.run.runner import RunnerConfig

NAME = "preset.json"
"""The file of a preset that is a folder."""

_FILES = {"prompt": (".txt",), "controls": (".txt", ".json", ".npy")}
"""Fields that hold a text, and a path only if it ends so; others hold paths."""

_NOT_ITS_OWN = ("output_dir", "overwrite", "resume", "save_session", "runner_name")
_REMOTE = ("hf://", "https://", "http://", "package://")
_LARGEST = 2**20  # bytes


def read_preset(
    path: str | pathlib.Path,
    configs: Mapping[str, RunnerConfig],
    *,
    method: str | None = None,
) -> RunnerConfig:
    """The config of a run that a preset describes.

    Args:
        path: A folder that holds a `preset.json`, or the file itself.
        configs: Methods by slug, such as `fdjax.runner_configs()`.
        method: In place of the one that the preset names.

    Raises:
        FileNotFoundError: There is no preset, or it names a file that it lacks.
        ValueError: It is malformed, names what there is not, or leaves its folder; the
            message begins with its path.
    """
    file = pathlib.Path(path).expanduser()
    # os.path, as Path raises for a name that is too long.
    file = file / NAME if os.path.isdir(file) else file
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"there is no preset {files.shorten(file)}; a preset is a folder with a "
            f"{NAME}, or such a file."
        )
    try:
        given = _parse(file)
        slug = given.pop("method", None)
        config = _method(method if method is not None else slug, configs)
        changes = dict(_changes(given, config, file.parent))
        return derive_config(config, **_nested(changes))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"preset {file}: {error}") from None
    except (ValueError, TypeError, KeyError) as error:
        message = error.args[0] if error.args else error
        raise ValueError(f"preset {file}: {message}") from None


def _parse(file: pathlib.Path) -> dict[str, Any]:
    if file.stat().st_size > _LARGEST:
        raise ValueError(f"must be of at most {_LARGEST} bytes; is it another file?")
    try:
        given = json.loads(
            file.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_doubles
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8: {error}.") from None
    except RecursionError:
        raise ValueError("must be JSON of few levels.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"must be JSON: {error}.") from None
    if not isinstance(given, dict):
        raise ValueError(f"must be an object of fields, got {given!r:.60}.")
    return given


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has {double!r} twice.")
    return given


def _method(slug: Any, configs: Mapping[str, RunnerConfig]) -> RunnerConfig:
    if slug is None:
        raise ValueError('names no method; add "method", or give METHOD.')
    if not isinstance(slug, str):
        raise ValueError(f"method must be text, got {slug!r:.60}.")
    if slug not in configs:
        raise ValueError(f"unknown method {slug!r}{did_you_mean(slug, configs)}")
    return configs[slug]


def _changes(
    given: Mapping[str, Any], config: Any, folder: pathlib.Path, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every field that is given, paths made the preset's."""
    for key, value in given.items():
        node, [*parents, name] = config, key.split(".")
        for parent in parents:
            node = getattr(node, parent, None) if is_config(node) else None
        types = field_types(type(node)) if is_config(node) else {}
        types.pop("_target", None)
        if name not in types:
            hint = did_you_mean(name, types)
            raise ValueError(f"unknown field {prefix + key!r}{hint}")
        if not prefix and key in _NOT_ITS_OWN:
            raise ValueError(
                f"{key} is for whoever runs a preset to say, as a flag; take it out."
            )
        if isinstance(value, dict) and is_config(getattr(node, name)):
            nested = getattr(node, name)
            yield from _changes(value, nested, folder, f"{prefix}{key}.")
        else:
            yield prefix + key, _value(value, name, types[name], folder)


def _value(value: Any, name: str, annotation: Any, folder: pathlib.Path) -> Any:
    """A field's value from JSON: events as text, lists as tuples, paths from here."""
    if name == "controls" and isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, list):
        return tuple(_value(item, name, annotation, folder) for item in value)
    takes_path = name.endswith("_path") or _holds_paths(annotation)
    if not takes_path or not isinstance(value, str):
        return value
    text = value.strip()
    is_text = name in _FILES and (
        not text.endswith(_FILES[name]) or text.startswith("[")
    )
    if not text or is_text or text.lower().startswith(_REMOTE):
        return value
    return str(_inside(folder, text, name))


def _holds_paths(annotation: Any) -> bool:
    """Whether a type is that of paths, or of a tuple of them."""
    parts = typing.get_args(annotation)
    return annotation is pathlib.Path or any(map(_holds_paths, parts))


def _inside(folder: pathlib.Path, text: str, name: str) -> pathlib.Path:
    """A file of the preset's; links are followed first.

    Raises:
        ValueError: It lies elsewhere.
        FileNotFoundError: There is no such file.
    """
    path = folder / text
    if "://" in text or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{name} must be a file in the preset's folder, named from there, or "
            f"one of {', '.join(_REMOTE)}; got {text!r:.80}."
        )
    if not os.path.exists(path):
        raise FileNotFoundError(f"{name} names {text!r:.80}, which is not in it.")
    return path


def _nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths as nested patches for `derive_config`."""
    patch: dict[str, Any] = {}
    for path, value in changes.items():
        *parents, name = path.split(".")
        node = patch
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path} is a part of what another field sets.")
        node[name] = value
    return patch
