"""What steers a Cosmos transformer in one chunk, and what does not fit."""

from typing import Any

import flax.struct

from fdjax.axes import Array
from fdjax.contract.conditioner import Conditions
from fdjax_models.networks.cosmos_dit.config import CosmosDiTConfig
from fdjax_models.networks.wan_dit.control import ImageControl


@flax.struct.dataclass(kw_only=True)
class CosmosControl:
    """A chunk's control; a bare `ImageControl` stands for one with an image only.

    Several views lie side by side in the width, as in the latent.

    Attributes:
        image: The first frame's latent and where it holds, for image-to-video.
        hdmap: Latent of the HD map, for a network with `control_dim`.
            float[B, T, H, W, control_dim].
    """

    image: ImageControl | None = None
    hdmap: Array | None = None


def as_cosmos_control(control: Any) -> CosmosControl:
    """A control in its full form.

    Raises:
        ValueError: Another encoder's control.
    """
    if isinstance(control, CosmosControl):
        return control
    if control is None or isinstance(control, ImageControl):
        return CosmosControl(image=control)
    raise ValueError(
        "A Cosmos transformer takes a CosmosControl, an ImageControl or None as "
        f"control, got {type(control).__name__}; check the pipeline's encoder."
    )


def check_control(
    network: CosmosDiTConfig, size: tuple[int, ...], control: CosmosControl
) -> None:
    """Raises a `ValueError` if the control is not what the network takes.

    Args:
        network: Its sizes.
        size: (B, T, H, W) of the chunk's latent.
        control: One chunk's.
    """
    if control.image is not None:
        shape = *size, network.out_dim
        _check_shape("image.latent", control.image.latent, shape)
        mask = tuple(control.image.mask.shape)
        if mask not in (shape, (*size, 1)):
            raise ValueError(
                f"control.image.mask must have shape {shape}, or one channel, got "
                f"{mask}."
            )
    if network.control_dim:
        _check_shape("hdmap", control.hdmap, (*size, network.control_dim))
    elif control.hdmap is not None:
        raise ValueError(
            "control.hdmap must be None for a network with control_dim=0, got shape "
            f"{tuple(control.hdmap.shape)}."
        )


def check_conditions(
    network: CosmosDiTConfig,
    guidance_scale: float,
    num_views: int,
    conditions: Conditions,
) -> None:
    """Raises a `ValueError` if the network's cross-attention cannot take them."""
    _check_text(network, num_views, "text", conditions.text, "")
    # At 1 or less there is no second branch to read the negative prompt.
    if guidance_scale > 1:
        reason = f" with guidance_scale={guidance_scale} > 1"
        negative = conditions.negative_text
        _check_text(network, num_views, "negative_text", negative, reason)


def _check_text(
    network: CosmosDiTConfig,
    num_views: int,
    name: str,
    text: Array | None,
    reason: str,
) -> None:
    if text is None:
        cure = "encode a prompt"
        if name == "negative_text":
            cure = "set negative_prompt of the pipeline's conditioner"
        raise ValueError(
            f"The network needs conditions.{name}{reason}, got None; {cure}."
        )
    prompt = network.text_len, network.text_dim
    if text.shape[1:] not in (prompt, (num_views, *prompt)):
        raise ValueError(
            f"conditions.{name} must have shape (B, {prompt[0]}, {prompt[1]}), or "
            f"(B, {num_views}, {prompt[0]}, {prompt[1]}) with a prompt per view, got "
            f"{text.shape}; was it made by another encoder?"
        )


def _check_shape(name: str, array: Array | None, expected: tuple[int, ...]) -> None:
    shape = None if array is None else tuple(array.shape)
    if shape != expected:
        raise ValueError(f"control.{name} must have shape {expected}, got {shape}.")
