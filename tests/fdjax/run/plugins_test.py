"""The table of class names: short ones for methods, ours first, and what moves."""

import dataclasses
import json
import sys

import pytest

from fdjax.config import InstantiateConfig, derive_config, from_json, to_json
from fdjax.contract.encoder import NullEncoderConfig
from fdjax.run import plugins, registry
from fdjax.schedulers import UniPCSchedulerConfig
from tests.tiny_runner import CONFIG

COPY = """
import dataclasses
from fdjax.config import InstantiateConfig, derive_config
from tests import tiny_runner

@dataclasses.dataclass(frozen=True, kw_only=True)
class {name}(tiny_runner.TinyRunnerConfig):
    pass

CONFIG = {name}(**{{
    field.name: getattr(tiny_runner.CONFIG, field.name)
    for field in dataclasses.fields(tiny_runner.CONFIG)
}})
CONFIG = derive_config(CONFIG, runner_name=__name__.replace("_", "-"))
"""


@pytest.fixture
def plugin(monkeypatch, tmp_path):
    """Registers modules with a runner config of a given class name."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def register(**class_names):
        for module, name in class_names.items():
            (tmp_path / f"{module}.py").write_text(COPY.format(name=name))
            made.append(module)
        entries = [f"{module.replace('_', '-')}={module}:CONFIG" for module in made]
        monkeypatch.setenv(plugins.VARIABLE, ",".join(entries))

    yield register
    for module in made:
        sys.modules.pop(module, None)


def kinds(tree, key="_class"):
    """Every class that a tree of JSON names."""
    if isinstance(tree, dict):
        own = [tree[key]] if key in tree else []
        return own + [kind for item in tree.values() for kind in kinds(item, key)]
    if isinstance(tree, list):
        return [kind for item in tree for kind in kinds(item, key)]
    return []


def own_methods():
    """Slugs and configs of fdjax's own methods."""
    return [
        (slug, config)
        for slug, config in registry.runner_configs().items()
        if type(config).__module__.startswith("fdjax_models")
    ]


def test_our_own_methods_are_saved_by_short_names_and_come_back():
    known = plugins.known_classes()
    assert len(own_methods()) > 5
    for _, config in own_methods():
        text = to_json(config, classes=known)
        assert not [name for name in kinds(json.loads(text)) if ":" in name]
        assert from_json(text, classes=known) == config


def test_parts_that_no_method_holds_are_in_the_table_too():
    names = plugins.known_classes().names
    assert names["NullEncoderConfig"] is NullEncoderConfig
    assert names["UniPCSchedulerConfig"] is UniPCSchedulerConfig


def test_a_plugin_is_saved_by_short_names(plugin):
    plugin(plug_a="RippleConfig")
    known = plugins.known_classes()
    config = registry.runner_configs()["plug-a"]
    text = to_json(config, classes=known)
    assert json.loads(text)["_class"] == "RippleConfig"
    assert from_json(text, classes=known) == config


def test_our_names_stand_and_plugins_of_one_name_have_none(plugin):
    plugin(plug_a="RippleConfig", plug_b="RippleConfig", plug_c="MazeRunnerConfig")
    known, configs = plugins.known_classes(), registry.runner_configs()
    assert "RippleConfig" not in known.names
    assert known.names["MazeRunnerConfig"] is type(configs["maze-world"])
    for slug, name in [("plug-a", "plug_a:RippleConfig"), ("plug-c", "plug_c:MazeRu")]:
        text = to_json(configs[slug], classes=known)
        assert json.loads(text)["_class"].startswith(name)
        assert from_json(text, classes=known) == configs[slug]


def test_a_class_of_no_registered_package_is_refused(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Stray(InstantiateConfig):
        pass

    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    known = plugins.known_classes()
    assert "tests" not in known.packages
    for config in (CONFIG, Stray(), derive_config(CONFIG, fps=3)):
        with pytest.raises(ValueError, match="in no package that registers methods"):
            from_json(to_json(config, classes=known), classes=known)


def test_a_broken_plugin_does_not_take_the_table_down(monkeypatch):
    monkeypatch.setenv(plugins.VARIABLE, "x=nothing_here:CONFIG,y")
    known = plugins.known_classes()
    assert "MazeRunnerConfig" in known.names
    assert known.packages >= {"fdjax", "fdjax_models", "nothing_here"}
