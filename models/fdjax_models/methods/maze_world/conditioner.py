"""The text encoder of maze-world: a learned vector per word."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array, Params
from fdjax.config import DTypeName
from fdjax.contract.conditioner import TextEncoder, TextEncoderConfig
from fdjax_models.methods.maze_world.text import VOCABULARY_SIZE, tokenize_prompt


class WordEncoder(TextEncoder):
    """Looks up one vector for each of the four things that a prompt can say."""

    config: "WordEncoderConfig"

    def init_params(self, key: jax.Array) -> Params:
        """Standard normal vectors."""
        shape = (VOCABULARY_SIZE, self.config.width)
        return {"table": jax.random.normal(key, shape, self.config.dtype)}

    def tokenize(self, text: Sequence[str]) -> np.ndarray:
        """Tokens of the prompts.  int32[B, P].  Logs words that are not understood."""
        # B times [P] -> [B, P]
        return np.stack([tokenize_prompt(prompt) for prompt in text])

    def encode(self, params: Params, text: Sequence[str]) -> Array:
        """Vectors of the prompts.  [B, P, C], P = 4."""
        # [VOCABULARY_SIZE, C] at [B, P] -> [B, P, C]
        return jnp.asarray(params["table"])[self.tokenize(text)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordEncoderConfig(TextEncoderConfig):
    """Config of `WordEncoder`."""

    _target: type = WordEncoder

    width: int = 64
    """Width of a word's vector."""

    dtype: DTypeName = "float32"
    """Dtype of the vectors."""

    checkpoint_path: str | None = None
    """Weights."""
