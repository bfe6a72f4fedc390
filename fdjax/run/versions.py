"""What is installed and which devices there are, for a bug report."""

import importlib.metadata
import os
import platform

import jax

from fdjax.checkpoint.metadata import installed_version

_PACKAGES = (
    *("jax", "jaxlib", "flax", "numpy", "ml-dtypes", "orbax-checkpoint", "safetensors"),
    *("av", "imageio", "pillow", "huggingface-hub", "tokenizers"),
)
_VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "FDJAX_CACHE_DIR", "FDJAX_RUNNER_CONFIGS")


def text() -> str:
    """One line per version, device and setting; never fails for want of a device."""
    lines = [
        f"fdjax {installed_version()}",
        f"python {platform.python_version()} on {platform.platform()}",
        *(f"{name} {_version(name)}" for name in _PACKAGES),
        *_devices(),
    ]
    given = [name for name in _VARIABLES if os.environ.get(name)]
    return "\n".join([*lines, *(f"{name}={os.environ[name]}" for name in given)])


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def _devices() -> list[str]:
    try:
        devices = jax.devices()
    except Exception as error:  # a backend may fail in any way; the report says how
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [f"devices: none, {reason[:300]}"]
    kinds = [f"{device.platform} {device.device_kind}" for device in devices]
    return [f"device: {kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
