"""Documentation of config fields: the text literals that follow them in the source."""

import ast
import functools
import inspect
from typing import Any

from fdjax.config import base as base_lib


@functools.cache
def field_docs(config_class: Any) -> dict[str, str]:
    """The text under each field of a config class, inherited fields included.

    Fields without a text, and classes without source, are left out.
    """
    docs: dict[str, str] = {}
    bases: tuple[type, ...] = config_class.__mro__
    for base in reversed(bases):
        if base_lib.is_config_class(base):
            docs |= _own_field_docs(base)
    return docs


def summary(config_class: type) -> str:
    """First line of a class's docstring; "" for the one that dataclasses make up."""
    doc = inspect.getdoc(config_class) or ""
    made_up = doc.startswith(f"{config_class.__name__}(")
    return "" if made_up else doc.partition("\n")[0]


def _own_field_docs(config_class: type) -> dict[str, str]:
    node = _class_node(config_class)
    if node is None:
        return {}
    docs = {}
    for field, text in zip(node.body, node.body[1:], strict=False):
        if not (
            isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        ):
            continue
        if (
            isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            docs[field.target.id] = inspect.cleandoc(text.value.value)
    return docs


def _class_node(config_class: type) -> ast.ClassDef | None:
    """Where the source defines a class, found by its qualified name."""
    try:
        body = _module_tree(inspect.getsourcefile(config_class)).body
    except (OSError, TypeError, SyntaxError):
        return None
    found = None
    for name in config_class.__qualname__.replace(".<locals>", "").split("."):
        found = next(
            (
                node
                for node in ast.walk(ast.Module(body=body, type_ignores=[]))
                if isinstance(node, ast.ClassDef | ast.FunctionDef)
                and node.name == name
            ),
            None,
        )
        if found is None:
            return None
        body = found.body
    return found if isinstance(found, ast.ClassDef) else None


@functools.cache
def _module_tree(path: str | None) -> ast.Module:
    if path is None:
        raise OSError("a class without a source file")
    with open(path, encoding="utf-8") as file:
        return ast.parse(file.read())
