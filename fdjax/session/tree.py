"""The structure of a cache as JSON, and the cache again from it and its arrays.

Nothing of a file is ever executed: a class that it names must be one that the running
process has loaded already, by setting up the pipeline, and be a `flax.struct.dataclass`
or a named tuple.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fdjax.axes import Array, PyTree
from fdjax.checkpoint import files

_PLAIN = (type(None), bool, int, float, str)
# Far deeper than any cache, and short of the interpreter's limit on recursion.
_MAX_DEPTH = 64


def describe(tree: PyTree, name: str = "cache") -> tuple[Any, dict[str, Array]]:
    """A tree's structure as JSON, and its arrays by name; keys as their data.

    Args:
        tree: Arrays, plain numbers and texts in containers.
        name: What the tree is called; the names of its arrays begin with it.

    Raises:
        ValueError: It holds something else than arrays in containers of known kinds.
    """
    arrays: dict[str, Array] = {}
    return _describe(tree, name, arrays), arrays


def build(structure: Any, arrays: Mapping[str, Array]) -> PyTree:
    """The tree that `describe` took apart.

    Raises:
        ValueError: The structure is damaged, or of a class that is not loaded.
    """
    try:
        return _build(structure, arrays, 0)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        reason = files.shorten(repr(error))
        raise ValueError(f"its structure is damaged: {reason}") from None


def _describe(node: Any, path: str, arrays: dict[str, Array]) -> Any:
    def inside(items: Any) -> dict[str, Any]:
        return {name: _describe(v, f"{path}.{name}", arrays) for name, v in items}

    if node is None:
        return None
    if hasattr(node, "shape") and hasattr(node, "dtype"):
        if jnp.issubdtype(node.dtype, jax.dtypes.prng_key):
            # A typed key is its words, and the generator that they are for.
            arrays[path] = jax.random.key_data(node)
            return {"key": path, "impl": str(jax.random.key_impl(node))}
        if getattr(node, "weak_type", False) and not node.shape:
            return {"plain": _plain(node.item(), path)}  # as weak as a plain number
        arrays[path] = node
        return {"array": path}
    kind = type(node)
    if kind in _PLAIN:
        return {"plain": _plain(node, path)}
    if kind in (tuple, list):
        items = [_describe(v, f"{path}.{n}", arrays) for n, v in enumerate(node)]
        return {kind.__name__: items}
    if kind is dict and all(isinstance(name, str) for name in node):
        return {"dict": inside(node.items())}
    if _is_struct(kind):
        fields = dataclasses.fields(node)
        static = [f.name for f in fields if not f.metadata.get("pytree_node", True)]
        parts = [f.name for f in fields if f.name not in static]
        return {
            "class": _name(kind),
            "parts": inside((name, getattr(node, name)) for name in parts),
            "static": {
                name: _plain(getattr(node, name), f"{path}.{name}") for name in static
            },
        }
    if _is_named_tuple(kind):
        named = zip(node._fields, node, strict=True)
        return {"class": _name(kind), "parts": inside(named), "static": {}}
    raise ValueError(
        f"{path} is a {kind.__name__}: what can be saved holds arrays in "
        "flax.struct dataclasses, named tuples, tuples, lists and dicts."
    )


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, path) for item in value]}
    if type(value) not in _PLAIN or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(
            f"{path}, a static field, is {value!r}: what can be saved has only "
            "numbers, texts and tuples of them there."
        )
    return value


def _unplain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(map(_unplain, value["tuple"]))
    return _checked_plain(value)


def _checked_plain(value: Any) -> Any:
    if type(value) not in _PLAIN:
        raise TypeError(f"{type(value).__name__} in place of a number or a text")
    return value


def _build(node: Any, arrays: Mapping[str, Array], depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError("its structure is nested too deeply")
    if node is None:
        return None

    def part(child: Any) -> Any:
        return _build(child, arrays, depth + 1)

    if "key" in node:
        data = arrays[node["key"]]
        return jax.random.wrap_key_data(data, impl=node["impl"])
    if "array" in node:
        return arrays[node["array"]]
    if "plain" in node:
        return _checked_plain(node["plain"])
    containers: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "list": list}
    for name, make in containers.items():
        if name in node:
            return make(map(part, node[name]))
    if "dict" in node:
        return {name: part(child) for name, child in node["dict"].items()}
    kind: Any = _find(node["class"])
    parts = {name: part(child) for name, child in node["parts"].items()}
    static = {name: _unplain(value) for name, value in node["static"].items()}
    return kind(**parts, **static)


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _find(name: str) -> type:
    module, _, path = name.partition(":")
    # A file imports nothing: it can name only what is loaded.
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        # Not by `getattr`, which would run what a module does for names it lacks.
        found = getattr(found, "__dict__", {}).get(part)
    if not (isinstance(found, type) and (_is_struct(found) or _is_named_tuple(found))):
        raise ValueError(
            f"it needs the class {name}, which is not loaded or no part of a cache; "
            "set up the pipeline that the session is of"
        )
    return found


def _is_struct(kind: type) -> bool:
    # The mark that `flax.struct.dataclass` leaves on its classes.
    return dataclasses.is_dataclass(kind) and hasattr(kind, "_flax_dataclass")


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")
