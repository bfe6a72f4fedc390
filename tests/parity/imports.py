"""The references' packages, imported when a test first uses them.

Importing torch, diffusers, transformers and flashdreams takes longer than collecting
all tests, and each of xdist's workers collects all of them.
"""

import functools
import importlib
import importlib.util
from typing import Any

import pytest


class _Lazy:
    """A module's attributes, read and set; `from … import` would import it at once."""

    _mock_name = None  # for this one, too

    def __init__(self, name: str):
        object.__setattr__(self, "_name", name)

    def _module(self):
        if self._name.startswith("flashdreams"):
            importlib.import_module("tests.parity.flashdreams_cpu")
        return importlib.import_module(self._name)

    def __getattr__(self, name: str):
        if name.startswith("__"):  # pytest asks everything in a test file for some
            raise AttributeError(name)
        return getattr(self._module(), name)

    def __setattr__(self, name: str, value: Any):
        setattr(self._module(), name, value)

    def __delattr__(self, name: str):
        delattr(self._module(), name)


def lazy(name: str) -> Any:
    """The module of that name; those of flashdreams run on a CPU."""
    return _Lazy(name)


def requires(*packages: str) -> pytest.MarkDecorator:
    """Skips tests where one of the packages is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"not installed, see the parity extra: {missing}"
    )


def inference_mode(function):
    """`torch.inference_mode()`, as a decorator that does not import torch."""

    @functools.wraps(function)
    def decorated(*arguments, **options):
        with importlib.import_module("torch").inference_mode():
            return function(*arguments, **options)

    return decorated
