"""The API pages have every public name, and docstrings become valid markup."""

import ast
import importlib
import pathlib
import re
import sys

import pytest

from tests.docs.snippets import ROOT

pytest.importorskip("sphinx.application", reason='the extra "docs" is not installed')


@pytest.fixture(scope="module")
def extensions():
    """The modules below `docs/extensions`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "docs/extensions"))
        yield {
            name: importlib.import_module(name) for name in ("api_pages", "docstrings")
        }
        for name in ("api_pages", "docstrings"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def pages(extensions, tmp_path_factory) -> dict[str, str]:
    """The text of every API page by its name."""
    folder = tmp_path_factory.mktemp("pages") / "api"
    extensions["api_pages"].write_pages(folder)
    return {path.stem: path.read_text() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def documented(pages) -> list[str]:
    text = "\n".join(pages.values())
    return re.findall(r"^\.\. (?:auto|py:)\w+:: (\S+)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("package", ["fdjax", "fdjax.testing", "fdjax.checkpoint"])
def test_what_a_package_exports_is_documented_under_its_short_name(package, documented):
    names = importlib.import_module(package).__all__
    missing = [name for name in names if f"{package}.{name}" not in documented]
    assert not missing


def test_every_class_and_function_of_every_module_is_documented(documented):
    """By the source, which knows nothing of how the pages are made."""
    short = {name.rpartition(".")[2] for name in documented}
    missing = []
    for folder in ("fdjax", "models/fdjax_models", "convert/fdjax_convert"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text()).body:
                name = getattr(node, "name", "_")
                if not name.startswith("_") and name not in short:
                    missing.append(f"{path}: {name}")
    assert not missing


def test_values_are_shown_as_values_with_their_text(pages):
    page = pages["fdjax.testing"]
    assert ".. py:data:: fdjax.testing.CHECKS\n\n   Every check of the suite." in page
    assert ".. py:data:: fdjax.testing.TOLERANCE\n   :value: 0.0001\n" in page


def test_every_method_has_an_api_page_and_a_page_of_its_own(pages):
    methods = ROOT / "models/fdjax_models/methods"
    names = {path.parent.name for path in methods.glob("*/config.py")}
    assert {f"fdjax_models.methods.{name}" for name in names} <= set(pages)
    written = {path.stem for path in (ROOT / "docs/models").glob("*.md")}
    assert names <= written


def test_no_name_is_documented_twice(documented):
    directives = [name for name in documented if documented.count(name) > 1]
    # A function with the name of its module: `fdjax.attention.attend`.
    modules = {name for name in directives if name in sys.modules}
    assert not set(directives) - modules


def test_pages_of_folders_that_are_gone_go(extensions, tmp_path):
    (tmp_path / "fdjax.gone.rst").write_text("old")
    extensions["api_pages"].write_pages(tmp_path)
    assert not (tmp_path / "fdjax.gone.rst").exists()
    assert pathlib.Path(tmp_path / "fdjax.rst").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Keys w*24, a|b, name_ and x_y.", r"Keys w\*24, a\|b, name\_ and x_y."),
        ("Two `Rule`s of `fdjax.Thing`.", "Two :py:obj:`Rule <fdjax.Rule>`\\ s of "
         "``fdjax.Thing``."),
        ("Code over\n`two\nlines`.", "Code over\n``two\nlines``."),
        ("    a  = f(b)\n    c", "::\n\n        a  = f(b)\n        c"),
        ("Args:\n    x: A *b* `c`.", "Args:\n    x: A \\*b\\* ``c``."),
        ("- one\n- two_\n  more", "- one\n- two\\_\n  more"),
    ],
)  # fmt: skip
def test_docstrings_become_markup(extensions, text, expected):
    made = extensions["docstrings"].to_rst(text.split("\n"), {"Rule": "fdjax.Rule"})
    assert "\n".join(made).strip() == expected
