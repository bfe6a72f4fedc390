"""Configs: variants, printing, comparing, hashing, JSON, docs, and their errors."""

import dataclasses
import enum
import json
import pathlib
import subprocess
import sys
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.config import (
    Component,
    DTypeName,
    InstantiateConfig,
    KnownClasses,
    check_config,
    class_names,
    config_hash,
    derive_config,
    from_json,
    to_json,
)
from fdjax.config.docs import field_docs


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


class Engine(Component):
    pass


class OtherEngine(Component):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig(InstantiateConfig[Engine]):
    """An engine."""

    _target: type = Engine
    num_cylinders: int = 4
    """Number of cylinders; even."""

    shift: float = 5.0
    """Timestep shift."""
    dtype: DTypeName = "bfloat16"
    mode: Mode = Mode.FAST
    sizes: tuple[int, ...] = (1, 2)
    """Sizes, in
    tokens."""

    def __post_init__(self):
        if self.num_cylinders % 2:
            raise ValueError(f"{self.num_cylinders=} must be even.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurboEngineConfig(EngineConfig):
    boost: float | None = None
    """Boost, in bar."""
    shift: float = 8.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depot:
    """Sizes that a component and its network share: no component of their own."""

    length: float = 10.0
    """Length, in metres."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CarConfig(InstantiateConfig):
    name: str = "car"
    """Name of the car."""
    engine: EngineConfig = EngineConfig()
    spare: EngineConfig | None = None
    seed: int | None = None
    folder: pathlib.Path = pathlib.Path("a/b")
    limit: float = float("inf")
    extra: Any = None
    wheels: tuple[InstantiateConfig, ...] = ()
    kind: Literal["sport", "family"] = "sport"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FleetConfig(InstantiateConfig):
    car: CarConfig = CarConfig()
    depot: Depot = Depot()


FULL = FleetConfig(
    car=CarConfig(
        engine=TurboEngineConfig(boost=1.5, dtype="float16", sizes=()),
        spare=EngineConfig(_target=OtherEngine, mode=Mode.EXACT),
        seed=3,
        wheels=(EngineConfig(num_cylinders=2), EngineConfig(num_cylinders=6)),
        extra=(1, ("é", 2.5), None, True),
    )
)


KNOWN = KnownClasses(names=class_names([FULL]), packages=frozenset({"fdjax", "tests"}))


def test_setup_builds_the_target():
    config = EngineConfig()
    assert config.setup() == Engine(config)
    assert hash(config.setup()) == hash(Engine(EngineConfig()))


def test_derive_patches_three_levels_deep_and_keeps_the_base():
    base = FleetConfig()
    new = derive_config(base, car={"engine": {"num_cylinders": 6}, "seed": 9})
    assert derive_config(base, depot={"length": 3}).depot == Depot(length=3.0)
    assert new.car.engine.num_cylinders == 6
    assert new.car.seed == 9
    assert base == FleetConfig()
    assert new.car.engine == EngineConfig(num_cylinders=6)
    assert type(new) is FleetConfig


def test_derive_replaces_a_whole_config_and_keeps_subclasses():
    turbo = derive_config(FleetConfig(), car={"engine": TurboEngineConfig()})
    new = derive_config(turbo, car={"engine": {"boost": 2.0}})
    assert new.car.engine == TurboEngineConfig(boost=2.0)
    assert derive_config(new, car={"spare": EngineConfig()}).car.spare is not None


def test_derive_validates_several_changes_together():
    with pytest.raises(ValueError, match=r"num_cylinders=5 must be even") as error:
        derive_config(FleetConfig(), car={"engine": {"num_cylinders": 5}})
    assert "FleetConfig.car.engine" in error.value.__notes__[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"car": {"engine": {"num_cylinder": 3}}},
            "Unknown field at FleetConfig.car.engine: EngineConfig.num_cylinder; "
            "did you mean 'num_cylinders'?",
        ),
        (
            {"cra": 1},
            "Unknown field at FleetConfig: FleetConfig.cra; did you mean 'car'?",
        ),
        ({"setup": 1}, "Unknown field at FleetConfig: FleetConfig.setup"),
    ],
)
def test_derive_names_unknown_fields(changes, message):
    with pytest.raises(KeyError) as error:
        derive_config(FleetConfig(), **changes)
    assert error.value.args[0] == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"car": {"spare": {"mode": 1}}},
            r"dict patch at FleetConfig\.car\.spare.*None",
        ),
        ({"car": {"seed": {"x": 1}}}, r"dict patch at FleetConfig\.car\.seed"),
        (
            {"car": {"seed": "3"}},
            r"FleetConfig\.car\.seed must be int or None, got '3'",
        ),
        ({"car": {"seed": True}}, r"car\.seed must be int or None, got True \(bool\)"),
        ({"car": 3}, r"FleetConfig\.car must be CarConfig, got 3"),
        ({"car": {"name": None}}, r"car\.name must be str, got None"),
        ({"car": {"engine": {"sizes": [1]}}}, r"sizes must be tuple of int, got \[1\]"),
        ({"car": {"engine": {"sizes": (1, 2.0)}}}, r"sizes must be tuple of int"),
        ({"car": {"engine": {"mode": "fast"}}}, r"mode must be one of FAST, EXACT"),
        (
            {"car": {"engine": {"dtype": "flaot32"}}},
            r"dtype must be the name of a dtyp",
        ),
        (
            {"car": {"engine": {"dtype": jnp.float32}}},
            r"dtype must be the name of a dt",
        ),
        ({"car": {"engine": Depot()}}, r"engine must be EngineConfig, got a Depot\."),
        ({"car": {"kind": "bus"}}, r"kind must be one of 'sport', 'family', got 'bus'"),
    ],
)
def test_derive_refuses_wrong_types(changes, message):
    with pytest.raises(TypeError, match=message):
        derive_config(FleetConfig(), **changes)


def test_check_config_finds_what_construction_accepted():
    bad = FleetConfig(car=CarConfig(wheels=(EngineConfig(shift="1"),)))
    with pytest.raises(
        TypeError, match=r"FleetConfig\.car\.wheels\[0\]\.shift must be"
    ):
        check_config(bad)
    check_config(FULL)


def test_configs_compare_and_hash_by_value():
    assert derive_config(FULL, car={"seed": 3}) == FULL
    assert hash(derive_config(FULL, car={"seed": 3})) == hash(FULL)
    assert derive_config(FULL, car={"seed": 4}) != FULL
    assert EngineConfig() != EngineConfig(_target=OtherEngine)
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.car = None


def test_prints_as_a_tree():
    config = derive_config(FULL, car={"folder": pathlib.Path("x/y z")})
    assert (
        str(config)
        == f"""\
FleetConfig:
    car: CarConfig:
        name: 'car'
        engine: TurboEngineConfig:
            num_cylinders: 4
            shift: 8.0
            dtype: 'float16'
            mode: FAST
            sizes: ()
            boost: 1.5
        spare: EngineConfig:
            _target: {__name__}:OtherEngine
            num_cylinders: 4
            shift: 5.0
            dtype: 'bfloat16'
            mode: EXACT
            sizes: (1, 2)
        seed: 3
        folder: x/y z
        limit: inf
        extra: (1, ('é', 2.5), None, True)
        wheels:
            [0]: EngineConfig:
                num_cylinders: 2
                shift: 5.0
                dtype: 'bfloat16'
                mode: FAST
                sizes: (1, 2)
            [1]: EngineConfig:
                num_cylinders: 6
                shift: 5.0
                dtype: 'bfloat16'
                mode: FAST
                sizes: (1, 2)
        kind: 'sport'
    depot: Depot:
        length: 10.0"""
    )
    assert config.to_text() == str(config)


@pytest.mark.parametrize("config", [FleetConfig(), FULL, EngineConfig(shift=-0.1)])
def test_json_round_trip(config):
    text = to_json(config, classes=KNOWN)
    again = from_json(text, classes=KNOWN)
    assert again == config
    assert to_json(again, classes=KNOWN) == text
    assert config_hash(again) == config_hash(config)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"not strict: {name}"))


def test_json_fills_missing_fields_with_defaults():
    tree = json.loads(to_json(CarConfig(name="x"), classes=KNOWN))
    del tree["seed"]
    assert from_json(json.dumps(tree), classes=KNOWN) == CarConfig(name="x")


def test_json_names_classes_by_the_table():
    spare = EngineConfig(_target=OtherEngine, mode=Mode.EXACT)
    config = FleetConfig(car=CarConfig(spare=spare))
    tree = json.loads(to_json(config, classes=KNOWN))
    assert tree["_class"] == "FleetConfig"
    assert tree["depot"] == {"_class": "Depot", "length": 10.0}
    assert tree["car"]["spare"]["_class"] == "EngineConfig"
    assert tree["car"]["spare"]["_target"] == {"_type": "OtherEngine"}
    assert tree["car"]["spare"]["mode"] == {"_enum": "Mode.EXACT"}


def test_a_class_outside_the_table_is_named_by_its_module():
    config = CarConfig(spare=EngineConfig(_target=OtherEngine, mode=Mode.EXACT))
    classes = KnownClasses(packages=frozenset({"tests"}))
    text = to_json(config, classes=classes)
    spare = json.loads(text)["spare"]
    assert spare["_class"] == f"{__name__}:EngineConfig"
    assert spare["_target"] == {"_type": f"{__name__}:OtherEngine"}
    assert spare["mode"] == {"_enum": f"{__name__}:Mode.EXACT"}
    assert from_json(text, classes=classes) == config
    with pytest.raises(ValueError, match=r"in no package that registers .*\['fdjax'\]"):
        from_json(text, classes=KnownClasses(packages=frozenset({"fdjax"})))


def test_a_module_that_moves_breaks_no_saved_config():
    text = to_json(FULL, classes=KNOWN)
    assert __name__ not in text
    # A class that was outside the table when it was saved, and whose module moved.
    saved = '{"_class": "tests.earlier:EngineConfig", "num_cylinders": 2}'
    assert from_json(saved, classes=KNOWN) == EngineConfig(num_cylinders=2)
    elsewhere = '{"_class": "fdjax.earlier:EngineConfig"}'
    with pytest.raises(ValueError, match="does not exist"):
        from_json(elsewhere, classes=KNOWN)


def test_a_record_names_classes_by_their_own_names():
    assert to_json(FULL) == to_json(FULL, classes=KNOWN)
    assert json.loads(to_json(Outsider()))["_class"] == "Outsider"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outsider(InstantiateConfig):
    pass


def test_the_table_holds_configs_types_of_fields_bases_enums_and_components():
    assert class_names([CarConfig()]) == {
        "Component": Component,
        "CarConfig": CarConfig,
        "Engine": Engine,
        "EngineConfig": EngineConfig,
        "InstantiateConfig": InstantiateConfig,
        "Mode": Mode,
    }
    added = {"TurboEngineConfig", "OtherEngine", "FleetConfig", "Depot"}
    assert set(class_names([FULL])) == set(class_names([CarConfig()])) | added


def test_a_name_of_two_classes_is_left_out_of_the_table():
    other = dataclasses.make_dataclass(
        "CarConfig", [], bases=(InstantiateConfig,), frozen=True, kw_only=True
    )
    names = class_names([CarConfig(), other()])
    assert "CarConfig" not in names
    assert names["EngineConfig"] is EngineConfig


def _tree(**changes):
    return json.dumps(json.loads(to_json(CarConfig(), classes=KNOWN)) | changes)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ValueError, "must be JSON"),
        ("[1]", ValueError, "_class"),
        ('{"_class": 3}', ValueError, "config: "),
        ('{"_class": "antigravity:fly"}', ValueError, "in no package that registers"),
        ('{"_class": "subprocess:Popen"}', ValueError, "in no package that registers"),
        (
            '{"_class": "fdjax.axes:PyTree"}',
            ValueError,
            "is not the class of a config",
        ),
        ('{"_class": "fdjax.config:Nope"}', ValueError, "does not exist"),
        ('{"_class": "fdjax.nothing:Nope"}', ValueError, "does not exist"),
        (_tree(sede=1), KeyError, "config: CarConfig.sede; did you mean 'seed'"),
        (_tree(seed="x"), TypeError, r"config.seed must be int or None, got 'x'"),
        (_tree(engine=None), TypeError, "config.engine must be EngineConfig"),
        ('{"_class": "CarConfg"}', ValueError, "did you mean 'CarConfig'"),
        ('{"_class": "Outsider"}', ValueError, "no method that is installed uses"),
        ('{"_class": "Engine"}', ValueError, "'Engine' is not the class of a config"),
        ('{"_class": "Mode"}', ValueError, "'Mode' is not the class of a config"),
        (_tree(extra={"_enum": "os:path"}), ValueError, "no method that is installed"),
        (_tree(extra={"_enum": "Mode.SLOW"}), ValueError, "not a member of an enum"),
        (_tree(extra={"_enum": "Engine.x"}), ValueError, "not a member of an enum"),
        (_tree(extra={"_type": "Mode"}), ValueError, "not the class of a component"),
        (_tree(extra={"_type": "subprocess:Popen"}), ValueError, "in no package"),
        (_tree(extra={"_exec": "1"}), ValueError, "config.extra must be a config"),
        *(
            (_tree(extra={kind: value}), ValueError, f"extra: {kind} must be a text")
            for kind in ("_enum", "_float", "_path", "_type")
            for value in (None, 3, [], {}, True, ["Mode.EXACT"])
        ),
        ('{"_class": null}', ValueError, "a class is named by a text"),
        ('{"_class": ["CarConfig"]}', ValueError, "a class is named by a text"),
        (_tree(extra={"x": "y" * 10**6}), ValueError, "config.extra must be a config"),
        ("[" * 10**6, ValueError, "more than 64 levels"),
        ('{"_class": ' + '{"a": ' * 10**5, ValueError, "more than 64 levels"),
        (_tree(extra=[]).replace("[]", "[" * 900 + "]" * 900), ValueError, "64 levels"),
        ('{"_class": "CarConfig", "_class": "CarConfig"}', ValueError, "twice"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_json_errors(text, error, message):
    assert "antigravity" not in sys.modules
    with pytest.raises(error, match=message) as caught:
        from_json(text, classes=KNOWN)
    assert len(str(caught.value)) < 1000
    assert "antigravity" not in sys.modules


def test_json_reruns_validation():
    tree = json.loads(to_json(CarConfig(), classes=KNOWN))
    tree["engine"]["num_cylinders"] = 3
    with pytest.raises(ValueError, match="must be even"):
        from_json(json.dumps(tree), classes=KNOWN)


@pytest.mark.parametrize(
    "value", [print, [1], np.zeros(2), {"a": 1}, np.int64(3), b"x", jnp.float32]
)
def test_json_refuses_values_that_it_cannot_bring_back(value):
    with pytest.raises(TypeError, match=r"CarConfig\.extra holds .* no JSON form"):
        to_json(CarConfig(extra=value))


def test_hash_depends_on_values_not_on_their_spelling():
    assert config_hash(EngineConfig(shift=5)) == config_hash(EngineConfig(shift=5.0))
    others = [
        EngineConfig(),
        EngineConfig(shift=6),
        EngineConfig(mode=Mode.EXACT),
        EngineConfig(_target=OtherEngine),
        EngineConfig(dtype="float32"),
        TurboEngineConfig(shift=5.0),
    ]
    assert len({config_hash(config) for config in others}) == len(others)


def test_hash_counts_a_class_by_package_and_name():
    hashes = []
    for module in ("one.a", "one.b.c", "two.a"):
        kind = dataclasses.make_dataclass(
            "Moved", [], bases=(InstantiateConfig,), frozen=True
        )
        kind.__module__ = module
        hashes.append(config_hash(kind()))
    assert hashes[0] == hashes[1] != hashes[2]


def test_hash_is_the_same_in_another_process():
    program = (
        "from fdjax.config import InstantiateConfig, config_hash\n"
        "print(config_hash(InstantiateConfig()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == config_hash(InstantiateConfig())


def test_field_docs_come_from_the_source_and_are_inherited():
    docs = field_docs(TurboEngineConfig)
    assert docs["num_cylinders"] == "Number of cylinders; even."
    assert docs["shift"] == "Timestep shift."
    assert docs["sizes"] == "Sizes, in\ntokens."
    assert docs["boost"] == "Boost, in bar."
    assert docs["_target"].startswith("Class that `setup()`")
    assert "mode" not in docs


def test_field_docs_of_a_class_without_source_are_empty():
    space = {"InstantiateConfig": InstantiateConfig, "__name__": "made_up"}
    exec("class Made(InstantiateConfig):\n    x: int = 3\n    '''Text.'''", space)
    assert set(field_docs(space["Made"])) == {"_target"}
