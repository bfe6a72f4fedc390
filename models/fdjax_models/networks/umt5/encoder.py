"""The text encoder of the Wan family as a component: prompts in, embeddings out."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params
from fdjax.config import DTypeName
from fdjax.contract.conditioner import TextEncoder, TextEncoderConfig
from fdjax.nn.random_params import random_params
from fdjax_models.networks.prompts import TokenizedPrompts, check_vocabulary
from fdjax_models.networks.umt5.model import Umt5Encoder
from fdjax_models.networks.umt5.tokenizer import (
    byte_tokenizer,
    load_tokenizer,
    tokenize_prompts,
)


class Umt5TextEncoder(TextEncoder):
    """UMT5 over cleaned, padded prompts; rows of padding are zero."""

    architecture: ClassVar[str] = "umt5"
    weight_fields: ClassVar[tuple[str, ...]] = (
        "num_heads",
        "head_dim",
        "max_distance",
        "epsilon",
    )
    config: "Umt5TextEncoderConfig"

    @functools.cached_property
    def module(self) -> Umt5Encoder:
        """The network."""
        config = self.config
        return Umt5Encoder(
            vocab_size=config.vocab_size,
            width=config.width,
            mlp_dim=config.mlp_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            num_buckets=config.num_buckets,
            max_distance=config.max_distance,
            epsilon=config.epsilon,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.dtype),
        )

    @functools.cached_property
    def _to_ids(self) -> Callable[[str], list[int]]:
        if self.config.tokenizer_path is None:
            return byte_tokenizer(self.config.vocab_size)
        return load_tokenizer(self.config.tokenizer_path)

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters in the config's dtype."""
        # One token: no parameter depends on the length.
        token_ids, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
        shapes = jax.eval_shape(self.module.init, key, token_ids, mask)["params"]
        return random_params(shapes, key)

    def check_files(self) -> None:
        """Reads the tokenizer."""
        _ = self._to_ids

    def tokenize(self, text: Sequence[str]) -> TokenizedPrompts:
        """Cleans and tokenizes; warns of prompts that are too long.

        Raises:
            FileNotFoundError: The tokenizer is missing.
            ValueError: The tokenizer does not fit, or `text` is not a list of prompts.
        """
        tokens = tokenize_prompts(
            text, to_ids=self._to_ids, max_length=self.config.max_length
        )
        config = self.config
        check_vocabulary(tokens, config.vocab_size, config.tokenizer_path)
        return tokens

    def encode(self, params: Params, text: Sequence[str]) -> Array:
        """Embeddings of the prompts.

        Args:
            params: Weights.
            text: B prompts.

        Returns:
            One row per token, then zeros.  dtype[B, max_length, width].
        """
        return self.encode_tokens(params, self.tokenize(text))

    @functools.partial(jax.jit, static_argnums=0)
    def encode_tokens(self, params: Params, tokens: TokenizedPrompts) -> Array:
        """Embeddings of prompts that are already tokenized.

        Args:
            params: Weights.
            tokens: int32[B, P] and int32[B].

        Returns:
            dtype[B, P, width]; rows at and after a prompt's length are zero.
        """
        # [P] < [B, 1] -> [B, P]
        positions = jnp.arange(tokens.token_ids.shape[1])
        mask = positions < tokens.lengths[:, None]
        rows: Any = self.module.apply({"params": params}, tokens.token_ids, mask)
        # Zeros, not what the encoder makes of padding: Wan's cross-attention reads
        # these rows too, without a mask.
        return jnp.where(mask[..., None], rows, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Umt5TextEncoderConfig(TextEncoderConfig):
    """UMT5-XXL, as every Wan model uses it."""

    _target: type = Umt5TextEncoder

    checkpoint_path: str | None = None
    """Where the weights are; None for random ones."""

    tokenizer_path: str | None = None
    """A `tokenizer.json`, the folder it is in, or hf://owner/repo/…/tokenizer.json.

    None: bytes stand in for tokens, which only suits random weights."""

    max_length: int = 512
    """Tokens per prompt after padding or truncation, P."""

    vocab_size: int = 256384
    """Rows of the embedding."""

    width: int = 4096
    """Model width."""

    mlp_dim: int = 10240
    """Width inside the gated MLP."""

    num_layers: int = 24
    """Number of blocks."""

    num_heads: int = 64
    """Attention heads."""

    head_dim: int = 64
    """Width of a head."""

    num_buckets: int = 32
    """Relative position buckets, both directions together."""

    max_distance: int = 128
    """Distance from which all keys share a bucket, in tokens."""

    epsilon: float = 1e-6
    """Added to the mean square in the norms."""

    dtype: DTypeName = "bfloat16"
    """Type of weights and activations; logits, softmax and norms use float32."""

    def __post_init__(self) -> None:
        if self.checkpoint_path is not None and self.tokenizer_path is None:
            raise ValueError(
                f"checkpoint_path={self.checkpoint_path!r} needs the tokenizer it was "
                "trained with: set tokenizer_path."
            )
