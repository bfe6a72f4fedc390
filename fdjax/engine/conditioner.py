"""The conditioner of text, negative text and a first frame."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdjax.axes import Array, Params
from fdjax.contract.conditioner import (
    ConditionEncoder,
    Conditioner,
    ConditionerConfig,
    Conditions,
    ImageEncoderConfig,
    TextEncoderConfig,
)
from fdjax.engine.checks import check_finite, readable

_TEXT, _IMAGE = "text_encoder", "image_encoder"
_SLACK = 1e-3  # by which the rounding of a resize may leave [-1, 1]


class TextImageConditioner(Conditioner):
    """Encodes prompts, the negative prompt and first frames, each where it is set.

    An image is kept as it is, for encoders that read it per chunk, and embedded too if
    there is an image encoder. Without any encoder a bare image is all it takes.
    """

    config: "TextImageConditionerConfig"

    @functools.cached_property
    def parts(self) -> Mapping[str, ConditionEncoder]:
        """The encoders that the config sets, by the names of its fields."""
        configs = {_TEXT: self.config.text_encoder, _IMAGE: self.config.image_encoder}
        return {
            name: config.setup()
            for name, config in configs.items()
            if config is not None
        }

    def encode(
        self,
        params: Mapping[str, Params],
        *,
        text: Sequence[str] | None = None,
        image: ArrayLike | None = None,
        text_embeddings: ArrayLike | None = None,
        negative_text_embeddings: ArrayLike | None = None,
        **more: Any,
    ) -> Conditions:
        """Runs the encoders of what is given; all of it is checked before the first.

        Embeddings that were made elsewhere stand for prompts: neither tokenizer nor
        text encoder is then needed, and the config's negative prompt is not used.

        Args:
            params: Holds "text_encoder" if there is text, "image_encoder" if there is
                an image and the config has one.
            text: One prompt per session.
            image: First frames in [-1, 1], float[B, H, W, 3], pixels.
            text_embeddings: What the text encoder would make of the prompts, in their
                place.  float[B, P, C].
            negative_text_embeddings: What it would make of the negative prompt, for
                guidance; only with `text_embeddings`.  float[B, P, C] or [1, P, C].
            **more: Nothing else is taken.

        Raises:
            ValueError: See `Conditioner.encode`.
        """
        if more:
            raise ValueError(
                f"{type(self).__name__} takes text and image, got {sorted(more)} too."
            )
        if text_embeddings is not None or negative_text_embeddings is not None:
            if text is not None or text_embeddings is None:
                raise ValueError(
                    "Give prompts as text=, or as text_embeddings= with "
                    "negative_text_embeddings= where there is guidance; not both, and "
                    "no negative ones alone."
                )
            ready = check_embeddings(text_embeddings, negative_text_embeddings)
            return self._join(self.encode(params, image=image), *ready)
        prompts = None if text is None else check_prompts(text)
        frames = None if image is None else check_image(image)
        if prompts is not None and _TEXT not in self.parts:
            raise ValueError(
                f"text was given, but this pipeline has no {_TEXT}; set "
                f"conditioner.{_TEXT} in its config, or pass conditions=."
            )
        if prompts is not None and frames is not None and len(prompts) != len(frames):
            raise ValueError(
                f"text must hold one prompt per image, got {len(prompts)} prompts and "
                f"{len(frames)} images."
            )
        given = {_TEXT: prompts, _IMAGE: frames}
        needed = [name for name in self.parts if given[name] is not None]
        self.require_params(params, needed)
        encoded = {name: self.encode_part(params, name, given[name]) for name in needed}
        negative_text = None
        if prompts is not None and self.config.negative_prompt is not None:
            negative = self.encode_part(params, _TEXT, [self.config.negative_prompt])
            # [1, P, C] -> [B, P, C]
            negative_text = jnp.repeat(negative, len(prompts), axis=0)
        return Conditions(
            text=encoded.get(_TEXT),
            negative_text=negative_text,
            image_embedding=encoded.get(_IMAGE),
            image=frames,
        )

    def _join(
        self, conditions: Conditions, text: Array, negative_text: Array | None
    ) -> Conditions:
        """Conditions of the images, with ready-made embeddings of text."""
        given = conditions.image
        if given is not None and len(given) != len(text):
            raise ValueError(
                f"text_embeddings must hold one row per image, got {len(text)} rows "
                f"and {len(given)} images."
            )
        return dataclasses.replace(conditions, text=text, negative_text=negative_text)


def check_embeddings(
    text: ArrayLike, negative_text: ArrayLike | None
) -> tuple[Array, Array | None]:
    """Embeddings of prompts and negative prompts as arrays, one row per session.

    Returns:
        float[B, P, C], and the same or None.

    Raises:
        ValueError: They are not [B, P, C], not floating point, not finite, or do not
            go together.
    """
    named = {"text_embeddings": text, "negative_text_embeddings": negative_text}
    arrays = {name: jnp.asarray(x) for name, x in named.items() if x is not None}
    for name, array in arrays.items():
        if array.ndim != 3 or 0 in array.shape:
            raise ValueError(f"{name} must be [B, P, C], got shape {array.shape}.")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{name} must be floating point, got {array.dtype}; token ids go "
                "through the text encoder first."
            )
        traced = isinstance(array, jax.core.Tracer)
        if not traced and array.is_fully_addressable and not jnp.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinite values.")
    positive = arrays["text_embeddings"]
    negative = arrays.get("negative_text_embeddings")
    if negative is None:
        return positive, None
    sessions, _, channels = negative.shape
    if sessions not in (1, len(positive)) or channels != positive.shape[-1]:
        raise ValueError(
            "negative_text_embeddings must have the channels of text_embeddings, and "
            f"one row or as many, got {negative.shape} and {positive.shape}."
        )
    # [1, P, C] or [B, P, C] -> [B, P, C]
    return positive, jnp.broadcast_to(negative, (len(positive), *negative.shape[1:]))


def check_prompts(text: Sequence[str]) -> list[str]:
    """The prompts as a list.

    Raises:
        ValueError: They are one string, none, or no texts.
    """
    if isinstance(text, str):
        raise ValueError(
            f"text must be a sequence with one prompt per session; got the string "
            f"{text!r}, write [{text!r}]."
        )
    prompts = list(text)
    if not prompts:
        raise ValueError("text must hold at least one prompt, got none.")
    if strangers := [each for each in prompts if not isinstance(each, str)]:
        raise ValueError(f"text must hold prompts, got {strangers[0]!r} among them.")
    return prompts


def check_image(image: ArrayLike) -> Array:
    """The first frames as an array.  float[B, H, W, 3].

    Values are looked at unless they are traced, or on the devices of another process.

    Raises:
        ValueError: They have another shape, are integers, or leave [-1, 1].
    """
    if not isinstance(image, jax.Array):
        image = np.asarray(image)
    shape = image.shape
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(f"image must be [B, H, W, 3] in [-1, 1], got shape {shape}.")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"image must be floating point in [-1, 1], got {image.dtype}; bytes from 0 "
            "to 255 become image / 127.5 - 1."
        )
    if not isinstance(image, jax.core.Tracer) and getattr(
        image, "is_fully_addressable", True
    ):
        values = np.asarray(image, np.float32)
        low, high = float(values.min()), float(values.max())  # NaN if any value is
        if not -1 - _SLACK <= low <= high <= 1 + _SLACK:
            raise ValueError(
                f"image must lie in [-1, 1], got values from {low:g} to {high:g}; "
                "scale or clip it."
            )
    return jnp.asarray(image)


def check_conditions(conditions: Conditions) -> None:
    """Refuses conditions, made by whatever means, that no network can use.

    Raises:
        ValueError: The first frame is as `check_image` refuses it, or a value is NaN or
            infinite.
    """
    image = conditions.image
    # Shapes alone, as `jax.eval_shape` gives them, have no values.
    if image is not None and (readable(image) or isinstance(image, jax.core.Tracer)):
        check_image(image)
    check_finite(conditions, "conditions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextImageConditionerConfig(ConditionerConfig):
    """Config of `TextImageConditioner`."""

    _target: type = TextImageConditioner

    text_encoder: TextEncoderConfig | None = None
    """Config of the text encoder; None: no text, or ready-made conditions."""

    image_encoder: ImageEncoderConfig | None = None
    """Config of the image encoder; None: no image cross-attention."""

    negative_prompt: str | None = None
    """What classifier-free guidance steers away from; None: no guidance."""

    def __post_init__(self) -> None:
        if self.negative_prompt is not None and self.text_encoder is None:
            raise ValueError(
                "negative_prompt needs a text_encoder that encodes it, got "
                f"{self.negative_prompt!r} without one; set text_encoder, or "
                "negative_prompt to None."
            )
