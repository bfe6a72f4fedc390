"""Several cameras: conditions of each, and a video of each."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.component import ParametricComponent
from fdjax.contract.conditioner import (
    ConditionEncoder,
    Conditioner,
    ConditionerConfig,
    Conditions,
    TextEncoderConfig,
)
from fdjax.contract.decoder import DecoderConfig, StreamingDecoder
from fdjax.engine.conditioner import check_image, check_prompts
from fdjax_models.methods.omnidreams.encoder import apart
from fdjax_models.networks.wan_vae.first_frame import FirstFrameEncoderConfig

_TEXT, _IMAGE = "text_encoder", "image_encoder"
_PUBLISHED = ("text_embeddings", "image_embeddings", "negative_text_embeddings")


class ViewsConditioner(Conditioner):
    """Encodes a prompt and a first frame of every view.

    Embeddings have the views behind the sessions, [B, V, ...], also where there is one.
    """

    config: "ViewsConditionerConfig"

    @functools.cached_property
    def parts(self) -> Mapping[str, ConditionEncoder]:
        """The text encoder and the first frame's, by their names."""
        return {
            _TEXT: self.config.text_encoder.setup(),
            _IMAGE: self.config.image_encoder.setup(),
        }

    def encode(
        self,
        params: Mapping[str, Params],
        *,
        text: Sequence[str] | None = None,
        image: ArrayLike | None = None,
        **more: Any,
    ) -> Conditions:
        """What the views are conditioned on; all of it is checked before it runs.

        Args:
            params: Holds "text_encoder" and "image_encoder".
            text: One prompt per session, for all its views; or one per view, those of
                the first session first.
            image: First frames in [-1, 1], float[B, V, H, W, 3]; of one view also
                float[B, H, W, 3].
            **more: Nothing else is taken.

        Returns:
            Text [B, V, P, C], and the first frames' latents as `image_embedding`,
            float32[B, V, 1, H, W, C].

        Raises:
            ValueError: See `Conditioner.encode`.
        """
        if more or text is None or image is None:
            raise ValueError(
                "A driving world needs text= and image=, and takes nothing else; got "
                f"{sorted(more | {'text': text, 'image': image})}."
                if more
                else "A driving world starts from a prompt and a first frame: give "
                "text= and image=."
            )
        views = self.config.num_views
        frames = self._frames(image)
        prompts = check_prompts(text)
        sessions = len(frames)
        if len(prompts) not in (sessions, sessions * views):
            raise ValueError(
                f"text must hold a prompt for each of {sessions} sessions, or for each "
                f"of their {views} views, got {len(prompts)}."
            )
        self.require_params(params, [_TEXT, _IMAGE])
        negative = None
        if self.config.negative_prompt is not None:
            row = self.encode_part(params, _TEXT, [self.config.negative_prompt])
            negative = jnp.broadcast_to(row, (sessions, views, *row.shape[1:]))
        encoded = self.encode_part(params, _TEXT, prompts)
        # [B or B V, P, C] -> [B, 1 or V, P, C] -> [B, V, P, C]
        encoded = encoded.reshape(sessions, -1, *encoded.shape[1:])
        shape = (sessions, views, *encoded.shape[2:])
        return Conditions(
            text=jnp.broadcast_to(encoded, shape),
            negative_text=negative,
            image_embedding=self.encode_part(params, _IMAGE, frames),
        )

    def from_published(
        self, embeddings: Mapping[str, Any], size: tuple[int, int]
    ) -> Conditions:
        """Conditions from the file that the reference's `save-embeddings` mode writes.

        NVIDIA/flashdreams, integrations_v2/omnidreams: a dict of `text_embeddings`,
        [B, V, P, C], `image_embeddings`, [B, V, 1, C, H, W], and
        `negative_text_embeddings`, as the first or None. One view may have no axis.

        Args:
            embeddings: These three.
            size: Rows and columns of each view's video.

        Raises:
            ValueError: A name or a shape is another one, or the negative prompt's is
                missing where there is guidance.
        """
        missing = {"text_embeddings", "image_embeddings"} - {
            name for name, value in embeddings.items() if value is not None
        }
        if missing or embeddings.keys() - set(_PUBLISHED):
            raise ValueError(
                f"it must hold {', '.join(_PUBLISHED)} (the last may be None), and "
                f"holds {', '.join(sorted(embeddings)) or 'nothing'}."
            )
        text: Any = self.config.text_encoder
        vae = self.config.image_encoder.encoder
        prompt = text.max_length, text.embedding_dim
        ratio = vae.spatial_ratio
        frame = 1, vae.latent_channels, *(side // ratio for side in size)
        named = {
            name: self._by_view(name, embeddings.get(name), shape)
            for name, shape in zip(_PUBLISHED, (prompt, frame, prompt), strict=True)
        }
        negative = named["negative_text_embeddings"]
        if self.config.negative_prompt is not None and negative is None:
            raise ValueError(
                "negative_text_embeddings are None, and this method is guided away "
                "from a negative prompt; encode one too."
            )
        image: Any = named["image_embeddings"]
        conditions = Conditions(
            text=named["text_embeddings"],
            negative_text=negative,
            # [B, V, 1, C, H, W] -> [B, V, 1, H, W, C]
            image_embedding=jnp.moveaxis(image, 3, -1).astype(jnp.float32),
        )
        _ = conditions.batch_size  # raises where they disagree
        return conditions

    def _by_view(self, name: str, array: Any, shape: tuple[int, ...]) -> Array | None:
        """An array as [B, V, *shape]."""
        if array is None:
            return None
        views = self.config.num_views
        if array.ndim == len(shape) + 1 and views == 1:
            array = array[:, None]
        if array.shape[1:] != (views, *shape) or not len(array):
            expected = ", ".join(map(str, ("B", views, *shape)))
            raise ValueError(
                f"{name} must have shape ({expected}) for this run, got {array.shape}; "
                "was it made by another encoder, or for another size?"
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} must be floating point, got {array.dtype}.")
        return jnp.asarray(array)

    def _frames(self, image: ArrayLike) -> Array:
        """First frames as float[B, V, H, W, 3]."""
        views, shape = self.config.num_views, np.shape(image)
        if len(shape) == 4 and views == 1:
            image, shape = jnp.asarray(image)[:, None], (shape[0], 1, *shape[1:])
        if len(shape) != 5 or shape[1] != views:
            raise ValueError(
                f"image must be [B, {views}, H, W, 3], the first frame of every view, "
                f"got shape {np.shape(image)}."
            )
        flat = check_image(jnp.asarray(image).reshape(-1, *shape[2:]))
        return flat.reshape(shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewsConditionerConfig(ConditionerConfig):
    """Config of `ViewsConditioner`."""

    _target: type = ViewsConditioner

    text_encoder: TextEncoderConfig
    """Encodes prompts."""

    image_encoder: FirstFrameEncoderConfig
    """Encodes first frames."""

    num_views: int = 1
    """Views of a session."""

    negative_prompt: str | None = None
    """What classifier-free guidance steers away from; None: no guidance."""

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ValueError(f"num_views must be >= 1, got {self.num_views}.")


class ViewsDecoder(StreamingDecoder):
    """Decodes every view with a state of its own; the parameters are the decoder's."""

    config: "ViewsDecoderConfig"

    @functools.cached_property
    def decoder(self) -> StreamingDecoder:
        """Decodes one view."""
        return self.config.decoder.setup()

    @property
    def params_owner(self) -> ParametricComponent:
        """Whoever owns the decoder's parameters."""
        return self.decoder.params_owner

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent row or column."""
        return self.decoder.spatial_compression_ratio

    @property
    def temporal_compression_ratio(self) -> int:
        """Video frames per latent frame, after the first chunk."""
        return self.decoder.temporal_compression_ratio

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters of the decoder."""
        return self.decoder.init_params(key)

    def initialize_cache(
        self, params: Params, batch_size: int, height: int, width: int
    ) -> PyTree:
        """The state before the first chunk; in every array V stands behind B."""
        views = len(self.config.cameras)
        cache = self.decoder.initialize_cache(
            params, batch_size, height, width // views
        )
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], views, 1), cache)

    def decode(
        self, params: Params, cache: PyTree, latent: Array
    ) -> tuple[PyTree, dict[str, Array]]:
        """The state after this chunk, and the video of each camera.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            latent: Clean chunk, normalised, the views side by side.
                float[B, T, H, V W, C].

        Returns:
            The new state, and float32[B, T', H', W', 3] in [-1, 1] by camera.
        """
        decode = functools.partial(self.decoder.decode, params)
        # [B, T, H, V W, C] -> [B, V, T, H, W, C]
        latent = apart(latent, len(self.config.cameras))
        cache, video = jax.vmap(decode, in_axes=1, out_axes=1)(cache, latent)
        views = {name: video[:, n] for n, name in enumerate(self.config.cameras)}
        return cache, views

    def num_output_frames(self, num_latents: int, first: bool) -> int:
        """Video frames that a chunk of `num_latents` gives."""
        return self.decoder.num_output_frames(num_latents, first)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewsDecoderConfig(DecoderConfig):
    """Config of `ViewsDecoder`."""

    _target: type = ViewsDecoder

    decoder: DecoderConfig
    """Decodes one view."""

    cameras: tuple[str, ...]
    """Names of the views, in the network's order."""
