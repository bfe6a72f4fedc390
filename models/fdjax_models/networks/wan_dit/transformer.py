"""The Wan DiT as a streaming transformer: caches, guidance, image conditioning."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fdjax.attention.kv_cache import KVCache, KVLayout
from fdjax.attention.rope import Rope3D, RopeTable, rope_table
from fdjax.axes import Array, Params
from fdjax.contract.conditioner import Conditions
from fdjax.contract.transformer import Transformer, TransformerConfig
from fdjax.streaming.patches import patchify, unpatchify
from fdjax_models.networks.wan_dit.attention import (
    LayerKV,
    SelfContainedAttention,
    StreamingAttention,
)
from fdjax_models.networks.wan_dit.block import ContextKV
from fdjax_models.networks.wan_dit.cache import WanCache, WanWorkspace
from fdjax_models.networks.wan_dit.checks import (
    as_wan_control,
    check_conditions,
    check_control,
)
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl
from fdjax_models.networks.wan_dit.dit import WAN_1_3B, WanDiT, WanDiTConfig
from fdjax_models.networks.wan_dit.image_conditioning import (
    MASK_CHANNELS,
    concatenate,
    per_token_timestep,
    stamp,
)


class WanTransformer(Transformer):
    """Streams a Wan DiT chunk by chunk.

    Self-attention sees the first `sink_size_t` latent frames and the newest
    `window_size_t`, the current chunk included. With `window_size_t == len_t` and no
    sink a chunk sees only itself: bidirectional generation, which keeps no cache.
    """

    architecture = "wan_dit"
    weight_fields = ("network.num_heads", "network.patch_size")
    config: "WanTransformerConfig"

    @property
    def needs_negative_text(self) -> bool:
        """Whether guidance is on."""
        return self.config.guidance_scale > 1.0

    @functools.cached_property
    def network(self) -> WanDiT:
        """The weights' owner."""
        return self.config.network.setup()

    @functools.cached_property
    def rope(self) -> Rope3D:
        """Rotary embedding; Wan pairs neighbouring features."""
        cfg = self.config
        return Rope3D(
            head_dim=cfg.network.head_dim,
            interleaved=True,
            extrapolation=(1.0, cfg.h_extrapolation_ratio, cfg.w_extrapolation_ratio),
        )

    def init_params(self, key: jax.Array) -> Params:
        """Random weights of the network."""
        return self.config.network.init_params(key)

    # Conditions and cache

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> WanCache:
        """An empty cache; cross-attention keys and values are computed here, once.

        Args:
            params: Weights.
            conditions: Text, negative text if and only if guidance is on, and the
                image embedding if the network has an image branch.
            height: Latent rows.
            width: Latent columns.

        Raises:
            ValueError: The size is no multiple of the patch, or a condition does not
                fit.
        """
        network = self.config.network
        _, patch_height, patch_width = network.patch_size
        if min(height, width) < 1 or height % patch_height or width % patch_width:
            raise ValueError(
                f"Latent height and width must be positive multiples of {patch_height} "
                f"and {patch_width}, the patch size, got {height} x {width}."
            )
        batch = conditions.batch_size
        layout = self._layout(height, width)
        kv = KVCache.create(
            layout,
            num_layers=network.num_layers if self._has_memory else 0,
            batch=batch * self._num_branches,
            num_heads=network.num_heads,
            head_dim=network.head_dim,
            dtype=jnp.dtype(network.dtype),
        )
        context = self._context(params, conditions)
        return WanCache(kv=kv, context=context, batch=batch, height=height, width=width)

    def update_conditions(
        self, params: Params, cache: WanCache, conditions: Conditions
    ) -> WanCache:
        """The cache with a new prompt; what was generated stays visible.

        Raises:
            ValueError: Another number of sessions, or a condition does not fit.
        """
        if conditions.batch_size != cache.batch:
            raise ValueError(
                f"New conditions must be for the cache's {cache.batch} sessions, got "
                f"{conditions.batch_size}; start a new rollout for another number."
            )
        return dataclasses.replace(cache, context=self._context(params, conditions))

    def latent_shape(self, cache: WanCache) -> tuple[int, int, int]:
        """(B, L, C * patch volume) of one chunk."""
        network = self.config.network
        layout = self._layout(cache.height, cache.width)
        return cache.batch, layout.chunk, network.out_dim * network.patch_volume

    def _context(
        self, params: Params, conditions: Conditions
    ) -> tuple[ContextKV | None, ...]:
        check_conditions(self.config, conditions)
        negative = conditions.negative_text if self.needs_negative_text else None
        texts = [text for text in (conditions.text, negative) if text is not None]
        text = jnp.concatenate(texts) if texts else None
        image = conditions.image_embedding if self.config.network.image_dim else None
        image = self._both_branches(image)
        return self._apply(params, text, image, method="context")

    # One chunk

    def start(
        self, params: Params, cache: WanCache, control: WanControl | ImageControl | None
    ) -> WanWorkspace:
        """Rotations, camera modulation and rotated cached keys of one chunk.

        Raises:
            ValueError: The control lacks what the network takes, or has other shapes.
        """
        control = as_wan_control(control)
        size = cache.batch, self.config.len_t, cache.height, cache.width
        check_control(self.config, size, control)
        camera = None
        if self.config.network.control_dim and control.rays is not None:
            rays = self._both_branches(self.patchify(control.rays))
            camera = self._apply(params, rays, method="camera")
        rotated_keys: tuple[Array, ...] = ()
        if self._has_memory and not self.config.apply_rope_before_kvcache:
            layout = self._frame_layout
            table = self._table(cache, layout.slot_positions(self._num_frames(cache)))
            rotated_keys = tuple(
                self.rope.rotate(keys, table) for keys in cache.kv.keys
            )
        return WanWorkspace(
            cache=cache,
            rotated_keys=rotated_keys,
            table=self._chunk_table(cache),
            camera=camera,
        )

    def stop(self, workspace: WanWorkspace) -> WanCache:
        """The cache of a workspace."""
        return workspace.cache

    def predict_flow(
        self,
        params: Params,
        latent: Array,
        timestep: Array,
        workspace: WanWorkspace,
        control: WanControl | ImageControl | None,
    ) -> tuple[WanWorkspace, Array]:
        """One evaluation, or with guidance two in one batch; see `Transformer`.

        flow = unconditional + guidance_scale * (conditional - unconditional)
        (classifier-free guidance, arXiv:2207.12598, equation 6, with s = 1 + w).
        """
        cache = workspace.cache
        before = tuple(
            LayerKV(keys, values)
            for keys, values in zip(
                workspace.rotated_keys or cache.kv.keys, cache.kv.values, strict=True
            )
        )
        states, flow = self._forward(
            params, latent, timestep, workspace, control, before
        )
        if self._has_memory:
            keys = tuple(state.keys for state in states)
            values = tuple(state.values for state in states)
            if workspace.rotated_keys:
                workspace = dataclasses.replace(workspace, rotated_keys=keys)
                keys = cache.kv.keys
            kv = dataclasses.replace(cache.kv, keys=keys, values=values)
            workspace = dataclasses.replace(
                workspace, cache=dataclasses.replace(cache, kv=kv)
            )
        if self.needs_negative_text:
            conditional, unconditional = jnp.split(flow, 2)
            scale = self.config.guidance_scale
            flow = unconditional + scale * (conditional - unconditional)
        return workspace, flow

    def append(
        self,
        params: Params,
        latent: Array,
        timestep: Array,
        cache: WanCache,
        control: WanControl | ImageControl | None,
    ) -> WanCache:
        """The cache with one clean chunk committed, by one more forward pass.

        The flow is not used, so the compiler leaves out the head and the last block's
        attention and MLP.
        """
        tokens = self._layout(cache.height, cache.width).chunk
        kv = dataclasses.replace(cache.kv, num_tokens=cache.kv.num_tokens + tokens)
        if not self._has_memory:
            return dataclasses.replace(cache, kv=kv)
        workspace = self.start(params, cache, control)
        relative = bool(workspace.rotated_keys)
        states = tuple(
            LayerKV(rotated, values, keys if relative else None)
            for rotated, values, keys in zip(
                workspace.rotated_keys or cache.kv.keys,
                cache.kv.values,
                cache.kv.keys,
                strict=True,
            )
        )
        states, _ = self._forward(params, latent, timestep, workspace, control, states)
        keys = tuple(
            state.keys if state.raw_keys is None else state.raw_keys for state in states
        )
        values = tuple(state.values for state in states)
        return dataclasses.replace(
            cache, kv=dataclasses.replace(kv, keys=keys, values=values)
        )

    def postprocess(
        self, latent: Array, control: WanControl | ImageControl | None
    ) -> Array:
        """With `stamp_image_latent`, the given frame replaces the generated one."""
        control = as_wan_control(control)
        if not self.config.stamp_image_latent or control.image is None:
            return latent
        return stamp(latent, control.image, self.config.network.patch_size)

    def patchify(self, latent: Array) -> Array:
        """[B, T, H, W, C] to [B, L, C * patch volume], features (channel, t, h, w)."""
        return patchify(latent, self.config.network.patch_size)

    def unpatchify(self, latent: Array, cache: WanCache) -> Array:
        """The inverse of `patchify`."""
        sizes = self.config.len_t, cache.height, cache.width
        return unpatchify(latent, sizes, self.config.network.patch_size)

    def _forward(
        self,
        params: Params,
        latent: Array,
        timestep: Array,
        workspace: WanWorkspace,
        control: Any,
        states: tuple[Any, ...],
    ) -> tuple[tuple[Any, ...], Array]:
        """The network on all branches; flow float32[B or 2 B, L, C]."""
        control = as_wan_control(control)
        cache = workspace.cache
        both = self._both_branches
        if self._has_memory:
            layout = self._layout(cache.height, cache.width)
            attention: Any = StreamingAttention(
                layout, cache.kv.num_tokens, self.rope, workspace.table
            )
        else:
            attention = SelfContainedAttention(self.rope, workspace.table)
            states = (None,) * self.config.network.num_layers
        latent, timestep = self._condition(latent, timestep, cache, control.image)
        return self._apply(
            params,
            both(latent),
            both(timestep) if timestep.ndim else timestep,
            attention,
            states,
            cache.context,
            camera=workspace.camera,
            token_features=both(control.token_features),
            vector_features=both(control.vector_features),
        )

    def _apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        return self.network.apply({"params": params}, *args, **kwargs)

    def _condition(
        self,
        latent: Array,
        timestep: Array,
        cache: WanCache,
        image: ImageControl | None,
    ) -> tuple[Array, Array]:
        """The network's input and timestep, given the first frame as configured."""
        cfg, patch = self.config, self.config.network.patch_size
        if image is None:
            return latent, timestep
        if cfg.stamp_image_latent:
            latent = stamp(latent, image, patch)
        if cfg.concat_image_mask_to_latent:
            latent = concatenate(latent, image, patch)
        if cfg.ti2v_first_frame_per_token_timestep:
            value = cfg.first_frame_timestep_value
            per_token = per_token_timestep(timestep, image, value, patch)
            whole = timestep[:, None] if timestep.ndim else timestep
            timestep = jnp.where(cache.kv.num_tokens == 0, per_token, whole)
        return latent, timestep

    # Sizes and positions

    @property
    def _has_memory(self) -> bool:
        """Whether a chunk sees more than itself."""
        cfg = self.config
        return (cfg.sink_size_t, cfg.window_size_t) != (0, cfg.len_t)

    @property
    def _num_branches(self) -> int:
        return 2 if self.needs_negative_text else 1

    def _both_branches(self, x: Array | None) -> Array | None:
        """Repeats the batch for the unconditional branch, if there is one."""
        if x is None or not self.needs_negative_text:
            return x
        return jnp.concatenate([x, x])

    @functools.cached_property
    def _frame_layout(self) -> KVLayout:
        """The cache's layout, counted in frames of tokens."""
        return self.config.frame_layout

    def _layout(self, height: int, width: int) -> KVLayout:
        """The cache's layout, counted in tokens."""
        frames = self._frame_layout
        tokens = self._frame_tokens(height, width)
        return KVLayout(
            sink=frames.sink * tokens,
            window=frames.window * tokens,
            chunk=frames.chunk * tokens,
        )

    def _frame_tokens(self, height: int, width: int) -> int:
        _, patch_height, patch_width = self.config.network.patch_size
        return (height // patch_height) * (width // patch_width)

    def _num_frames(self, cache: WanCache) -> Array:
        """Frames of tokens committed so far.  int32[]."""
        return cache.kv.num_tokens // self._frame_tokens(cache.height, cache.width)

    def _chunk_table(self, cache: WanCache) -> RopeTable:
        """Rotation of the chunk's tokens.

        Absolute time, without bound; or in cache-relative mode the rank among the
        visible frames.
        """
        frames = self._num_frames(cache)
        if not self.config.apply_rope_before_kvcache:
            return self._table(cache, self._frame_layout.chunk_positions(frames))
        positions = jnp.arange(self._frame_layout.chunk, dtype=jnp.int32)
        return self._table(cache, positions, offset=frames)

    def _table(
        self, cache: WanCache, positions: Array, offset: Array | None = None
    ) -> RopeTable:
        network = self.config.network
        _, patch_height, patch_width = network.patch_size
        angles = self.rope.angles(
            positions,
            cache.height // patch_height,
            cache.width // patch_width,
            offset=offset,
        )
        return rope_table(angles, network.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanTransformerConfig(TransformerConfig):
    """Config of `WanTransformer`; `_t` counts latent frames."""

    _target: type = WanTransformer

    network: WanDiTConfig = WAN_1_3B
    """Sizes of the network."""

    checkpoint_path: str | None = None
    """Published or converted checkpoint: a path, a URL, or a Hugging Face file."""

    len_t: int = 21
    """Latent frames of one chunk."""

    window_size_t: int = 21
    """Newest latent frames that self-attention sees, the current chunk included."""

    sink_size_t: int = 0
    """First latent frames that self-attention sees for ever, besides the window."""

    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is off, above 1 needs a negative prompt."""

    apply_rope_before_kvcache: bool = True
    """True: keys are cached at their absolute time. False: cache-relative time, keys
    are cached unrotated and turned once per chunk, so that no position exceeds
    `sink_size_t + window_size_t`."""

    h_extrapolation_ratio: float = 1.0
    """NTK ratio of the rotary embedding over rows."""

    w_extrapolation_ratio: float = 1.0
    """NTK ratio of the rotary embedding over columns."""

    stamp_image_latent: bool = False
    """Image-to-video by replacing: the given frame's latent overwrites the noisy one
    in the network's input at every step, and the clean one at the end."""

    concat_image_mask_to_latent: bool = False
    """Image-to-video by concatenating 4 mask channels and the image latent to the
    network's input; needs `network.in_dim == 2 * out_dim + 4`."""

    ti2v_first_frame_per_token_timestep: bool = False
    """Wan 2.2 TI2V: tokens of the given frame have their own timestep in the first
    chunk."""

    first_frame_timestep_value: float = 0.0
    """That timestep, in [0, 1000]."""

    def __post_init__(self) -> None:
        _ = self.frame_layout
        network = self.network
        concatenated = network.out_dim + MASK_CHANNELS
        expected = network.out_dim + concatenated * self.concat_image_mask_to_latent
        if network.in_dim != expected:
            raise ValueError(
                f"network.in_dim must be {expected} for out_dim={network.out_dim} and "
                f"concat_image_mask_to_latent={self.concat_image_mask_to_latent}, got "
                f"{network.in_dim}."
            )
        if self.guidance_scale > 1 and not network.text_dim:
            raise ValueError(
                f"guidance_scale={self.guidance_scale} > 1 needs a network with text; "
                "got text_dim=0."
            )
        if not 0 <= self.first_frame_timestep_value <= 1000:
            raise ValueError(
                "first_frame_timestep_value must be in [0, 1000], got "
                f"{self.first_frame_timestep_value}."
            )

    @property
    def frame_layout(self) -> KVLayout:
        """The key/value cache's layout, counted in frames of tokens.

        Raises:
            ValueError: The sizes cannot work together.
        """
        sizes = {
            name: getattr(self, name)
            for name in ("len_t", "window_size_t", "sink_size_t")
        }
        patch = self.network.patch_size[0]
        if any(size % patch for size in sizes.values()):
            raise ValueError(
                f"len_t, window_size_t and sink_size_t must be multiples of {patch}, "
                f"the patch size in time, got {sizes}."
            )
        try:
            return KVLayout(
                sink=self.sink_size_t // patch,
                window=self.window_size_t // patch,
                chunk=self.len_t // patch,
            )
        except ValueError as error:
            raise ValueError(f"{sizes} cannot work: {error}") from error
