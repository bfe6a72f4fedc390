"""Encoders that put something in front of an HD-map encoder, or beside it."""

import functools
from typing import Any

import jax

from fdjax.axes import Params
from fdjax.contract.component import ParametricComponent
from fdjax.contract.encoder import StreamingEncoder


class HdmapWrapper(StreamingEncoder):
    """Base of encoders whose parameters are those of the HD-map encoder inside.

    Their config has it as `hdmap`.
    """

    config: Any

    @functools.cached_property
    def hdmap(self) -> StreamingEncoder:
        """Encodes the maps."""
        encoder: StreamingEncoder = self.config.hdmap.setup()
        return encoder

    @property
    def params_owner(self) -> ParametricComponent:
        """Whoever owns the HD-map encoder's parameters."""
        return self.hdmap.params_owner

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters of the HD-map encoder."""
        return self.hdmap.init_params(key)
