"""Imports point one way: scripts -> convert -> models -> runtime."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = {
    "fdjax": ROOT / "fdjax",
    "fdjax_models": ROOT / "models/fdjax_models",
    "fdjax_convert": ROOT / "convert/fdjax_convert",
}
FORBIDDEN = {
    "fdjax": {"fdjax_models", "fdjax_convert", "torch", "transformers", "diffusers"},
    "fdjax_models": {"fdjax_convert", "torch", "transformers", "diffusers"},
    "fdjax_convert": {"torch", "transformers", "diffusers"},
}


LIGHT = [*SOURCES, "fdjax.engine.pipeline", "fdjax.run.registry"]


def imported_roots(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", SOURCES)
def test_imports_point_one_way(package):
    files = list(SOURCES[package].rglob("*.py"))
    assert len(files) > 3
    for path in files:
        wrong = FORBIDDEN[package] & set(imported_roots(path))
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_runtime_names_no_model():
    names = ("wan", "taehv", "umt5", "lingbot", "omnidreams", "cosmos")
    for path in SOURCES["fdjax"].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom | ast.Import):
                continue
            if isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                assert name.lower() not in names, f"{path}: {name}"


@pytest.mark.parametrize("package", LIGHT)
def test_import_is_light(package):
    code = (
        f"import sys, {package}; "
        "heavy = {'imageio', 'orbax', 'PIL', 'huggingface_hub', 'ftfy', 'tokenizers',"
        " 'torch', 'optax'} & set(sys.modules); "
        "sys.exit(f'imports {sorted(heavy)}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
