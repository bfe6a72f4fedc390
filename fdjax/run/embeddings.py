"""Keeps the conditions of one run in a file, for runs that need no encoder then.

`--save_embeddings_path` writes it, `--embeddings_path` reads it. A file is in the
safetensors format: the arrays, and as JSON their structure, the settings of the
conditioner that made them, and a checksum. Unlike an entry of `conditions_store`, which
one machine finds by the prompt, it can be carried to a machine without the encoders.
"""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.checkpoint import files, safetensors_format
from fdjax.checkpoint.metadata import installed_version
from fdjax.contract.conditioner import Conditioner, Conditions
from fdjax.engine.conditioner import check_conditions
from fdjax.run import published, signals
from fdjax.run.conditions_store import checksum
from fdjax.run.inputs import RunnerResult
from fdjax.session import tree
from fdjax.session.settings import check_same, settings_of

_FORMAT = 1
_HEADER = "fdjax_embeddings"
_log = logging.getLogger(__name__)


def save_embeddings(
    path: str | os.PathLike,
    conditions: Conditions,
    *,
    conditioner: Conditioner,
    size: tuple[int, int],
    random_weights: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes conditions; they appear at `path` whole or not at all.

    Args:
        path: The file.
        conditions: What the conditioner gave.
        conditioner: Whose settings a run that reads the file must have.
        size: Rows and columns that the run was asked for.
        random_weights: Whether the encoders were untrained.
        overwrite: Replace what is at `path`.

    Raises:
        FileExistsError: There is something at `path`.
        ValueError: The conditions hold what no file can.
        OSError: The file cannot be written.
    """
    path = pathlib.Path(path).expanduser().absolute()
    check_target(path, overwrite=overwrite)
    structure, arrays = tree.describe(conditions, "conditions")
    stored = {name: np.asarray(jax.device_get(x)) for name, x in arrays.items()}
    header = {
        "format": _FORMAT,
        "fdjax": installed_version(),
        "settings": _settings(conditioner, random_weights),
        "size": list(size),
        "structure": structure,
    }
    header["sha256"] = _digest(header, stored)
    with signals.held(), files.explain_full_disk(path), files.atomic_output(path) as to:
        safetensors_format.write_safetensors(to, stored, {_HEADER: json.dumps(header)})


def load_embeddings(
    path: str | os.PathLike,
    *,
    conditioner: Conditioner,
    size: tuple[int, int],
    random_weights: bool = False,
) -> Conditions:
    """Conditions as `save_embeddings` wrote them, bit for bit.

    Args:
        path: The file; or one that the method's own program wrote by `torch.save`, if
            the conditioner knows such.
        conditioner: Of the settings that they were made with: networks, dtypes, the
            addresses of weights, the negative prompt. Its weights are not needed.
        size: Rows and columns that this run asks for; they matter to a first frame.
        random_weights: Whether this run's weights are untrained.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: It holds no embeddings, is damaged, or does not fit: says in what.
    """
    path = pathlib.Path(path).expanduser()
    if published.is_torch_file(path):
        return published.load(path, conditioner=conditioner, size=size)
    header = _read_header(path)
    check_same(
        f"{path} holds embeddings of another encoder or of other settings",
        header["settings"],
        _settings(conditioner, random_weights),
    )
    tensors, _ = safetensors_format.read_safetensors(path)
    stored = {name: tensor.read() for name, tensor in tensors.items()}
    if _digest(header, stored) != header["sha256"]:
        raise ValueError(
            f"{path} is damaged: it does not match its checksum; make it again."
        )
    arrays = {name: jnp.asarray(value) for name, value in stored.items()}
    try:
        conditions = tree.build(header["structure"], arrays)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from None
    if not isinstance(conditions, Conditions):
        raise ValueError(
            f"{path} must hold conditions, it holds a {type(conditions).__name__}."
        )
    try:
        _ = conditions.batch_size
        check_conditions(conditions)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    if conditions.image is not None and header["size"] != list(size):
        made, asked = (f"{tall} x {wide}" for tall, wide in (header["size"], size))
        raise ValueError(
            f"{path} holds a first frame for a run of {made} pixels, this run is "
            f"{asked}; set pixel_height and pixel_width to those, or encode it again."
        )
    return conditions


def prepare(config: Any, conditioner: Conditioner | None) -> Conditions | None:
    """What `embeddings_path` holds; sees whether `save_embeddings_path` can be written.

    Args:
        config: Of a run.
        conditioner: Of its pipeline.

    Raises:
        ValueError, OSError: As `load_embeddings` and `check_target`; or there is no
            conditioner.
    """
    target, source = config.save_embeddings_path, config.embeddings_path
    if target is None and source is None:
        return None
    if conditioner is None:
        raise ValueError(
            f"{config.runner_name} has no encoder of conditions, so there are no "
            "embeddings to keep; leave save_embeddings_path and embeddings_path out."
        )
    if target is not None:
        check_target(target, overwrite=config.overwrite)
        return None
    conditions = load_embeddings(source, conditioner=conditioner, **_run_of(config))
    if config.progress is not False:
        _log.info("Prompt and image are those of %s.", source)
    return conditions


def keep(
    config: Any, conditioner: Conditioner | None, conditions: Conditions
) -> RunnerResult:
    """Writes the conditions of a run to its `save_embeddings_path`."""
    path = pathlib.Path(config.save_embeddings_path).expanduser()
    if conditioner is not None and jax.process_index() == 0:
        save_embeddings(
            path,
            conditions,
            conditioner=conditioner,
            overwrite=config.overwrite,
            **_run_of(config),
        )
        _log.info("Wrote %s; --embeddings_path takes it.", path.absolute())
    return RunnerResult(
        output=path, outputs=(path,), files=(path,), num_frames=0, stats=[]
    )


def _run_of(config: Any) -> dict[str, Any]:
    size = config.pixel_height, config.pixel_width
    return {"size": size, "random_weights": config.random_weights}


def check_target(path: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Checks, before anything expensive, that a file can be written; makes its folder.

    Raises:
        FileExistsError: There is something at `path`, and `overwrite` is off.
        IsADirectoryError: It is a folder.
        PermissionError: Its folder cannot be made or written.
    """
    path = pathlib.Path(path).expanduser().absolute()
    if path.is_dir():
        raise IsADirectoryError(
            f"save_embeddings_path must be a file, {path} is a folder."
        )
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(
            f"{path} exists; remove it, choose another path, or set overwrite."
        )
    files.check_output_dir(path.parent)


def _settings(conditioner: Conditioner, random_weights: bool) -> dict[str, Any]:
    """What embeddings depend on besides the prompt and the image."""
    weights = "random" if random_weights else "trained"
    return {"weights": weights} | settings_of(conditioner.config)


def _digest(header: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the arrays and of all that is said of them."""
    said = {name: value for name, value in header.items() if name != "sha256"}
    text = json.dumps([said, checksum(stored)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_header(path: pathlib.Path) -> dict[str, Any]:
    if path.is_dir():
        raise ValueError(f"embeddings_path must be a file, {path} is a folder.")
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no embeddings at {path}; --save_embeddings_path writes them."
        )
    stored = safetensors_format.read_safetensors_header(path).get("__metadata__", {})
    try:
        header = json.loads(stored[_HEADER])
        version, _ = header["format"], header["sha256"]
        parts = [header[name] for name in ("settings", "structure")]
        _tall, _wide = map(int, header["size"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(
            f"{path} holds no embeddings, as --save_embeddings_path writes them, or it "
            "is damaged."
        ) from None
    if version != _FORMAT or not all(isinstance(part, dict) for part in parts):
        raise ValueError(
            f"{path} must hold embeddings of format {_FORMAT}, it is of format "
            f"{version!r}."
        )
    return dict(header)
