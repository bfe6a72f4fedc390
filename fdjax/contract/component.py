"""Components that own weights: initialise, describe, say where they are."""

import abc
from collections.abc import Mapping
from typing import ClassVar

import jax

from fdjax.axes import Params, PyTree
from fdjax.config import Component


class ParametricComponent(Component, abc.ABC):
    """A component with parameters; its config may name a checkpoint.

    `fdjax.checkpoint.load_params` loads them.

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

    @property
    def parts(self) -> "Mapping[str, ParametricComponent]":
        """Components whose parameters are this one's, by name; none unless overridden.

        Each has a checkpoint of its own, and random parameters from a key of its own.
        """
        return {}

    def part_keys(self, key: jax.Array) -> dict[str, jax.Array]:
        """The key of each part's random parameters, by its name."""
        keys = jax.random.split(key, len(self.parts))
        return dict(zip(self.parts, keys, strict=True))

    @property
    def params_owner(self) -> "ParametricComponent":
        """The component that the parameters belong to: one that wraps another gives it.

        Its config names the checkpoint, and its fields are what weights are checked by.
        """
        return self

    @property
    def checkpoint_path(self) -> str | None:
        """Where the parameters are; None if the config names no checkpoint."""
        return getattr(self.params_owner.config, "checkpoint_path", None)

    def check_files(self) -> None:
        """Checks the files that are needed besides the parameters.

        It is called before gigabytes of parameters are read.

        Raises:
            FileNotFoundError: One is missing.
            ValueError: One does not fit.
        """


def leaves(
    components: Mapping[str, ParametricComponent],
) -> dict[str, ParametricComponent]:
    """The components that a checkpoint fills each: parts in the place of their whole.

    A part is called `whole/part`.
    """
    found: dict[str, ParametricComponent] = {}
    for name, component in components.items():
        inner = leaves(component.parts) or {"": component}
        for path, part in inner.items():
            found[f"{name}/{path}" if path else name] = part
    return found
