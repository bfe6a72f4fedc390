"""The streaming pipeline: `initialize_cache`, then `generate` and `finalize`.

              input                                    video
                |                                        ^
            [encoder]--control-->[transformer x solver]-->[decoder]      generate
                                     |   ^   |
                               reads |   |   | clean latent
                                  [  cache   ]<--commit                  finalize

A cache is *ready* (`final_state is None`) or *pending* (after `generate`). The two are
different tree structures, so a call out of order is refused before anything runs.
It holds one or more sessions; see `fdjax.engine.cache`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
from jax.typing import ArrayLike

from fdjax import checkpoint
from fdjax.axes import Array, Params, PyTree
from fdjax.checkpoint import placement
from fdjax.config import Component, InstantiateConfig
from fdjax.config.base import paths_of
from fdjax.contract.component import ParametricComponent
from fdjax.contract.conditioner import Conditioner, ConditionerConfig, Conditions
from fdjax.contract.decoder import DecoderConfig, StreamingDecoder
from fdjax.contract.encoder import EncoderConfig, NullEncoder, StreamingEncoder
from fdjax.engine import homes, rollout, stages
from fdjax.engine.cache import (
    StreamInferencePipelineCache,
    check_key,
    require,
    session_keys,
)
from fdjax.engine.checks import check_finite
from fdjax.engine.conditioner import check_conditions
from fdjax.engine.diffusion import DiffusionModel, DiffusionModelConfig
from fdjax.sharding import Placement, home


class StageProfiler(Protocol):
    """Is told when a stage of `generate` or `finalize` was dispatched."""

    def record(self, stage: str, value: PyTree) -> None:
        """Notes the end of `stage`, whose result is `value`."""


class StreamInferencePipeline(Component):
    """Encoder, diffusion model and decoder as pure functions of a cache.

    `generate` and `finalize` are pure: a cache can be kept and used again, so that
    keeping a reference is forking the rollout. With `donate=True` they work in place
    and use their argument up.
    """

    config: "StreamInferencePipelineConfig"

    @functools.cached_property
    def diffusion_model(self) -> DiffusionModel:
        """Transformer and scheduler."""
        return self.config.diffusion_model.setup()

    @functools.cached_property
    def encoder(self) -> StreamingEncoder | None:
        """The control encoder, or None: `generate` then takes no input."""
        return self.config.encoder.setup() if self.config.encoder else None

    @functools.cached_property
    def decoder(self) -> StreamingDecoder | None:
        """The decoder, or None: `generate` then returns latents."""
        return self.config.decoder.setup() if self.config.decoder else None

    @functools.cached_property
    def conditioner(self) -> Conditioner | None:
        """What makes conditions of prompts and pictures, or None."""
        return self.config.conditioner.setup() if self.config.conditioner else None

    @functools.cached_property
    def components(self) -> dict[str, ParametricComponent]:
        """Every part that owns parameters, by its key in `params`.

        Raises:
            ValueError: A part of the conditioner has the name of another component.
        """
        own = {
            "transformer": self.diffusion_model.transformer,
            "encoder": self.encoder,
            "decoder": self.decoder,
        }
        parts = {} if self.conditioner is None else dict(self.conditioner.parts)
        if taken := sorted(own.keys() & parts.keys()):
            raise ValueError(
                f"Parts of a conditioner must not be called {sorted(own)}, as other "
                f"components are; got {taken}."
            )
        return {name: part for name, part in (own | parts).items() if part is not None}

    # Parameters

    def init_params(
        self,
        key: jax.Array,
        *,
        only: Sequence[str] | None = None,
        sharding: Placement | None = None,
    ) -> Params:
        """Random parameters, one subtree per component.

        Args:
            key: One key for all components.
            only: Names of the components wanted; all by default.
            sharding: Where they live; a mesh, one sharding, or a nested dict of either
                by component and below, see `fdjax.checkpoint.placement`. None: the
                default device.
        """
        check_key(key)
        placement.check_names(sharding, list(self.components))
        params = {}
        for number, (name, part) in enumerate(self.components.items()):
            if name not in self._component_names(only):
                continue
            part_key = jax.random.fold_in(key, number)  # the same whatever `only` says
            wanted = placement.part_of(sharding, name)
            params[name] = placement.init_params(part, part_key, wanted)
        return params

    def load_params(
        self,
        *,
        only: Sequence[str] | None = None,
        sharding: Placement | None = None,
    ) -> Params:
        """Parameters from the checkpoints that the component configs name.

        Args:
            only: Names of the components wanted; all by default. A text encoder is
                large: with saved conditions it need not be loaded.
            sharding: As in `init_params`.

        Raises:
            ValueError: An unknown component, or a checkpoint that does not fit.
            FileNotFoundError: A checkpoint is missing.
        """
        names = self._component_names(only)
        placement.check_names(sharding, list(self.components))
        params = {}
        for name in names:
            part, placed = self.components[name], placement.part_of(sharding, name)
            try:
                params[name] = checkpoint.load_params(part, sharding=placed)
            except (FileNotFoundError, ValueError) as error:
                for path in paths_of(self.config, part.params_owner.config):
                    error.add_note(f"in pipeline.{path}.checkpoint_path")
                raise
        return params

    def _component_names(self, only: Sequence[str] | None) -> list[str]:
        unknown = sorted(set(only or ()) - set(self.components))
        if unknown:
            raise ValueError(
                f"only= must name components of this pipeline, "
                f"{sorted(self.components)}; got {unknown}."
            )
        return [name for name in self.components if only is None or name in only]

    # Conditions and the cache

    def encode_conditions(
        self,
        params: Params,
        *,
        text: Sequence[str] | None = None,
        image: ArrayLike | None = None,
        **more: Any,
    ) -> Conditions:
        """What the conditioner makes of its inputs; can be saved and used again.

        Args:
            params: Holds the conditioner's parts that run, by their names.
            text: One prompt per session.
            image: First frames in [-1, 1], float[B, H, W, 3], pixels.
            **more: What else this pipeline's conditioner takes.

        Raises:
            ValueError: The conditioner refuses an input, or there is none.
        """
        if self.conditioner is not None:
            return self.conditioner.encode(params, text=text, image=image, **more)
        inputs = {"text": text, "image": image} | more
        if given := [name for name, value in inputs.items() if value is not None]:
            raise ValueError(
                f"{' and '.join(given)} was given, but this pipeline has no "
                "conditioner; set conditioner in its config, or pass conditions=."
            )
        return Conditions()

    def latent_size(self, pixel_height: int, pixel_width: int) -> tuple[int, int]:
        """Latent rows and columns of a video of this size.

        Raises:
            ValueError: The size is no multiple of the compression ratio.
        """
        ratio = self.config.spatial_compression_ratio
        for part in (self.decoder, self.encoder):
            if ratio is None:
                ratio = getattr(part, "spatial_compression_ratio", None)
        if ratio is None:
            raise ValueError(
                "Without a decoder the pipeline cannot know how many pixels a latent "
                "spans; set spatial_compression_ratio in its config."
            )
        if (
            pixel_height < 1
            or pixel_width < 1
            or pixel_height % ratio
            or (pixel_width % ratio)
        ):
            raise ValueError(
                f"pixel_height and pixel_width must be positive multiples of {ratio}, "
                f"got {pixel_height} x {pixel_width}."
            )
        return pixel_height // ratio, pixel_width // ratio

    def initialize_cache(
        self,
        params: Params,
        *,
        text: Sequence[str] | None = None,
        image: Array | None = None,
        conditions: Conditions | None = None,
        pixel_height: int | None = None,
        pixel_width: int | None = None,
        key: jax.Array | None = None,
        sharding: Placement | None = None,
    ) -> StreamInferencePipelineCache:
        """A ready cache: new sessions, before their first chunk.

        Args:
            params: Weights.
            text: One prompt per session.
            image: First frames in [-1, 1], float[B, H, W, 3], pixels.
            conditions: From `encode_conditions`, in place of text and image.
            pixel_height: Video height; the image's by default.
            pixel_width: Video width; the image's by default.
            key: The only source of noise, key[] or one per session, key[B]. A scalar
                is used as it is for one session and split for more; the config's seed
                by default.
            sharding: Where the cache lives; a mesh, one sharding, or a tree of them
                like its parts. None: where the parameters are.

        Raises:
            ValueError: Inputs contradict each other or do not fit the model.
        """
        if key is not None:
            check_key(key)
        if conditions is None:
            conditions = self.encode_conditions(params, text=text, image=image)
        elif text is not None or image is not None:
            raise ValueError(
                "Give either conditions= or text=/image=, not both: conditions hold "
                "the encoded text and image already."
            )
        check_conditions(conditions)
        height, width = self._pixel_size(conditions, pixel_height, pixel_width)
        height, width = self.latent_size(height, width)
        if key is None:
            key = jax.random.key(self.config.diffusion_model.seed or 0)
        keys = session_keys(key, conditions.batch_size)
        arguments = self._weights(params), conditions
        if sharding is None:
            caches = homes.initialize(self, *arguments, height, width)
        else:
            caches = stages.initialize_on(sharding, self, *arguments, height, width)
        return StreamInferencePipelineCache(
            **caches,
            final_state=None,
            key=keys,
            is_first=self.diffusion_model.config.first_scheduler is not None,
        )

    def _pixel_size(
        self, conditions: Conditions, height: int | None, width: int | None
    ) -> tuple[int, int]:
        if conditions.image is not None:
            size = conditions.image.shape[1:3]  # of [B, H, W, 3]
            if (height or size[0], width or size[1]) != size:
                raise ValueError(
                    f"The image is {size[0]} x {size[1]} pixels but pixel_height, "
                    f"pixel_width ask for {height} x {width}; resize the image, or "
                    "leave the size out."
                )
            return size
        if height is None or width is None:
            raise ValueError(
                "pixel_height and pixel_width are needed when no image gives the "
                f"size, got {height} and {width}."
            )
        return height, width

    def _weights(self, params: Params) -> Params:
        """The subtrees that a rollout reads: no one-shot encoder."""
        names = {"transformer", "encoder", "decoder"} & set(self.components)
        missing = sorted(names - set(params))
        if missing:
            raise ValueError(
                f"params must hold {sorted(names)}, {missing} missing; use "
                "load_params() or init_params(key)."
            )
        return {name: params[name] for name in sorted(names)}

    def update_conditions(
        self,
        params: Params,
        cache: StreamInferencePipelineCache,
        conditions: Conditions,
        *,
        donate: bool = False,
    ) -> StreamInferencePipelineCache:
        """The ready cache with another prompt; what was generated stays visible.

        Args:
            params: Weights.
            cache: A ready cache.
            conditions: From `encode_conditions`.
            donate: Work in place and use `cache` up.
        """
        require(cache, ready=True, caller="update_conditions")
        check_conditions(conditions)
        own = params["transformer"], cache.transformer_cache
        pure, donating = stages.update_conditions, stages.update_conditions_in_place
        update = donating if donate else pure
        transformer_cache = homes.run(update, self, *own, conditions)
        return dataclasses.replace(cache, transformer_cache=transformer_cache)

    # The autoregressive loop

    def generate(
        self,
        params: Params,
        cache: StreamInferencePipelineCache,
        input: PyTree = None,
        *,
        noise: Array | None = None,
        donate: bool = False,
        profiler: StageProfiler | None = None,
    ) -> tuple[StreamInferencePipelineCache, PyTree]:
        """Makes one chunk; returns a pending cache and the chunk's video.

        Args:
            params: Weights.
            cache: A ready cache.
            input: This chunk's control, as the encoder takes it.
            noise: See `DiffusionModel.generate` and `fdjax.chunk_noise`; drawn from the
                cache's key by default.
            donate: Work in place and use `cache` up.
            profiler: Told of the stages "encode", "diffuse" and "decode".

        Returns:
            The pending cache, and what the decoder makes: video in [-1, 1],
            float[B, T, H, W, 3], pixels, or a tree of arrays with B first (views,
            actions). Without a decoder the clean latent, float32[B, T, H, W, C].

        Raises:
            ValueError: The cache is pending or used up, the input has no encoder, or it
                is NaN or infinite (looked at where nothing has to be waited for).
        """
        require(cache, ready=True, caller="generate")
        if self.encoder is None and input is not None:
            raise ValueError(
                "generate was given an input, but this pipeline has no encoder; set "
                f"encoder={NullEncoder.__name__}Config() to pass inputs through."
            )
        check_finite(input, "input")
        control, encoder_cache = None, cache.encoder_cache
        if self.encoder is not None:
            encoder_cache, control = homes.run(
                stages.encode, self.encoder, params["encoder"], encoder_cache, input
            )
        _record(profiler, "encode", control)
        diffuse = stages.diffuse_in_place if donate else stages.diffuse
        model = self.diffusion_model
        transformer_cache, final_state, output = homes.run(
            diffuse,
            model.first if cache.is_first else model,
            params["transformer"],
            cache.transformer_cache,
            control,
            noise,
            cache.autoregressive_index,
            cache.key,
        )
        if transformer_cache is None:
            transformer_cache = cache.transformer_cache
        _record(profiler, "diffuse", output)
        decoder_cache = cache.decoder_cache
        if self.decoder is not None:
            # [B, T, H, W, C] -> whatever tree the decoder gives
            decoder_cache, output = homes.run(
                stages.decode, self.decoder, params["decoder"], decoder_cache, output
            )
        _record(profiler, "decode", output)
        cache = dataclasses.replace(
            cache,
            transformer_cache=transformer_cache,
            encoder_cache=encoder_cache,
            decoder_cache=decoder_cache,
            final_state=final_state,
        )
        return cache, output

    def finalize(
        self,
        params: Params,
        cache: StreamInferencePipelineCache,
        *,
        noise: Array | None = None,
        donate: bool = False,
        profiler: StageProfiler | None = None,
    ) -> StreamInferencePipelineCache:
        """Commits the pending chunk; returns a ready cache.

        Args:
            params: Weights.
            cache: A pending cache, from `generate`.
            noise: See `DiffusionModel.finalize`; drawn from the cache's key by default.
            donate: Work in place and use `cache` up.
            profiler: Told of the stage "finalize".

        Raises:
            ValueError: The cache is ready or used up.
        """
        require(cache, ready=False, caller="finalize")
        commit = stages.finalize_in_place if donate else stages.finalize
        model = self.diffusion_model
        if cache.is_first and noise is not None:
            model = model.first  # knows how many draws there are before the commit's
        transformer_cache, index = homes.run(
            commit,
            model,
            params["transformer"],
            cache.transformer_cache,
            cache.final_state,
            noise,
            cache.autoregressive_index,
            cache.key,
        )
        _record(profiler, "finalize", transformer_cache)
        return dataclasses.replace(
            cache,
            transformer_cache=transformer_cache,
            final_state=None,
            autoregressive_index=index,
            is_first=False,
        )

    def rollout(
        self,
        params: Params,
        cache: StreamInferencePipelineCache,
        inputs: PyTree = None,
        num_chunks: int = 1,
    ) -> tuple[StreamInferencePipelineCache, PyTree]:
        """Makes `num_chunks` chunks as one `lax.scan`; see `fdjax.engine.rollout`."""
        with home(params.get("transformer"), cache):
            steps = self.generate, self.finalize
            return rollout.rollout(*steps, params, cache, inputs, num_chunks)


def _record(profiler: StageProfiler | None, stage: str, value: PyTree) -> None:
    if profiler is not None:
        profiler.record(stage, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamInferencePipelineConfig(InstantiateConfig[StreamInferencePipeline]):
    """Config of `StreamInferencePipeline`."""

    _target: type = StreamInferencePipeline

    name: str
    """Slug of the pipeline."""

    diffusion_model: DiffusionModelConfig
    """Transformer and scheduler."""

    encoder: EncoderConfig | None = None
    """Config of the per-chunk control encoder; None: `generate` takes no input."""

    decoder: DecoderConfig | None = None
    """Config of the decoder; None: `generate` returns latents."""

    conditioner: ConditionerConfig | None = None
    """Config of what encodes prompts and pictures; None: conditions come ready-made."""

    spatial_compression_ratio: int | None = None
    """Pixels per latent row or column; None: the decoder's, or the encoder's."""
