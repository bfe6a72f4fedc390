"""Refuses conditions and controls that do not fit a Wan transformer."""

from fdjax.axes import Array
from fdjax.contract.conditioner import Conditions
from fdjax_models.networks.wan_dit.config import WanDiTConfig
from fdjax_models.networks.wan_dit.control import ImageControl, WanControl


def check_conditions(
    network: WanDiTConfig, guidance_scale: float, conditions: Conditions
) -> None:
    """Raises a `ValueError` if the network's cross-attention cannot take them."""
    if network.text_dim:
        _check_text(network, "text", conditions.text, "")
    # At 1 or less there is no second branch to read the negative prompt.
    if guidance_scale > 1:
        reason = f" with guidance_scale={guidance_scale} > 1"
        _check_text(network, "negative_text", conditions.negative_text, reason)
    image = conditions.image_embedding
    if network.image_dim and (image is None or image.shape[-1] != network.image_dim):
        raise ValueError(
            "The network's image branch needs conditions.image_embedding of shape "
            f"(B, P, {network.image_dim}), got {_shape(image)}; use an image encoder."
        )


def _check_text(
    network: WanDiTConfig, name: str, text: Array | None, reason: str
) -> None:
    width = network.text_len, network.text_dim
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
    network: WanDiTConfig,
    needs_image: bool,
    size: tuple[int, ...],
    control: WanControl,
) -> None:
    """Raises a `ValueError` if the control lacks what the network takes.

    Args:
        network: Its sizes.
        needs_image: Whether the first frame is stamped or concatenated.
        size: (B, T, H, W) of the chunk's latent.
        control: One chunk's.
    """
    image = control.image
    if image is None and needs_image:
        raise ValueError(
            "Stamp and Concatenate need a control with an image in every chunk, got "
            "none; use an image encoder."
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


def _check_shape(name: str, array: Array | None, expected: tuple[int, ...]) -> None:
    if _shape(array) != expected:
        raise ValueError(
            f"control.{name} must have shape {expected}, got {_shape(array)}."
        )


def _shape(array: Array | None) -> tuple[int, ...] | None:
    return None if array is None else tuple(array.shape)
