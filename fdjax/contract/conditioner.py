"""What a rollout is conditioned on, and the one-shot encoders that compute it."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax

from fdjax.axes import Array, Params
from fdjax.config import InstantiateConfig
from fdjax.contract.component import ParametricComponent


@flax.struct.dataclass(kw_only=True)
class Conditions:
    """Everything that stays the same over a rollout; can be saved and used again.

    Attributes:
        text: Encoded prompts.  [B, P, C].
        negative_text: Encoded negative prompts, for classifier-free guidance.
            [B, P, C].
        image_embedding: Encoded first frame, for image cross-attention.  [B, P, C].
        image: The first frame, in [-1, 1].  [B, H, W, 3], pixels.
    """

    text: Array | None = None
    negative_text: Array | None = None
    image_embedding: Array | None = None
    image: Array | None = None

    @property
    def batch_size(self) -> int:
        """Number of sessions B; 1 when nothing is conditioned on.

        Raises:
            ValueError: The parts disagree.
        """
        sizes = {
            name: len(part) for name, part in vars(self).items() if part is not None
        }
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"All conditions must have one batch size, got {sizes}; give as many "
                "prompts as images."
            )
        return next(iter(sizes.values()), 1)


class TextConditioner(ParametricComponent):
    """Turns prompts into embeddings, once per rollout."""

    @abc.abstractmethod
    def tokenize(self, text: Sequence[str]) -> Any:
        """The host's part: prompts to arrays of token ids and lengths."""

    @abc.abstractmethod
    def encode(self, params: Params, text: Sequence[str]) -> Array:
        """Embeddings of the prompts.  [B, P, C]."""


class ImageConditioner(ParametricComponent):
    """Turns first frames into embeddings, once per rollout."""

    @abc.abstractmethod
    def encode(self, params: Params, image: jax.Array) -> Array:
        """Embeddings of images `[B, H, W, 3]` in [-1, 1].  [B, P, C]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionerConfig(InstantiateConfig[Any]):
    """Base of the configs of conditioners."""
