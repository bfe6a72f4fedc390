"""Writes the API pages: every public name of the three packages, once.

A name's address is the shortest one that is public: `fdjax.Transformer` if the top
package exports it, else the package that lists it in `__all__`, else its module. A page
holds what one folder defines; nothing has to be listed by hand.
"""

import collections
import importlib
import inspect
import pathlib
import pkgutil
import sys
from types import ModuleType
from typing import NamedTuple

import docstrings
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer

PACKAGES = ("fdjax", "fdjax_models", "fdjax_convert")
TITLES = {
    "config": "Configs",
    "contract": "Components",
    "engine": "Pipelines and sessions",
    "run": "Runs",
    "serve": "The server",
}
"""Headings of `fdjax`'s own names, by the folder that defines them."""


class Name(NamedTuple):
    """A public name: where it is defined, and the address it is documented under."""

    module: str
    name: str
    address: str

    @property
    def home(self) -> str:
        """The full name where it is defined."""
        return f"{self.module}.{self.name}"


def modules() -> list[str]:
    """Every module and package that is not private, by dotted name."""
    found = []
    for package in PACKAGES:
        path = importlib.import_module(package).__path__
        walk = pkgutil.walk_packages(path, f"{package}.")
        found += [package, *(info.name for info in walk)]
    return [name for name in found if "._" not in name]


def defined(module: ModuleType) -> list[str]:
    """Public names that a module defines: classes, functions, documented values."""
    analyzer = ModuleAnalyzer.for_module(module.__name__)
    analyzer.analyze()
    names = {name for (owner, name) in analyzer.find_attr_docs() if not owner}
    for name, value in vars(module).items():
        thing = inspect.isclass(value) or inspect.isfunction(value)
        wrapped = getattr(value, "__wrapped__", None)  # a jitted function, say
        if (thing or wrapped) and getattr(value, "__module__", "") == module.__name__:
            names.add(name)
    lines = analyzer.tagorder
    public = [name for name in names if not name.startswith("_")]
    return sorted(public, key=lambda name: lines.get(name, 0))


def public_names() -> list[Name]:
    """All public names in the order of their modules and lines."""
    exported = {}
    # From the bottom up, so that the shortest address is what remains.
    for package in sorted(modules(), key=lambda name: -name.count(".")):
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            exported[_identity(value, name)] = package
    found = []
    for name in modules():
        module = importlib.import_module(name)
        listed = [each for each in getattr(module, "__all__", ()) if each.isupper()]
        for member in dict.fromkeys([*defined(module), *listed]):
            key = _identity(getattr(module, member), member)
            package = exported.get(key, name)
            above = name == package or name.startswith(f"{package}.")
            address = f"{package if above else name}.{member}"
            found.append(Name(name, member, address))
    # A value that a package lists is its module's, too: the one with a text stays.
    last = {name.address: name for name in found}  # modules follow their package
    return [name for name in found if last[name.address] is name]


def _identity(value: object, name: str) -> tuple[str, int]:
    return name, id(value)


def page_of(module: str) -> str:
    """The page of a module: its folder; a method, a network has one of its own."""
    parts = module.split(".")
    depth = 3 if parts[0] == "fdjax_models" else 2
    if parts[0] == "fdjax_convert" and not _is_package(".".join(parts[:2])):
        depth = 1
    return ".".join(parts[:depth])


def _is_package(module: str) -> bool:
    return hasattr(importlib.import_module(module), "__path__")


def links(names: list[Name]) -> dict[str, str]:
    """What a name in a docstring links to: full names, and classes' own if unique."""
    count = collections.Counter(name.name for name in names)
    found = {}
    for name in names:
        found[name.home] = found[name.address] = name.address
        if count[name.name] == 1 and name.name[0].isupper() and not name.name.isupper():
            found[name.name] = name.address
    return found


def directive(name: Name, targets: dict[str, str]) -> str:
    """The directive of one name."""
    module = importlib.import_module(name.module)
    analyzer = ModuleAnalyzer.for_module(name.module)
    documented = analyzer.find_attr_docs().get(("", name.name))
    if documented is not None:
        # Not autodata, which finds the text in the defining module only.
        lines = docstrings.to_rst(documented, targets)
        text = "\n".join(f"   {line}".rstrip() for line in lines)
        return f".. py:data:: {name.address}\n\n{text}\n"
    value = getattr(module, name.name)
    if not callable(value):
        return f".. py:data:: {name.address}\n   :value: {value!r}\n"
    if inspect.isclass(value):
        options = "\n   :members:\n   :show-inheritance:"
        return f".. autoclass:: {name.address}{options}\n"
    return f".. autofunction:: {name.address}\n"


def heading(text: str, line: str) -> str:
    """A reStructuredText heading."""
    return f"{text}\n{line * len(text)}\n"


def module_text(module: str, names: list[Name], line: str) -> list[str]:
    """Heading and docstring of a module."""
    # A function may have the full name of its module, `fdjax.attention.attend`.
    taken = any(name.address == module for name in names)
    options = "   :no-index:\n" if taken else ""
    return [heading(module, line), f".. automodule:: {module}\n{options}"]


def top_page(package: str, names: list[Name]) -> str:
    """The page of a package's own names."""
    parts = module_text(package, names, "=")
    own = [name for name in names if name.address.rpartition(".")[0] == package]
    folders = sorted({name.module.split(".")[1] for name in own if "." in name.module})
    for folder in folders:
        parts.append(heading(TITLES.get(folder, folder), "-"))
        here = [name for name in own if name.module.split(".")[1] == folder]
        parts += [directive(name, links(names)) for name in here]
    return "\n".join(parts)


def folder_page(page: str, names: list[Name], everything: list[str]) -> str:
    """The page of one folder: its modules, one after the other."""
    parts = module_text(page, names, "=")
    here = [module for module in everything if page_of(module) == page]
    for module in here:
        own = [name for name in names if name.module == module]
        if module != page and (own or importlib.import_module(module).__doc__):
            parts += module_text(module, names, "-")
        elsewhere = [name for name in own if name.address.count(".") == 1]
        if elsewhere and page.count("."):
            roles = (f":py:obj:`{name.address}`" for name in elsewhere)
            parts.append(f"Documented on their own page: {', '.join(roles)}.\n")
            own = [name for name in own if name not in elsewhere]
        parts += [directive(name, links(names)) for name in own]
    return "\n".join(parts)


def write_pages(folder: pathlib.Path) -> None:
    """Writes a page per folder, and removes pages of folders that are gone."""
    names, everything = public_names(), modules()
    pages = {"fdjax": top_page("fdjax", names)}
    for page in sorted({page_of(name.module) for name in names} - {"fdjax"}):
        pages[page] = folder_page(page, names, everything)
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for page, text in pages.items():
        path = folder / f"{page}.rst"
        if not path.exists() or path.read_text() != text:  # keeps builds incremental
            path.write_text(text)


def _generate(app: Sphinx) -> None:
    write_pages(pathlib.Path(app.srcdir) / "api")
    app.env.docstring_links = links(public_names())


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Points a reference to where a name is defined at where it is documented."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith(PACKAGES):
        return None
    wanted = env.docstring_links.get(target, target)
    found = env.domains.python_domain.resolve_xref(
        env, node["refdoc"], app.builder, "obj", wanted, node, content
    )
    module, _, name = target.rpartition(".")
    if found is None and hasattr(sys.modules.get(module), name):
        return content  # a type variable, an alias, a private base: no page of its own
    return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("builder-inited", _generate)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
