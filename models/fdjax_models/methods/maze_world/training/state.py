"""What a training run keeps: weights, their average, and how far it has come.

Everything is float32 in safetensors files of at most `MAX_BYTES`, so that a run can be
carried on from another machine. The optimiser's moments are not kept: they come back
within some tens of steps.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from fdjax import checkpoint
from fdjax.axes import Params
from fdjax_models.methods.maze_world import config

MAX_BYTES = 16_400_000
_PROGRESS = "progress.json"


def flatten(params: Params) -> dict[str, np.ndarray]:
    """Returns a nested dict as {"a/b/c": array}."""
    flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    return {name: np.ascontiguousarray(value) for name, value in flat.items()}


def save(
    folder: Path, trees: Mapping[str, Params], progress: Mapping[str, Any]
) -> None:
    """Writes nested dicts of weights and a progress record.

    Args:
        folder: Written to; made if need be.
        trees: Nested dicts by name.
        progress: Anything that JSON can hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, tree in trees.items():
        parts: list[dict[str, np.ndarray]] = [{}]
        for key, value in flatten(tree).items():
            held = sum(array.nbytes for array in parts[-1].values())
            if parts[-1] and held + value.nbytes > MAX_BYTES:
                parts.append({})
            parts[-1][key] = value
        # An earlier save may have had more parts.
        for stale in folder.glob(f"{name}-*.safetensors"):
            stale.unlink()
        for number, part in enumerate(parts):
            path = folder / f"{name}-{number}.safetensors"
            # Renamed when it is whole: a run may be stopped at any time.
            save_file(part, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)
    (folder / _PROGRESS).write_text(json.dumps(dict(progress), indent=1) + "\n")


def load(folder: Path, name: str) -> Params:
    """Returns a nested dict of weights that `save` wrote.

    Raises:
        FileNotFoundError: The folder holds no weights of that name.
    """
    paths = sorted(folder.glob(f"{name}-*.safetensors"))
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no {name}-*.safetensors; give the folder that an earlier "
            "training run wrote."
        )
    flat: dict[str, np.ndarray] = {}
    for path in paths:
        flat |= load_file(path)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def names(folder: Path) -> list[str]:
    """Returns the names of the trees that `save` wrote."""
    paths = folder.glob("*-0.safetensors")
    return sorted(path.name.removesuffix("-0.safetensors") for path in paths)


def load_progress(folder: Path) -> dict[str, Any]:
    """Returns the progress record that `save` wrote."""
    return json.loads((folder / _PROGRESS).read_text())


def export(folder: Path, params: Mapping[str, Params]) -> int:
    """Writes the weights as they ship: one float16 file per component.

    Args:
        folder: Written to; made if need be.
        params: One nested dict per component of the pipeline.

    Returns:
        Bytes written.
    """
    total = 0
    for name, component in config.PIPELINE.setup().components.items():
        path = folder / f"{name}.safetensors"
        half = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), params[name])
        checkpoint.save(path, half, component=component, overwrite=True)
        total += path.stat().st_size
    return total
