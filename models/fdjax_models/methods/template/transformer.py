"""The streaming transformer: a key/value cache, guidance, and one network."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.attention.attend import attend
from fdjax.attention.kv_cache import KVCache, KVLayout
from fdjax.attention.rope import Rope3D, RopeTable, rope_table
from fdjax.axes import Array, Params
from fdjax.config import DTypeName
from fdjax.contract.conditioner import Conditions
from fdjax.contract.transformer import Transformer, TransformerConfig
from fdjax.nn.random_params import random_params
from fdjax.streaming.patches import patchify, unpatchify
from fdjax_models.methods.template.network import TemplateNetwork


@flax.struct.dataclass(kw_only=True)
class TemplateCache:
    """What a rollout remembers. With guidance the batch is doubled.

    Attributes:
        kv: Keys and values of the committed chunks.
        context: What the conditions add to every token.  [B, 1, M].
        height: Latent rows. Static.
        width: Latent columns. Static.
    """

    kv: KVCache
    context: Array
    height: int = flax.struct.field(pytree_node=False)
    width: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass(kw_only=True)
class TemplateWorkspace:
    """The cache, and what is computed once per chunk.

    Attributes:
        cache: The cache; only the current chunk's own slots change.
        control: What the control adds to each token, or None.  [B, L, M].
        table: Rotation of the chunk's tokens.
    """

    cache: TemplateCache
    control: Array | None
    table: RopeTable


class TemplateTransformer(Transformer):
    """Streams `TemplateNetwork` chunk by chunk."""

    config: "TemplateTransformerConfig"

    @property
    def needs_negative_text(self) -> bool:
        """Whether guidance is on."""
        return self.config.guidance_scale > 1

    @functools.cached_property
    def network(self) -> TemplateNetwork:
        """The weights' owner."""
        return TemplateNetwork(
            out_features=self.config.patch_features,
            model_dim=self.config.model_dim,
            num_heads=self.config.num_heads,
            dtype=self.config.dtype,
        )

    @functools.cached_property
    def rope(self) -> Rope3D:
        """Rotary embedding of (time, row, column)."""
        return Rope3D(
            head_dim=self.config.head_dim,
            interleaved=False,
            extrapolation=(1.0, 3.0, 3.0),
        )

    def init_params(self, key: jax.Array) -> Params:
        """Random weights."""

        def everything(network: TemplateNetwork) -> None:
            tokens = jnp.zeros((1, 1, self.config.patch_features))
            context = network.context(jnp.zeros((1, 1, self.config.context_dim)))
            network(tokens, jnp.zeros(()), context, None, lambda q, k, v: (q, None))

        init = functools.partial(self.network.init, method=everything)
        return random_params(jax.eval_shape(init, key)["params"], key)

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> TemplateCache:
        """An empty cache.

        Args:
            params: Weights.
            conditions: `text` [B, P, context_dim], with guidance `negative_text` too.
            height: Latent rows.
            width: Latent columns.

        Raises:
            ValueError: The size is no multiple of the patch, or a condition is missing.
        """
        _, rows, columns = self.config.patch_size
        if height % rows or width % columns:
            raise ValueError(
                f"Latent height and width must be multiples of {rows} and {columns}, "
                f"the patch size, got {height} x {width}."
            )
        context = self._context(params, conditions)
        kv = KVCache.create(
            self._layout(height, width),
            num_layers=1,
            batch=len(context),
            num_heads=self.config.num_heads,
            head_dim=self.config.head_dim,
            dtype=jnp.dtype(self.config.dtype),
        )
        return TemplateCache(kv=kv, context=context, height=height, width=width)

    def update_conditions(
        self, params: Params, cache: TemplateCache, conditions: Conditions
    ) -> TemplateCache:
        """The cache with new conditions; what was generated stays visible."""
        return dataclasses.replace(cache, context=self._context(params, conditions))

    def latent_shape(self, cache: TemplateCache) -> tuple[int, int, int]:
        """(B, L, C * patch volume) of one chunk."""
        batch = len(cache.context) // (2 if self.needs_negative_text else 1)
        layout = self._layout(cache.height, cache.width)
        return batch, layout.chunk, self.config.patch_features

    def start(
        self, params: Params, cache: TemplateCache, control: Array | None
    ) -> TemplateWorkspace:
        """The control's embedding and the rotation, once per chunk."""
        if control is not None:
            tokens = self._branches(self.patchify(control))
            control = self._apply(params, tokens, method="control")
        frames = self.config.len_t // self.config.patch_size[0]
        height, width = self._grid(cache.height, cache.width)
        angles = self.rope.angles(
            jnp.arange(frames),
            height,
            width,
            offset=cache.kv.num_tokens // (height * width),
        )
        table = rope_table(angles, self.config.dtype)
        return TemplateWorkspace(cache=cache, control=control, table=table)

    def stop(self, workspace: TemplateWorkspace) -> TemplateCache:
        """The cache of a workspace."""
        return workspace.cache

    def predict_flow(
        self,
        params: Params,
        latent: Array,
        timestep: Array,
        workspace: TemplateWorkspace,
        control: Array | None,
    ) -> tuple[TemplateWorkspace, Array]:
        """One evaluation, or with guidance two in one batch; see `Transformer`.

        flow = unconditional + guidance_scale * (conditional - unconditional)
        (classifier-free guidance, arXiv:2207.12598, equation 6, with s = 1 + w).
        """
        del control  # embedded in the workspace
        cache = workspace.cache
        layout = self._layout(cache.height, cache.width)

        def attention(query: Array, key: Array, value: Array) -> tuple[Array, KVCache]:
            position = cache.kv.num_tokens
            key = self.rope.rotate(key, workspace.table)
            keys = layout.write(cache.kv.keys[0], key, position)
            values = layout.write(cache.kv.values[0], value, position)
            query = self.rope.rotate(query, workspace.table)
            length = layout.valid_length(position)
            output = attend(query, keys, values, length=length)
            return output, dataclasses.replace(cache.kv, keys=(keys,), values=(values,))

        flow, kv = self._apply(
            params,
            self._branches(latent),
            timestep,
            cache.context,
            workspace.control,
            attention,
        )
        if self.needs_negative_text:
            conditional, unconditional = jnp.split(flow, 2)
            scale = self.config.guidance_scale
            flow = unconditional + scale * (conditional - unconditional)
        return dataclasses.replace(
            workspace, cache=dataclasses.replace(cache, kv=kv)
        ), flow

    def append(
        self,
        params: Params,
        latent: Array,
        timestep: Array,
        cache: TemplateCache,
        control: Array | None,
    ) -> TemplateCache:
        """The cache with one clean chunk committed, by one more forward pass."""
        workspace = self.start(params, cache, control)
        workspace, _ = self.predict_flow(params, latent, timestep, workspace, control)
        kv = workspace.cache.kv
        tokens = self._layout(cache.height, cache.width).chunk
        return dataclasses.replace(
            cache, kv=dataclasses.replace(kv, num_tokens=kv.num_tokens + tokens)
        )

    def patchify(self, latent: Array) -> Array:
        """[B, T, H, W, C] to [B, L, C * patch volume]."""
        return patchify(latent, self.config.patch_size)

    def unpatchify(self, latent: Array, cache: TemplateCache) -> Array:
        """The inverse of `patchify`."""
        sizes = self.config.len_t, cache.height, cache.width
        return unpatchify(latent, sizes, self.config.patch_size)

    def _apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        return self.network.apply({"params": params}, *args, **kwargs)

    def _context(self, params: Params, conditions: Conditions) -> Array:
        text, negative = conditions.text, conditions.negative_text
        if text is None or (self.needs_negative_text and negative is None):
            raise ValueError(
                "conditions must hold text, and with guidance_scale > 1 negative_text; "
                f"got guidance_scale={self.config.guidance_scale}, text "
                f"{'missing' if text is None else 'given'}, negative_text "
                f"{'missing' if negative is None else 'given'}."
            )
        if self.needs_negative_text and negative is not None:
            text = jnp.concatenate([text, negative])
        return self._apply(params, text, method="context")

    def _branches(self, x: Any) -> Array:
        """Repeats the batch for the unconditional branch, if there is one."""
        return jnp.concatenate([x, x]) if self.needs_negative_text else x

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches along rows and columns."""
        _, rows, columns = self.config.patch_size
        return height // rows, width // columns

    def _layout(self, height: int, width: int) -> KVLayout:
        """The cache's layout in tokens."""
        rows, columns = self._grid(height, width)
        frames = self.config.frame_layout
        return KVLayout(
            sink=frames.sink * rows * columns,
            window=frames.window * rows * columns,
            chunk=frames.chunk * rows * columns,
        )


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
        _ = self.frame_layout

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.model_dim // self.num_heads

    @property
    def patch_features(self) -> int:
        """Features of a token: channels times the volume of a patch."""
        frames, rows, columns = self.patch_size
        return self.channels * frames * rows * columns

    @property
    def frame_layout(self) -> KVLayout:
        """The cache's layout in frames of tokens.

        Raises:
            ValueError: The sizes cannot work together.
        """
        sizes = (self.sink_size_t, self.window_size_t, self.len_t)
        frames = self.patch_size[0]
        if any(size % frames for size in sizes):
            raise ValueError(
                "sink_size_t, window_size_t and len_t must be multiples of "
                f"{frames}, the frames of a patch, got {sizes}."
            )
        sink, window, chunk = (size // frames for size in sizes)
        return KVLayout(sink=sink, window=window, chunk=chunk)
