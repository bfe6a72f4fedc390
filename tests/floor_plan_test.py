"""The floor plan: which folder may import which, and no circles.

Every import counts, inside functions and under TYPE_CHECKING too. What an `__init__`
re-exports does not: a name that is imported from a package counts as imported from the
module that defines it.
"""

import ast
import functools
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = {
    "fdjax": ROOT / "fdjax",
    "fdjax_models": ROOT / "models/fdjax_models",
    "fdjax_convert": ROOT / "convert/fdjax_convert",
}
FLOORS = (
    {"axes"},
    {"sharding"},
    {"config"},
    {"contract"},
    {"attention", "nn", "schedulers"},
    {"streaming"},
    {"checkpoint", "quantize", "lora"},
    {"engine"},
    {"session"},
    {"run"},
    {"serve"},
    {"testing"},
)
"""The runtime's folders from the ground; each imports from the floors below it."""

FOLDERS = {
    f"fdjax.{folder}": {f"fdjax.{below}" for floor in FLOORS[:level] for below in floor}
    for level, floor in enumerate(FLOORS)
    for folder in floor
}
FOLDERS["fdjax_models.networks"] = FOLDERS["fdjax.session"]  # no front end
FOLDERS["fdjax_models.methods"] = FOLDERS["fdjax.testing"] | {"fdjax_models.networks"}
FOLDERS["fdjax_convert"] = FOLDERS["fdjax_models.methods"] | {"fdjax_models.methods"}


@functools.cache
def trees():
    """The syntax tree of every module by its dotted name; a package by its own."""
    found = {}
    for package, source in SOURCES.items():
        for path in sorted(source.rglob("*.py")):
            parts = path.relative_to(source).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = ast.parse(path.read_text())
    return found


@functools.cache
def packages():
    return {name.rpartition(".")[0] for name in trees()} | set(SOURCES)


def definers(package, name):
    """Modules that a name of a package stands for: itself, or where it comes from."""
    if f"{package}.{name}" in trees():
        return {f"{package}.{name}"}
    if package not in packages():
        return {package}
    for node in ast.walk(trees()[package]):
        if isinstance(node, ast.ImportFrom) and node.module in trees():
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return definers(node.module, alias.name)
    return {package}


def imports(module):
    """Modules of ours that a module imports, with what it uses of packages."""
    tree, found, names = trees()[module], set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in trees():
                    found.add(alias.name)
                    if alias.asname or "." not in alias.name:
                        names[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module in trees():
            for alias in node.names:
                for target in definers(node.module, alias.name):
                    found.add(target)
                    names[alias.asname or alias.name] = target
    # `config.derive_config` uses the module that the package `config` has it from.
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            package = names.get(node.value.id)
            if package in packages():
                found |= definers(package, node.attr)
    return found - {module}


@functools.cache
def graph():
    """Imports of every module that is no package."""
    modules = sorted(set(trees()) - packages())
    return {module: imports(module) for module in modules}


def folder(module):
    """The folder of the plan in which a module lies."""
    near = [name for name in FOLDERS if f"{module}.".startswith(f"{name}.")]
    return max(near, key=len, default=None)


def circles():
    """Groups of modules that import each other, directly or not (Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph()[module] & set(graph())):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph():
        if module not in index:
            visit(module)
    return found


def test_every_module_has_a_place_in_the_plan():
    assert len(graph()) > 90
    homeless = [module for module in graph() if folder(module) is None]
    assert not homeless


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_folder_imports_only_what_is_below_it(name):
    allowed = FOLDERS[name] | {name, "fdjax"}  # `import fdjax` runs its `__init__` only
    wrong = [
        f"{module} imports {other}"
        for module in graph()
        if folder(module) == name
        for other in sorted(graph()[module])
        if (folder(other) or other) not in allowed
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_modules_import_each_other():
    found = circles()
    assert not found, "\n" + "\n".join(" <-> ".join(group) for group in found)


def test_the_walk_sees_every_kind_of_import(monkeypatch):
    texts = {
        "p": "from p.a import one",
        "p.a": "def one():\n    from p import b\n    return b.two",
        "p.b": "import typing\nif typing.TYPE_CHECKING:\n    from p import one",
        "p.c": "import p\np.one()",
        "p.d": "from os import path",
    }
    parsed = {name: ast.parse(text) for name, text in texts.items()}
    here = globals()
    monkeypatch.setitem(here, "trees", lambda: parsed)
    monkeypatch.setitem(here, "packages", lambda: {"p"})
    edges = {name: imports(name) for name in ("p.a", "p.b", "p.c", "p.d")}
    assert edges == {"p.a": {"p.b"}, "p.b": {"p.a"}, "p.c": {"p", "p.a"}, "p.d": set()}
    monkeypatch.setitem(here, "graph", lambda: edges)
    assert circles() == [["p.a", "p.b"]]
