"""What is written beside parameters, and whether it is what is wanted."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from fdjax.axes import PyTree
from fdjax.checkpoint.tensors import QUANTISED, is_float
from fdjax.config import strict_json, to_json
from fdjax.contract.component import ParametricComponent

_FORMAT = 1
_MAX_AXES = 64  # as many as numpy has
_IGNORED_FIELDS = (
    "checkpoint_path",
    "tokenizer_path",
    "dtype",
    "param_dtype",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """What is written beside parameters.

    Attributes:
        architecture: `ParametricComponent.architecture` of the component.
        config: The component's config as the tree of its JSON, without the names of
            classes, so that moving a module breaks no checkpoint; None if unknown.
        shapes: Sizes by path.
        dtypes: Element types by path.
        source: Where converted parameters come from: file, sha256, layout, wrapper.
        files: Length in bytes of every file of a directory.
    """

    architecture: str
    config: Any = None
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Number of elements."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def num_bytes(self) -> int:
        """Size of the values in bytes."""
        return sum(
            math.prod(shape) * jax.numpy.dtype(self.dtypes[path]).itemsize
            for path, shape in self.shapes.items()
        )

    @property
    def dtype(self) -> str:
        """The element type, or all of them, most frequent first."""
        names = list(self.dtypes.values())
        return ", ".join(sorted(set(names), key=names.count, reverse=True))

    def to_json(self) -> str:
        """The text of `fdjax.json`."""
        tree = dataclasses.asdict(self) | {
            "format": _FORMAT,
            "weights_hash": weights_hash(self),
            "dtype": self.dtype,
            "num_parameters": self.num_parameters,
            "fdjax": installed_version(),
        }
        return json.dumps(tree, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Metadata":
        """Reads what `to_json` wrote; raises ValueError if it is something else."""
        tree = strict_json.parse(text)
        if not isinstance(tree, dict) or tree.get("format") != _FORMAT:
            found = tree.get("format") if isinstance(tree, dict) else tree
            raise ValueError(f"its format must be {_FORMAT}, is {str(found)[:80]}")
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in tree]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        values = {name: tree[name] for name in names}
        for name in ("shapes", "dtypes", "source", "files"):
            if not isinstance(values[name], dict):
                raise ValueError(f"its {name} must be an object by name")
        if not isinstance(values["architecture"], str):
            raise ValueError("its architecture must be a text")
        values["shapes"] = _checked_shapes(values["shapes"])
        _check_dtypes(values["dtypes"], values["shapes"])
        if not all(_is_count(length) for length in values["files"].values()):
            raise ValueError("its files must be lengths in bytes by name")
        return cls(**values)


def _checked_shapes(shapes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    for path, shape in shapes.items():
        fits = isinstance(shape, list) and len(shape) <= _MAX_AXES
        if not fits or not all(map(_is_count, shape)):
            raise ValueError(
                f"the shape of {path[:80]} must be sizes, is {str(shape)[:80]}"
            )
    return {path: tuple(shape) for path, shape in shapes.items()}


def _check_dtypes(dtypes: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    if dtypes.keys() != shapes.keys():
        raise ValueError("its dtypes must name what its shapes name")
    for path, name in dtypes.items():
        try:
            known = isinstance(name, str) and str(jax.numpy.dtype(name)) == name
        except TypeError:
            known = False
        if not known or name in ("object", "str") or "[" in name:
            raise ValueError(f"{path[:80]} has the unknown dtype {str(name)[:80]}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def weights_hash(metadata: Metadata) -> str:
    """Identity of what parameters fit: sha256 of the architecture and all shapes."""
    content = [metadata.architecture, sorted(metadata.shapes.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def describe(
    params: PyTree,
    *,
    architecture: str = "",
    config: Any = None,
    source: Mapping[str, Any] | None = None,
) -> Metadata:
    """Metadata of a tree of arrays or of shapes."""
    flat = traverse_util.flatten_dict(params, sep="/")
    if config is not None and not isinstance(config, Mapping):
        config = _without_classes(json.loads(to_json(config)))
    return Metadata(
        architecture=architecture,
        config=config,
        shapes={path: tuple(leaf.shape) for path, leaf in flat.items()},
        dtypes={path: str(np.dtype(leaf.dtype)) for path, leaf in flat.items()},
        source=dict(source or {}),
    )


def _without_classes(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_without_classes(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    return {k: _without_classes(v) for k, v in tree.items() if k != "_class"}


def check_fit(
    path: pathlib.Path,
    metadata: Metadata,
    target_shapes: PyTree,
    component: ParametricComponent | None = None,
) -> None:
    """Checks that stored parameters are those that are wanted.

    Raises:
        ValueError: They are of another architecture or config; names both.
    """
    wanted = describe(
        target_shapes,
        architecture=component.architecture if component is not None else "",
        config=component.config if component is not None else None,
    )
    names = metadata.architecture, wanted.architecture
    if all(names) and names[0] != names[1]:
        raise ValueError(
            f"{path} holds parameters of {names[0]!r}, those of {names[1]!r} are "
            "wanted."
        )
    fields = component.weight_fields if component is not None else ()
    problems = _differences(metadata, wanted)
    changed = _changed_fields(metadata.config, wanted.config)
    problems += [
        f"config field {name}: {there!r} there, {here!r} here"
        for name, (there, here) in changed.items()
        if problems or name in fields
    ]
    if problems:
        shown = "".join(f"\n  - {problem}" for problem in problems[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(
            f"{path} holds {names[0] or 'parameters'} of another config (hash "
            f"{weights_hash(metadata)[:12]}, wanted {weights_hash(wanted)[:12]}):"
            f"{shown}{more}"
        )


def check_label(
    metadata: Metadata, params: PyTree, component: ParametricComponent, shapes: PyTree
) -> None:
    """Checks that parameters are those of the component by whose name they are saved.

    Args:
        metadata: Of the parameters.
        params: The parameters.
        component: The component.
        shapes: Its own: `param_shapes()`.

    Raises:
        ValueError: They are not; says which part of them is.
    """
    wanted = describe(shapes)
    problems = _differences(metadata, wanted)
    if not problems:
        return
    parts = [
        name
        for name, part in params.items()
        if isinstance(part, Mapping) and not _differences(describe(part), wanted)
    ]
    name = type(component).__name__
    cure = (
        f"give its part, params[{parts[0]!r}]"
        if parts
        else "give its own parameters, or save without component="
    )
    shown = "".join(f"\n  - {problem}" for problem in problems[:20])
    more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
    raise ValueError(
        f"params must be those of the {name} that component= names; {cure}:"
        f"{shown}{more}"
    )


def _differences(there: Metadata, here: Metadata) -> list[str]:
    """Paths that are missing, left over, or of another shape."""
    problems = []
    for name, shape in here.shapes.items():
        if name not in there.shapes:
            problems.append(f"{name} is missing")
        elif there.shapes[name] != shape:
            found = list(there.shapes[name])
            problems.append(f"{name} is {found} there, {list(shape)} here")
        elif is_float(here.dtypes[name]) and not is_float(there.dtypes[name]):
            problems.append(f"{name} holds {there.dtypes[name]}, {QUANTISED}")
    left = [name for name in there.shapes if name not in here.shapes]
    return problems + [f"{name} is there, but not wanted" for name in left]


def _changed_fields(there: Any, here: Any, prefix: str = "") -> dict[str, tuple]:
    """Config fields that differ: {path: (there, here)}."""
    if not (isinstance(there, Mapping) and isinstance(here, Mapping)):
        return {} if there == here or None in (there, here) else {prefix: (there, here)}
    changed: dict[str, tuple] = {}
    for name in here:
        if name in there and name not in _IGNORED_FIELDS:
            path = f"{prefix}.{name}" if prefix else name
            changed |= _changed_fields(there[name], here[name], path)
    return changed


def installed_version() -> str:
    """Version of fdjax, or words for a clone that is not installed."""
    try:
        return importlib.metadata.version("fdjax")
    except importlib.metadata.PackageNotFoundError:
        return "a clone that is not installed"
