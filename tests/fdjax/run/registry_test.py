"""Discovery of methods: three forms, two ways, and everything that breaks."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys

import pytest

import fdjax
from fdjax.run import plugins, registry
from fdjax.run.plugins import BrokenPlugin

PLUGIN = """
from fdjax.config import derive_config
from tests.tiny_runner import CONFIG

one = derive_config(CONFIG, runner_name="one")
two = derive_config(CONFIG, runner_name="two")
both = {"one": one, "two": two}
wrong_slug = {"one": one, "zwei": two}
not_all = {"one": one, "two": 3}
number = 7

class Space:
    inner = both

def make_one():
    return one

def make_both():
    return dict(both)

def make_error():
    raise RuntimeError("no\\n   luck")

def make_number():
    return 7
"""


@pytest.fixture(autouse=True)
def only_the_variable(monkeypatch, tmp_path):
    """No entry points, and a folder of plug-in modules on the path."""
    monkeypatch.setattr(plugins, "clone_entries", lambda: ())
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [])
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plugin_a.py").write_text(PLUGIN)
    (tmp_path / "plugin_b.py").write_text(
        PLUGIN.replace("CONFIG, ", "CONFIG, seed=1, ")
    )
    (tmp_path / "plugin_broken.py").write_text("1 / 0")
    (tmp_path / "plugin_exit.py").write_text("import sys; sys.exit(3)")
    yield
    for name in ("plugin_a", "plugin_b", "plugin_broken", "plugin_exit"):
        sys.modules.pop(name, None)


def set_entry_points(monkeypatch, **entries):
    points = [
        importlib.metadata.EntryPoint(name.replace("_", "-"), value, plugins.GROUP)
        for name, value in entries.items()
    ]
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda *, group: points if group == plugins.GROUP else [],
    )


@pytest.mark.parametrize(
    ("attribute", "slugs"),
    [
        ("one", ["one"]),
        ("both", ["one", "two"]),
        ("make_one", ["one"]),
        ("make_both", ["one", "two"]),
        ("Space.inner", ["one", "two"]),
    ],
)
@pytest.mark.parametrize("way", ["entry point", "variable"])
def test_every_form_in_both_ways(monkeypatch, way, attribute, slugs):
    if way == "entry point":
        set_entry_points(monkeypatch, label=f"plugin_a:{attribute}")
    else:
        monkeypatch.setenv(plugins.VARIABLE, f" one = plugin_a:{attribute} ,, ")
    configs = fdjax.runner_configs()
    assert list(configs) == slugs
    assert all(config.runner_name == slug for slug, config in configs.items())
    assert registry.broken_plugins() == ()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("x=plugin_broken:CONFIG", "ZeroDivisionError: division by zero"),
        ("x=plugin_exit:CONFIG", "SystemExit: 3"),
        (
            "x=nothing_here:CONFIG",
            "ModuleNotFoundError: No module named 'nothing_here'",
        ),
        ("x=plugin_b:nothing", "AttributeError: module 'plugin_b' has no attribute"),
        ("x=plugin_b:make_error", "RuntimeError: no luck"),
        ("x=plugin_b:number", "must be a RunnerConfig, a dict of them or a callable"),
        (
            "x=plugin_b:make_number",
            "must be a RunnerConfig, a dict of them or a callable",
        ),
        ("x=plugin_b:two", "slug 'x' must equal runner_name 'two'"),
        ("x=plugin_b", "must have the form slug=module:ATTR"),
        ("plugin_b:two", "must have the form slug=module:ATTR"),
        ("=plugin_b:two", "must have the form slug=module:ATTR"),
        ("x=:two", "must have the form slug=module:ATTR"),
    ],
)
def test_a_broken_plugin_is_listed_and_takes_nothing_down(monkeypatch, value, reason):
    monkeypatch.setenv(plugins.VARIABLE, f"one=plugin_a:one,{value},y=plugin_a:both")
    assert list(registry.runner_configs()) == ["one", "two"]
    [broken] = registry.broken_plugins()
    assert isinstance(broken, BrokenPlugin)
    assert broken.source.startswith(f"{plugins.VARIABLE}: ")
    assert value.partition("=")[2].strip() in broken.source
    assert reason in broken.reason
    assert "\n" not in broken.reason


@pytest.mark.parametrize("attribute", ["wrong_slug", "not_all"])
def test_a_bad_item_of_a_dict_does_not_take_the_others_down(monkeypatch, attribute):
    set_entry_points(monkeypatch, label=f"plugin_a:{attribute}")
    assert list(registry.runner_configs()) == ["one"]
    [broken] = registry.broken_plugins()
    assert "zwei" in broken.reason or "'two' must be a RunnerConfig" in broken.reason


def test_one_slug_twice_is_an_error_that_names_both(monkeypatch):
    set_entry_points(monkeypatch, first="plugin_a:both")
    monkeypatch.setenv(plugins.VARIABLE, "two=plugin_b:two")
    with pytest.raises(ValueError, match="'two'") as error:
        registry.runner_configs()
    assert "first = plugin_a:both" in str(error.value)
    assert "two = plugin_b:two" in str(error.value)


def test_the_same_method_registered_twice_is_fine(monkeypatch):
    set_entry_points(monkeypatch, first="plugin_a:both")
    monkeypatch.setenv(plugins.VARIABLE, "two=plugin_a:two")
    assert list(registry.runner_configs()) == ["one", "two"]


def test_nothing_is_cached_between_calls(monkeypatch):
    assert registry.runner_configs() == {}
    monkeypatch.setenv(plugins.VARIABLE, "one=plugin_a:one")
    assert list(registry.runner_configs()) == ["one"]


def test_method_packages(monkeypatch):
    set_entry_points(monkeypatch, first="some.thing:x")
    monkeypatch.setenv(plugins.VARIABLE, "a=other.module:x,nonsense")
    assert plugins.method_packages() == {"fdjax", "some", "other"}


def test_a_clone_needs_no_installation():
    """Our own methods come from pyproject.toml where nothing is installed."""
    root = pathlib.Path(fdjax.__file__).parent.parent
    if not (root / "pyproject.toml").exists():
        pytest.skip("fdjax is installed as a wheel: there is no clone")
    program = (
        "import importlib.metadata as m; m.entry_points = lambda **_: []\n"
        "from fdjax.run import plugins, registry\n"
        "print(sorted(plugins.method_packages()))\n"
        "print(registry.broken_plugins())"
    )
    roots = [str(root), *(p for p in sys.path if "site-packages" in p)]
    bare = subprocess.run(
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
        check=True,
        cwd="/",
    )
    assert bare.stdout.startswith("['fdjax', 'fdjax_models']")
    assert "this clone is not installed: use scripts/run.py" in bare.stdout
