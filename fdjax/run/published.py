"""Embeddings that the program of a published method has kept by `torch.save`."""

import logging
import pathlib
import zipfile

import numpy as np

from fdjax import checkpoint
from fdjax.checkpoint.tensors import LazyTensor
from fdjax.contract.conditioner import Conditioner, Conditions
from fdjax.engine.conditioner import check_conditions

_log = logging.getLogger(__name__)


def is_torch_file(path: pathlib.Path) -> bool:
    """Whether a file is of the format of `torch.save`, by its content."""
    return path.is_file() and zipfile.is_zipfile(path)


def load(
    path: pathlib.Path, *, conditioner: Conditioner, size: tuple[int, int]
) -> Conditions:
    """Conditions from a file of `torch.save`; nothing in it is run.

    It says nothing of the encoder that made it: shapes and values alone are checked.

    Args:
        path: Holds a dict of tensors, or of None where there is nothing.
        conditioner: Knows the names in it; its weights are not needed.
        size: Rows and columns that this run asks for.

    Raises:
        ValueError: It cannot be read, or does not fit: says in what.
    """
    content = checkpoint.read_torch(path)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, LazyTensor | None)
        for name, value in content.items()
    ):
        raise ValueError(
            f"{path} must hold embeddings, a dict of tensors by name; it holds "
            "something else."
        )
    arrays = {
        name: None if value is None else np.asarray(value.read())
        for name, value in content.items()
    }
    try:
        conditions = conditioner.from_published(arrays, size)
        check_conditions(conditions)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    _log.warning(
        "%s does not say which encoder made it; its shapes fit this method.", path
    )
    return conditions
