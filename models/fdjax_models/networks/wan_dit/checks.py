"""Refuses conditions and controls that do not fit a Wan transformer."""

from typing import TYPE_CHECKING

from fdjax.contract.conditioner import Conditions
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl

if TYPE_CHECKING:
    from fdjax_models.networks.wan_dit.transformer import WanTransformerConfig


def check_conditions(config: "WanTransformerConfig", conditions: Conditions) -> None:
    """Raises a `ValueError` if the network's cross-attention cannot take them."""
    network = config.network
    if network.text_dim:
        _check_text(config, "text", conditions.text, "")
    if config.guidance_scale > 1:
        reason = f" with guidance_scale={config.guidance_scale} > 1"
        _check_text(config, "negative_text", conditions.negative_text, reason)
    image = conditions.image_embedding
    if network.image_dim and (image is None or image.shape[-1] != network.image_dim):
        raise ValueError(
            "The network's image branch needs conditions.image_embedding of shape "
            f"(B, P, {network.image_dim}), got {_shape(image)}; use an image encoder."
        )


def _check_text(config: "WanTransformerConfig", name: str, text, reason: str) -> None:
    width = config.network.text_len, config.network.text_dim
    if text is None:
        cure = "encode a prompt"
        if name == "negative_text":
            cure = "set negative_prompt of the pipeline's conditioner"
        raise ValueError(
            f"The network needs conditions.{name}{reason}, got None; {cure}."
        )
    if text.shape[1:] != width:
        raise ValueError(
            f"conditions.{name} must have shape (B, {width[0]}, {width[1]}), got "
            f"{text.shape}; was it made by another encoder?"
        )


def check_control(
    config: "WanTransformerConfig", size: tuple[int, ...], control: WanControl
) -> None:
    """Raises a `ValueError` if the control lacks what the network takes.

    Args:
        config: Of the transformer.
        size: (B, T, H, W) of the chunk's latent.
        control: One chunk's.
    """
    network, image = config.network, control.image
    if image is None and (
        config.stamp_image_latent or config.concat_image_mask_to_latent
    ):
        raise ValueError(
            "stamp_image_latent and concat_image_mask_to_latent need a control with an "
            "image in every chunk, got none; use an image encoder."
        )
    if image is not None:
        _check_shape("image.latent", image.latent, (*size, network.out_dim))
    if network.control_dim:
        _check_shape("rays", control.rays, (*size, network.control_dim))
    features = {
        "token_features": (control.token_features, network.token_feature_dim),
        "vector_features": (control.vector_features, network.vector_feature_dim),
    }
    for name, (array, width) in features.items():
        given = 0 if array is None else array.shape[-1]
        if given != width:
            raise ValueError(
                f"control.{name} must have {width} channels (0: None), got {given}."
            )


def as_wan_control(control: WanControl | ImageControl | None) -> WanControl:
    """A control in its full form.

    Raises:
        ValueError: Another encoder's control.
    """
    if isinstance(control, WanControl):
        return control
    if control is None or isinstance(control, ImageControl):
        return WanControl(image=control)
    raise ValueError(
        "A Wan transformer takes a WanControl, an ImageControl or None as control, got "
        f"{type(control).__name__}; check the pipeline's encoder."
    )


def _check_shape(name: str, array, expected: tuple[int, ...]) -> None:
    if _shape(array) != expected:
        raise ValueError(
            f"control.{name} must have shape {expected}, got {_shape(array)}."
        )


def _shape(array) -> tuple[int, ...] | None:
    return None if array is None else tuple(array.shape)
