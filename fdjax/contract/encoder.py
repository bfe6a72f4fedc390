"""The contract of a per-chunk control encoder, and the encoder that does nothing."""

import abc
import dataclasses

import jax

from fdjax.axes import Params, PyTree
from fdjax.config import InstantiateConfig
from fdjax.contract.component import ParametricComponent
from fdjax.contract.conditioner import Conditions


class StreamingEncoder(ParametricComponent):
    """Turns each chunk's input into the control that the transformer reads.

    What is special about the first chunk (a causal VAE's is shorter) must show in the
    tree structure of the cache: one structure before the first chunk, one after it.
    """

    @abc.abstractmethod
    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> PyTree:
        """The state before the first chunk, for latents of `height` x `width`."""

    @abc.abstractmethod
    def encode(
        self, params: Params, cache: PyTree, input: PyTree
    ) -> tuple[PyTree, PyTree]:
        """The state after this chunk, and its control.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            input: What the caller gave to `generate`, or None.
        """


class NullEncoder(StreamingEncoder):
    """Passes the caller's input through as the control."""

    def init_params(self, key: jax.Array) -> Params:
        """No parameters."""
        del key
        return {}

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> PyTree:
        """No state."""
        del params, conditions, height, width
        return ()

    def encode(
        self, params: Params, cache: PyTree, input: PyTree
    ) -> tuple[PyTree, PyTree]:
        """The input itself."""
        del params
        return cache, input


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(InstantiateConfig[StreamingEncoder]):
    """Base of the configs of per-chunk control encoders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NullEncoderConfig(EncoderConfig):
    """Config of `NullEncoder`."""

    _target: type = NullEncoder
