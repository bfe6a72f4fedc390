"""The Cosmos DiT as a streaming transformer: first frame, HD map, several views."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params
from fdjax.contract.conditioner import Conditions
from fdjax.streaming.attention import SelfAttentionFn
from fdjax.streaming.cache import Residue, StreamCache, Workspace
from fdjax.streaming.config import StreamingDiTConfig
from fdjax.streaming.dit import StreamingDiT
from fdjax.streaming.layout import StreamLayout
from fdjax_models.networks.cosmos_dit.config import COSMOS_2B, CosmosDiTConfig
from fdjax_models.networks.cosmos_dit.control import (
    CosmosControl,
    as_cosmos_control,
    check_conditions,
    check_control,
)
from fdjax_models.networks.cosmos_dit.dit import Context, CosmosDiT, init_params
from fdjax_models.networks.wan_dit.control import ImageControl


class CosmosTransformer(StreamingDiT):
    """Streams a Cosmos DiT chunk by chunk.

    A given frame replaces the noisy latent before every pass and in the result, while
    the solver goes on with its own; one mask channel tells the network where.

    Several views lie side by side in the width of latents and controls (see
    `StreamingDiT`): self- and text-attention see one view, and every block attends
    across views frame by frame.
    """

    architecture = "cosmos_dit"
    weight_fields = ("network.num_heads", "network.patch_size")
    config: "CosmosTransformerConfig"

    @functools.cached_property
    def network(self) -> CosmosDiT:
        """The weights' owner."""
        return CosmosDiT(self.config.network)

    @functools.cached_property
    def layout(self) -> StreamLayout:
        """The sizes of streaming; see `StreamingDiT`."""
        return self.config.layout

    def init_params(self, key: jax.Array) -> Params:
        """Random weights of the network."""
        return init_params(self.config.network, key)

    def context(self, params: Params, conditions: Conditions) -> Context:
        """Cross-attention keys and values per layer, and the cameras' modulation.

        Args:
            params: Weights.
            conditions: Text, and negative text if guidance is on: [B, P, text_dim] for
                all views, or a prompt per view, [B, V, P, text_dim].
        """
        config, views = self.config, self.layout.num_views
        check_conditions(config.network, config.guidance_scale, views, conditions)
        text, negative = (
            self._by_view(each) for each in (conditions.text, conditions.negative_text)
        )
        # [V] -> [B, V] -> [B G V]
        camera = jnp.asarray(config.cameras, jnp.int32)
        camera = jnp.broadcast_to(camera, (conditions.batch_size, views))
        return self._apply(
            params,
            # [B, V, P, text_dim] twice -> [B G V, P, text_dim]
            self.rows(text, negative, by_view=True),
            self.rows(camera, by_view=True),
            method="context",
        )

    def check_control(
        self, cache: StreamCache, control: CosmosControl | ImageControl | None
    ) -> CosmosControl:
        """The control in its full form; see `StreamingDiT`."""
        control = as_cosmos_control(control)
        size = cache.batch, self.config.len_t, cache.height, cache.width
        check_control(self.config.network, size, control)
        return control

    def prepare(
        self, params: Params, cache: StreamCache, control: CosmosControl
    ) -> Array | None:
        """The HD map's tokens, [B G V, L, M]."""
        if control.hdmap is None:
            return None
        # [B, T, H, V W, C] -> [B, V L, C * patch volume] -> [B, V, L, ...]
        tokens = self.split_views(self.patchify(control.hdmap), cache)
        return self._apply(params, self.rows(tokens, by_view=True), method="control")

    def inputs(
        self,
        latent: Array,
        timestep: Array,
        cache: StreamCache,
        control: CosmosControl,
    ) -> tuple[Array, Array]:
        """Latent with the given frame, then the mask; the given frame's timestep."""
        volume = self.config.network.patch_volume
        if control.image is None:
            mask = jnp.zeros((*latent.shape[:2], volume), latent.dtype)
            return jnp.concatenate([latent, mask], axis=-1), timestep
        latent = self._with_image(latent, control.image)
        # [B, T, H, W, 1] -> [B, L, patch volume]; all channels are equal
        mask = control.image.mask[..., :1].astype(latent.dtype)
        latent = jnp.concatenate([latent, self.patchify(mask)], axis=-1)
        value = self.config.conditional_frame_timestep
        if value is None:
            return latent, timestep
        # A frame is given whole.  [B, T', 1] of a token each -> [B, T']
        given = mask[:, :: self.config.network.patch_size[0], 0, 0, 0]
        timestep = timestep[:, None] if timestep.ndim else timestep
        return latent, timestep * (1 - given) + value * given

    def forward(
        self,
        params: Params,
        latent: Array,
        timestep: Array,
        attention: SelfAttentionFn,
        states: tuple[Any, ...],
        workspace: Workspace,
    ) -> tuple[tuple[Any, ...], Array]:
        """See `StreamingDiT.forward`."""
        return self._apply(
            params,
            latent,
            timestep,
            attention,
            states,
            workspace.cache.context,
            control=workspace.extras,
            num_views=self.layout.num_views,
            num_frames=self.config.len_t // self.config.network.patch_size[0],
        )

    def postprocess(self, residue: Residue, latent: Array) -> Array:
        """The clean latent with the given frame."""
        image = residue.control.image
        return latent if image is None else self._with_image(latent, image)

    def _with_image(self, latent: Array, image: ImageControl) -> Array:
        """The given latent where the mask is 1.  float32[B, L, C * patch volume]."""
        given = image.latent.astype(jnp.float32)
        mask = jnp.broadcast_to(image.mask.astype(jnp.float32), given.shape)
        # [B, T, H, W, C] -> [B, L, C * patch volume] each
        given, mask = self.patchify(given), self.patchify(mask)
        return latent * (1 - mask) + given * mask

    def _by_view(self, text: Array | None) -> Array | None:
        """[B, P, C] or [B, V, P, C] to [B, V, P, C]."""
        if text is None or text.ndim == 4:
            return text
        views = self.layout.num_views
        return jnp.broadcast_to(text[:, None], (len(text), views, *text.shape[1:]))

    def _apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        return self.network.apply({"params": params}, *args, **kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosTransformerConfig(StreamingDiTConfig):
    """Config of `CosmosTransformer`; `_t` counts latent frames."""

    _target: type = CosmosTransformer

    network: CosmosDiTConfig = COSMOS_2B
    """Sizes of the network."""

    len_t: int = 24
    """Latent frames of one chunk."""

    window_size_t: int = 24
    """Newest latent frames that self-attention sees, the current chunk included."""

    h_extrapolation_ratio: float = 3.0
    """NTK ratio of the rotary embedding over rows."""

    w_extrapolation_ratio: float = 3.0
    """NTK ratio of the rotary embedding over columns."""

    conditional_frame_timestep: float | None = None
    """Timestep, in [0, 1000], of the tokens of a given frame; None: that of the
    others."""

    skip_finalize_kv_cache: bool = False
    """Whether the keys and values of the last denoising step stay in the cache,
    instead of those of one more pass over the clean latent."""

    cameras: tuple[int, ...] = (0,)
    """Index of each view's camera, from left to right; one view, or several for a
    network with `num_cameras`."""

    def __post_init__(self) -> None:
        # Made here once, so that sizes which cannot work together are refused early.
        _ = self.layout
        known = max(self.network.num_cameras, 1)
        if not all(0 <= camera < known for camera in self.cameras):
            raise ValueError(
                f"cameras must be indices below {known} (network.num_cameras="
                f"{self.network.num_cameras}), got {self.cameras}."
            )
        if len(self.cameras) > 1 and not self.network.num_cameras:
            raise ValueError(
                f"{len(self.cameras)} cameras need a network that attends across "
                "views; set network.num_cameras."
            )
        value = self.conditional_frame_timestep
        if value is not None and not 0 <= value <= 1000:
            raise ValueError(
                f"conditional_frame_timestep must be in [0, 1000] or None, got {value}."
            )

    @property
    def layout(self) -> StreamLayout:
        """The sizes of streaming; Cosmos' rotary embedding turns (k, k + D / 2).

        Raises:
            ValueError: The sizes cannot work together.
        """
        return self.stream_layout(
            self.network,
            interleaved=False,
            num_views=len(self.cameras),
            skip_finalize=self.skip_finalize_kv_cache,
        )
