"""Cosmos-Reason1 as a component: prompts in, features of all its layers out."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params
from fdjax.config import DTypeName
from fdjax.contract.conditioner import TextEncoder, TextEncoderConfig
from fdjax.nn.random_params import random_params
from fdjax_models.networks.cosmos_reason1.features import (
    Concatenation,
    join_layers,
    joined_width,
    normalize_rows,
)
from fdjax_models.networks.cosmos_reason1.model import Qwen2Decoder
from fdjax_models.networks.cosmos_reason1.tokenizer import (
    Tokenizer,
    byte_tokenizer,
    load_tokenizer,
)
from fdjax_models.networks.prompts import (
    TokenizedPrompts,
    check_vocabulary,
    pad_prompts,
)


class CosmosReason1Encoder(TextEncoder):
    """Qwen2.5-VL over a chat that holds the prompt; every layer's states count.

    Rows of padding carry values: no token sees those after it, so they leave the
    prompt's rows alone, and the models that read the features attend to them too.
    """

    architecture: ClassVar[str] = "cosmos_reason1"
    weight_fields: ClassVar[tuple[str, ...]] = (
        "num_heads",
        "num_kv_heads",
        "rope_theta",
        "epsilon",
    )
    config: "CosmosReason1EncoderConfig"

    @functools.cached_property
    def module(self) -> Qwen2Decoder:
        """The network."""
        config = self.config
        return Qwen2Decoder(
            vocab_size=config.vocab_size,
            width=config.width,
            mlp_dim=config.mlp_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rope_theta=config.rope_theta,
            epsilon=config.epsilon,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.dtype),
        )

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        if self.config.tokenizer_path is None:
            return byte_tokenizer(self.config.vocab_size)
        return load_tokenizer(self.config.tokenizer_path)

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters in the config's dtype."""
        # One token: no parameter depends on the length.
        token_ids = jnp.zeros((1, 1), jnp.int32)
        shapes = jax.eval_shape(self.module.init, key, token_ids)["params"]
        return random_params(shapes, key)

    def check_files(self) -> None:
        """Reads the tokenizer."""
        _ = self._tokenizer

    def tokenize(self, text: Sequence[str]) -> TokenizedPrompts:
        """The chats of the prompts as ids; warns of prompts that are too long.

        A chat that is too long loses its end, the marks of the turn included.

        Raises:
            FileNotFoundError: The tokenizer is missing.
            ValueError: The tokenizer does not fit, or `text` is not a list of prompts.
        """
        tokens = pad_prompts(
            text,
            to_ids=self._tokenizer.to_ids,
            max_length=self.config.max_length,
            pad_id=self._tokenizer.pad_id,
            keep_end=False,
        )
        config = self.config
        check_vocabulary(tokens, config.vocab_size, config.tokenizer_path)
        return tokens

    def encode(self, params: Params, text: Sequence[str]) -> Array:
        """Features of the prompts.

        Args:
            params: Weights.
            text: B prompts.

        Returns:
            One row per token, those of padding included.
            dtype[B, max_length, embedding_dim].
        """
        return self.encode_tokens(params, self.tokenize(text))

    @functools.partial(jax.jit, static_argnums=0)
    def encode_tokens(self, params: Params, tokens: TokenizedPrompts) -> Array:
        """Features of prompts that are already tokenized.

        Args:
            params: Weights.
            tokens: int32[B, P] and int32[B].

        Returns:
            dtype[B, P, embedding_dim].
        """
        config = self.config
        states: Any = self.module.apply({"params": params}, tokens.token_ids)
        return join_layers(
            [normalize_rows(state) for state in states],
            config.embedding_concat_strategy,
            config.n_layers_per_group,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosReason1EncoderConfig(TextEncoderConfig):
    """Cosmos-Reason1-7B, as Cosmos-Predict2.5 and OmniDreams use it.

    Sizes: config.json of nvidia/Cosmos-Reason1-7B.
    """

    _target: type = CosmosReason1Encoder

    checkpoint_path: str | None = None
    """Where the weights are; None for random ones."""

    tokenizer_path: str | None = None
    """A `tokenizer.json`, the folder it is in, or hf://owner/repo/…/tokenizer.json.

    None: bytes stand in for tokens, which only suits random weights."""

    max_length: int = 512
    """Tokens per prompt after padding or truncation, P; its chat counts."""

    vocab_size: int = 152064
    """Rows of the embedding."""

    width: int = 3584
    """Model width."""

    mlp_dim: int = 18944
    """Width inside the gated MLP."""

    num_layers: int = 28
    """Number of layers."""

    num_heads: int = 28
    """Heads of queries; divides width."""

    num_kv_heads: int = 4
    """Heads of keys and values; divides num_heads."""

    rope_theta: float = 1e6
    """Base of the rotary wavelengths."""

    epsilon: float = 1e-6
    """Added to the mean square in the norms."""

    embedding_concat_strategy: Concatenation = "full_concat"
    """Features of all layers side by side (28 x 3584 = 100352), their mean (3584), or
    means of groups of layers side by side."""

    n_layers_per_group: int = 5
    """Layers of a group, for pool_every_n_layers_and_concat."""

    dtype: DTypeName = "bfloat16"
    """Type of weights and activations; logits, softmax and norms use float32."""

    def __post_init__(self) -> None:
        if self.checkpoint_path is not None and self.tokenizer_path is None:
            raise ValueError(
                f"checkpoint_path={self.checkpoint_path!r} needs the tokenizer it was "
                "trained with: set tokenizer_path."
            )
        for name in ("max_length", "num_layers", "num_kv_heads", "n_layers_per_group"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        if self.num_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                "num_heads must be a multiple of num_kv_heads, got "
                f"{self.num_heads} and {self.num_kv_heads}."
            )
        if self.width % self.num_heads or self.head_dim % 2:
            raise ValueError(
                "width must be an even multiple of num_heads, got "
                f"{self.width} and {self.num_heads}."
            )

    @property
    def head_dim(self) -> int:
        """Width of a head, D."""
        return self.width // self.num_heads

    @property
    def embedding_dim(self) -> int:
        """Features of a token, C."""
        return joined_width(
            self.width,
            self.num_layers,
            self.embedding_concat_strategy,
            self.n_layers_per_group,
        )
