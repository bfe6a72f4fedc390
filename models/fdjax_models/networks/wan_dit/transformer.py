"""The Wan DiT as a streaming transformer: conditions, controls, the first frame."""

import dataclasses
import functools
from typing import Any

import jax

from fdjax.axes import Array, Params
from fdjax.contract.conditioner import Conditions
from fdjax.streaming.attention import SelfAttentionFn
from fdjax.streaming.cache import Residue, StreamCache, Workspace
from fdjax.streaming.config import StreamingDiTConfig
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
from fdjax_models.networks.wan_dit.time_embedding import TokenTimesteps


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
    ) -> tuple[Array, Array | TokenTimesteps]:
        """Latent and timestep with the first frame, as configured."""
        if control.image is None:
            return latent, timestep
        # first: bool[B], as sessions of a batch differ in age.
        patch, first = self.config.network.patch_size, cache.kv.num_chunks == 0
        # In the configured order: what is joined has other channels than a stamp.
        told: Array | TokenTimesteps = timestep
        for way in self.config.image_conditioning:
            latent = way.latent(latent, control.image, patch)
            tokens = way.timestep(timestep, control.image, first, patch)
            told = told if tokens is None else tokens
        return latent, told

    def forward(
        self,
        params: Params,
        latent: Array,
        timestep: Array | TokenTimesteps,
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
class WanTransformerConfig(StreamingDiTConfig):
    """Config of `WanTransformer`; `_t` counts latent frames."""

    _target: type = WanTransformer

    network: WanDiTConfig = WAN_1_3B
    """Sizes of the network."""

    image_conditioning: tuple[ImageConditioning, ...] = ()
    """Ways in which the network is given the first frame, in order: `Stamp`,
    `Concatenate`, `FirstFrameTimestep`."""

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
        kinds = [type(way) for way in self.image_conditioning]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(
                    "image_conditioning must name each way once, got "
                    f"{kind.__name__} {kinds.count(kind)} times."
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
        # Pair k is features (2k, 2k + 1): Wan's product of complex numbers.
        return self.stream_layout(self.network, interleaved=True)
