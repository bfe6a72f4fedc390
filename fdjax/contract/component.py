"""Components that own weights: initialise, describe, load."""

import abc
from typing import ClassVar

import jax

from fdjax.axes import Params, PyTree
from fdjax.config import Component


class ParametricComponent(Component, abc.ABC):
    """A component with parameters; its config may name a checkpoint.

    Attributes:
        architecture: Which network the parameters belong to, e.g. "wan_dit". It selects
            the table that converts a published checkpoint. Empty: no published layout.
        weight_fields: Config fields, dotted, that change what weights mean without
            changing their shapes (`network.num_heads`): a checkpoint of other values
            is refused.
    """

    architecture: ClassVar[str] = ""
    weight_fields: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def init_params(self, key: jax.Array) -> Params:
        """Random parameters as a nested dict, in the dtype that the config names."""

    def param_shapes(self) -> PyTree:
        """Shapes and dtypes of the parameters, without making them."""
        return jax.eval_shape(self.init_params, jax.random.key(0))

    def load_params(self) -> Params:
        """Parameters from the checkpoint that `config.checkpoint_path` names.

        A component without parameters gives an empty dict and needs no checkpoint.

        Raises:
            ValueError: The config names no checkpoint, or it does not fit.
            FileNotFoundError: The checkpoint is missing.
        """
        if not jax.tree.leaves(self.param_shapes()):
            return {}
        from fdjax import checkpoint

        return checkpoint.load_params(self)
