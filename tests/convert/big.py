"""A component of many equal layers, to measure memory with."""

import dataclasses

import jax.numpy as jnp

from fdjax.config import InstantiateConfig
from fdjax.contract.component import ParametricComponent
from fdjax_convert.rules import Conversion, Layout, layer

RULES = layer(r"layers\.(\d+)", r"layers_\1", bias=False)


class Big(ParametricComponent):
    architecture = "big"

    def init_params(self, key):
        layers = range(self.config.num_layers)
        return {f"layers_{i}": {"kernel": jnp.zeros((1000, 1000))} for i in layers}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BigConfig(InstantiateConfig):
    _target: type = Big
    num_layers: int
    checkpoint_path: str | None = None


LAYOUT = Layout("big", "big", RULES, lambda keys: True, lambda shapes: "big")
CONFIG = BigConfig(num_layers=40)
SMALL = BigConfig(num_layers=2)

__all__ = ["CONFIG", "LAYOUT", "RULES", "SMALL", "Big", "BigConfig", "Conversion"]
