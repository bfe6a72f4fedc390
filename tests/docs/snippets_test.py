"""Every snippet of the documentation runs, or says why it does not."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib
import types

import pytest

from fdjax.run import cli
from tests.docs.snippets import ROOT, Snippet, commands, pages, snippets

SHELLS = {"bash"}
LANGUAGES = {"python", "toml", "text"} | SHELLS
ALL = [snippet for page in pages() for snippet in snippets(page)]
OF_PYTHON = sorted(
    {str(s.path.relative_to(ROOT)) for s in ALL if s.language == "python"}
)
OF_SHELL = [s for s in ALL if s.language in SHELLS and s.mark != "not run"]

# Stands in for `app.run` of a script: reads the flags and stops.
_ONLY_FLAGS = """
import runpy, sys
from absl import app, flags
def run(main, *arguments, **more):
    flags.FLAGS(sys.argv)
app.run = run
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """An empty directory as a user may be in, and no files of earlier runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path / "cache"))
    roots = [ROOT, ROOT / "models", ROOT / "convert"]
    path = os.pathsep.join([*map(str, roots), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("FDJAX_CLONE", str(ROOT))  # stands for it in commands


def test_there_are_pages_and_snippets():
    assert len(pages()) >= 12
    assert len(OF_PYTHON) >= 5
    assert len(OF_SHELL) >= 15


def test_every_block_names_its_language_and_every_exception_its_reason():
    wrong = [str(each) for each in ALL if each.language not in LANGUAGES]
    assert not wrong, f"language of {wrong} must be one of {sorted(LANGUAGES)}"
    silent = [str(each) for each in ALL if each.mark == "not run" and not each.why]
    assert not silent


@pytest.mark.parametrize("page", OF_PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, monkeypatch):
    """In one namespace, as pasted one after the other."""
    module = types.ModuleType("pasted")
    monkeypatch.setitem(sys.modules, "pasted", module)
    for snippet in snippets(ROOT / page):
        if snippet.language == "python":
            # Compiled even if not run: what is shown is Python. Its own line numbers.
            text = "\n" * (snippet.line - 1) + snippet.text
            code = compile(text, str(snippet.path), "exec")
            if snippet.mark != "not run":
                exec(code, vars(module))


@pytest.mark.parametrize("snippet", OF_SHELL, ids=str)
def test_commands_are_right(snippet, capsys):
    if snippet.mark == "run":
        _run(["bash", "-e", "-c", snippet.text])
        return
    for command in commands(snippet.text):
        _check(snippet, command, capsys)


def _check(snippet: Snippet, command: list[str], capsys) -> None:
    name, *arguments = command
    if name == "fdjax-run":
        if "--config" in arguments:
            return  # a file of the reader's; cli_test repeats a run from one
        if "--preset" in arguments:  # it lies in the clone
            at = 1 + arguments.index("--preset")
            arguments[at] = str(ROOT / arguments[at])
        stops = {"--help", "--version", "--no-instantiate"} & set(arguments)
        code = cli.run(arguments if stops else [*arguments, "--no-instantiate"])
        assert code == 0, f"{snippet}: {capsys.readouterr().err}"
    elif name == "python" and arguments[0].startswith("scripts/"):
        script, *flags = arguments
        _run([sys.executable, "-c", _ONLY_FLAGS, str(ROOT / script), *flags])
    elif name == "python" and arguments[0].startswith("examples/"):
        assert (ROOT / arguments[0]).is_file(), snippet  # examples_test runs it
    else:
        # Tests install nothing, and do not start themselves.
        known = {"git", "cd", "pip", "pytest", "pre-commit", ".ci/run"}
        assert name in known or command[:3] == ["python", "-m", "pytest"], (
            f"{snippet}: say with `<!-- run -->` or `<!-- not run: WHY -->` what is to "
            f"be done with {command}"
        )


def _run(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("snippet", [s for s in ALL if s.language == "toml"], ids=str)
def test_toml_is_toml(snippet):
    assert tomllib.loads(snippet.text)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    local = [target for target in targets if "://" not in target]
    missing = [target for target in local if not _exists(page, target)]
    assert not missing


def _exists(page: pathlib.Path, target: str) -> bool:
    if target.startswith("api/"):  # made by docs/extensions/api_pages.py
        return True
    if target == "walk.ipynb":  # copied there by docs/conf.py
        page = ROOT / "examples" / "x"
    return (page.parent / target).exists()


def test_a_snippet_is_found_with_its_mark(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n<!-- not run: needs a GPU -->\n\n```bash\nls  # all\n"
        "```\n```{toctree}\na\n```\n  ```text\n  y\n  ```\n"
    )
    found = [(s.language, s.line, s.text, s.mark, s.why) for s in snippets(page)]
    assert found == [
        ("python", 2, "x = 1\n", "", ""),
        ("bash", 7, "ls  # all\n", "not run", "needs a GPU"),
        ("text", 13, "y\n", "", ""),
    ]
    page.write_text("```python\n")
    with pytest.raises(ValueError, match="not closed"):
        snippets(page)


def test_commands_are_split_as_a_shell_would():
    assert commands('a -e . && b "c  d"  # e \'f\n\ng \\\n  h\n') == [
        ["a", "-e", "."],
        ["b", "c  d"],
        ["g", "h"],
    ]
