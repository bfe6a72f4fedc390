"""The Wan DiT as a streaming transformer: conditions, controls, the first frame."""

import dataclasses
import functools
from typing import Any

import jax

from fdjax.attention.rope import Rope3D
from fdjax.axes import Array, Params
from fdjax.config import DTypeName
from fdjax.contract.conditioner import Conditions
from fdjax.contract.transformer import TransformerConfig
from fdjax.streaming.attention import SelfAttentionFn
from fdjax.streaming.cache import Residue, StreamCache, Workspace
from fdjax.streaming.dit import StreamingDiT
from fdjax.streaming.layout import StreamLayout
from fdjax_models.networks.wan_dit.block import CameraModulation, ContextKV
from fdjax_models.networks.wan_dit.checks import (
    as_wan_control,
    check_conditions,
    check_control,
)
from fdjax_models.networks.wan_dit.config import WAN_1_3B, WanDiTConfig
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl
from fdjax_models.networks.wan_dit.dit import WanDiT, init_params
from fdjax_models.networks.wan_dit.image_conditioning import ImageConditioning


class WanTransformer(StreamingDiT):
    """Streams a Wan DiT chunk by chunk."""

    architecture = "wan_dit"
    weight_fields = ("network.num_heads", "network.patch_size")
    config: "WanTransformerConfig"

    @functools.cached_property
    def network(self) -> WanDiT:
        """The weights' owner."""
        return WanDiT(self.config.network)

    @functools.cached_property
    def layout(self) -> StreamLayout:
        """The sizes of streaming; see `StreamingDiT`."""
        return self.config.layout

    def init_params(self, key: jax.Array) -> Params:
        """Random weights of the network."""
        return init_params(self.config.network, key)

    def context(
        self, params: Params, conditions: Conditions
    ) -> tuple[ContextKV | None, ...]:
        """Cross-attention keys and values per layer, [B G, P, N, D].

        Args:
            params: Weights.
            conditions: Text, negative text if guidance is on, and the image embedding
                if the network has an image branch.
        """
        network = self.config.network
        check_conditions(network, self.config.guidance_scale, conditions)
        text = conditions.text if network.text_dim else None
        # [B, P, text_dim] twice -> [B G, P, text_dim]
        text = self.rows(text, conditions.negative_text)
        # Both branches of guidance see the same image.
        image = conditions.image_embedding if network.image_dim else None
        return self._apply(params, text, self.rows(image), method="context")

    def check_control(
        self, cache: StreamCache, control: WanControl | ImageControl | None
    ) -> WanControl:
        """The control in its full form; see `StreamingDiT`."""
        control = as_wan_control(control)
        size = cache.batch, self.config.len_t, cache.height, cache.width
        needs_image = any(way.needs_image for way in self.config.image_conditioning)
        check_control(self.config.network, needs_image, size, control)
        return control

    def prepare(
        self, params: Params, cache: StreamCache, control: WanControl
    ) -> tuple[CameraModulation, ...] | None:
        """Camera modulation per layer, [B G, L, M]."""
        if not self.config.network.control_dim or control.rays is None:
            return None
        # [B, T, H, W, control_dim] -> [B G, L, control_dim * patch volume]
        rays = self.rows(self.patchify(control.rays))
        return self._apply(params, rays, method="camera")

    def inputs(
        self,
        latent: Array,
        timestep: Array,
        cache: StreamCache,
        control: WanControl,
    ) -> tuple[Array, Array]:
        """Latent and timestep with the first frame, as configured."""
        if control.image is None:
            return latent, timestep
        # first: bool[B], as sessions of a batch differ in age.
        patch, first = self.config.network.patch_size, cache.kv.num_chunks == 0
        # In the configured order: what is joined has other channels than a stamp.
        for way in self.config.image_conditioning:
            latent = way.latent(latent, control.image, patch)
            timestep = way.timestep(timestep, control.image, first, patch)
        return latent, timestep

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
        control = workspace.control
        return self._apply(
            params,
            latent,
            timestep,
            attention,
            states,
            workspace.cache.context,
            camera=workspace.extras,
            token_features=self.rows(control.token_features),
            vector_features=self.rows(control.vector_features),
        )

    def postprocess(self, residue: Residue, latent: Array) -> Array:
        """The clean latent with the first frame, as configured."""
        image, patch = residue.control.image, self.config.network.patch_size
        if image is None:
            return latent
        for way in self.config.image_conditioning:
            latent = way.result(latent, image, patch)
        return latent

    def _apply(self, params: Params, *args: Any, **kwargs: Any) -> Any:
        return self.network.apply({"params": params}, *args, **kwargs)


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

    image_conditioning: tuple[ImageConditioning, ...] = ()
    """Ways in which the network is given the first frame, in order: `Stamp`,
    `Concatenate`, `FirstFrameTimestep`."""

    slot_multiple: int | None = None
    """The key/value cache is padded to a multiple of this many tokens; None: 128 on a
    GPU, where attention gains from it, else 1."""

    kv_dtype: DTypeName | None = None
    """Dtype of the key/value cache; None: that of the network. "float8_e4m3fn" halves
    its memory, and attention runs in 8 bits, faster on a Hopper GPU."""

    def __post_init__(self) -> None:
        # Made here once, so that sizes which cannot work together are refused early.
        _ = self.layout
        network = self.network
        extra = [way.extra_channels(network.out_dim) for way in self.image_conditioning]
        expected = network.out_dim + sum(extra)
        if network.in_dim != expected:
            names = ", ".join(type(way).__name__ for way in self.image_conditioning)
            raise ValueError(
                f"network.in_dim must be {expected} for out_dim={network.out_dim} and "
                f"image_conditioning=({names}), got {network.in_dim}."
            )
        if self.guidance_scale > 1 and not network.text_dim:
            raise ValueError(
                f"guidance_scale={self.guidance_scale} > 1 needs a network with text; "
                "got text_dim=0."
            )

    @property
    def layout(self) -> StreamLayout:
        """The sizes of streaming; Wan's rotary embedding pairs neighbouring features.

        Raises:
            ValueError: The sizes cannot work together.
        """
        network = self.network
        return StreamLayout(
            channels=network.out_dim,
            patch_size=network.patch_size,
            num_layers=network.num_layers,
            num_heads=network.num_heads,
            rope=Rope3D(
                head_dim=network.head_dim,
                # Pair k is features (2k, 2k + 1): Wan's product of complex numbers.
                interleaved=True,
                extrapolation=(
                    1.0,
                    self.h_extrapolation_ratio,
                    self.w_extrapolation_ratio,
                ),
            ),
            dtype=network.dtype,
            len_t=self.len_t,
            window_size_t=self.window_size_t,
            sink_size_t=self.sink_size_t,
            cache_relative=not self.apply_rope_before_kvcache,
            guidance_scale=self.guidance_scale,
            slot_multiple=self.slot_multiple,
            kv_dtype=self.kv_dtype,
        )
