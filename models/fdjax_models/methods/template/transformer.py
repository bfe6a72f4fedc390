"""The streaming transformer of the template: conditions, control, one network."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fdjax.attention.rope import Rope3D
from fdjax.axes import Array, Params
from fdjax.config import DTypeName
from fdjax.contract.conditioner import Conditions
from fdjax.contract.transformer import TransformerConfig
from fdjax.nn.random_params import random_params
from fdjax.streaming.attention import SelfAttentionFn
from fdjax.streaming.cache import StreamCache, Workspace
from fdjax.streaming.dit import StreamingDiT
from fdjax.streaming.layout import StreamLayout
from fdjax_models.methods.template.network import TemplateNetwork


class TemplateTransformer(StreamingDiT):
    """Streams `TemplateNetwork` chunk by chunk."""

    config: "TemplateTransformerConfig"

    @functools.cached_property
    def network(self) -> TemplateNetwork:
        """The weights' owner."""
        return TemplateNetwork(
            out_features=self.layout.features,
            model_dim=self.config.model_dim,
            num_heads=self.config.num_heads,
            dtype=self.config.dtype,
        )

    @functools.cached_property
    def layout(self) -> StreamLayout:
        """The sizes of streaming."""
        return self.config.layout

    def init_params(self, key: jax.Array) -> Params:
        """Random weights."""
        # [B, P, C]: only its last axis decides the shapes of weights.
        text = jnp.zeros((1, 1, self.config.context_dim))
        init = functools.partial(self.network.init, method="touch")
        return random_params(jax.eval_shape(init, key, text)["params"], key)

    def context(self, params: Params, conditions: Conditions) -> Array:
        """What the conditions add to every token, [B G, 1, M].

        Args:
            params: Weights.
            conditions: `text` [B, P, context_dim], with guidance `negative_text` too.
        """
        text, negative = conditions.text, conditions.negative_text
        wanted = {"text": text}
        if self.layout.num_branches > 1:
            wanted["negative_text"] = negative
        if missing := [name for name, array in wanted.items() if array is None]:
            raise ValueError(
                f"conditions must hold {' and '.join(wanted)}; {missing[0]} missing. "
                "Guidance needs a negative_prompt in the conditioner."
            )
        return self._apply(params, self.rows(text, negative), method="context")

    def prepare(
        self, params: Params, cache: StreamCache, control: Array | None
    ) -> Array | None:
        """What the control adds to each token, [B G, L, M]."""
        if control is None:
            return None
        # [B, T, H, W, C] -> [B G, L, C * patch volume]
        tokens = self.rows(self.patchify(control))
        return self._apply(params, tokens, method="control")

    def forward(
        self,
        params: Params,
        latent: Array,
        timestep: Array,
        attention: SelfAttentionFn,
        states: tuple[Any, ...],
        workspace: Workspace,
    ) -> tuple[tuple[Any, ...], Array]:
        """See `StreamingDiT.forward`; there is one layer."""
        context, control = workspace.cache.context, workspace.extras
        flow, state = self._apply(
            params, latent, timestep, context, control, attention, states[0]
        )
        return (state,), flow

    def _apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        return self.network.apply({"params": params}, *args, **kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplateTransformerConfig(TransformerConfig):
    """Config of `TemplateTransformer`; `_t` counts latent frames."""

    _target: type = TemplateTransformer

    checkpoint_path: str | None = None
    """Where the weights are: a path, a URL, or a Hugging Face file."""

    channels: int = 4
    """Channels of the latent."""

    context_dim: int = 16
    """Channels of the conditions."""

    patch_size: tuple[int, int, int] = (2, 2, 2)
    """Frames, rows and columns of a patch."""

    model_dim: int = 128
    """Width of the network."""

    num_heads: int = 2
    """Attention heads; they divide `model_dim`."""

    len_t: int = 2
    """Latent frames of one chunk."""

    window_size_t: int = 4
    """Newest latent frames that attention sees, the current chunk included."""

    sink_size_t: int = 0
    """First latent frames that attention sees for ever, besides the window."""

    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is off, above 1 needs negative conditions."""

    dtype: DTypeName = "bfloat16"
    """Computation dtype."""

    def __post_init__(self) -> None:
        if self.model_dim % self.num_heads:
            raise ValueError(
                f"num_heads must divide model_dim, got {self.num_heads} and "
                f"{self.model_dim}."
            )
        _ = self.layout

    @property
    def layout(self) -> StreamLayout:
        """The sizes of streaming.

        Raises:
            ValueError: The sizes cannot work together.
        """
        return StreamLayout(
            channels=self.channels,
            patch_size=self.patch_size,
            num_layers=1,
            num_heads=self.num_heads,
            rope=Rope3D(
                head_dim=self.model_dim // self.num_heads,
                interleaved=False,
                extrapolation=(1.0, 3.0, 3.0),
            ),
            dtype=jnp.dtype(self.dtype).name,
            len_t=self.len_t,
            window_size_t=self.window_size_t,
            sink_size_t=self.sink_size_t,
            guidance_scale=self.guidance_scale,
        )
