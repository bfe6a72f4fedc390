"""Runs methods of the Wan family: a prompt, and where the method takes one an image."""

import dataclasses
import functools
from typing import Any

import numpy as np

from fdjax.config import derive_config
from fdjax.engine.pipeline import StreamInferencePipeline, StreamInferencePipelineConfig
from fdjax.run.inputs import RunnerInputs
from fdjax.run.runner import Runner, RunnerConfig
from fdjax.run.start_image import StartImage
from fdjax_models.methods.wan21 import tiny


class WanRunner(Runner):
    """Text to video; image to video if the config has an `image`."""

    config: "WanRunnerConfig"
    resampling = "bilinear"  # of the start image

    @functools.cached_property
    def pipeline(self) -> StreamInferencePipeline:
        """The pipeline, with what the runner's own fields change."""
        return self.config.resolved_pipeline.setup()

    def read_inputs(self) -> RunnerInputs:
        """The prompt, and the first frame at the size of the run.

        Raises:
            ValueError: A size, the prompt or the image is wrong.
            FileNotFoundError: The prompt file or the image is missing.
        """
        self._check_size()
        text, image = self.read_text(), None
        if isinstance(self.config, WanStartRunnerConfig) and not self.has_embeddings:
            image = self._read_start()
        return RunnerInputs(text=text, image=image, script=self.read_controls())

    def _read_start(self) -> np.ndarray | None:
        """The start image: at the size of the run, or by its own proportions.

        None where there is none and the pipeline runs without.
        """
        config: Any = self.config
        path = str(config.image) or self._stand_in()
        if not path:
            if self.pipeline.encoder is None:
                return None
            raise ValueError(
                f"{config.runner_name} starts from an image: set image to a file or a "
                "URL."
            )
        return self.read_image(path, self.resampling, config.fit, self._multiples())

    def _stand_in(self) -> str:
        """A picture for whoever gives none; "": one must be given."""
        return ""

    def _multiples(self) -> tuple[int, int]:
        """What height and width must be multiples of, in pixels."""
        config = self.config
        transformer: Any = config.pipeline.diffusion_model.transformer
        _, rows, columns = transformer.network.patch_size
        height, width = config.pixel_height, config.pixel_width
        latent_height, latent_width = self.pipeline.latent_size(height, width)
        return height // latent_height * rows, width // latent_width * columns

    def _check_size(self) -> None:
        height, width = self.config.pixel_height, self.config.pixel_width
        tall, wide = self._multiples()
        if height % tall or width % wide:
            raise ValueError(
                f"pixel_height must be a multiple of {tall} and pixel_width of {wide}, "
                f"got {height} and {width}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanRunnerConfig(RunnerConfig):
    """Config of `WanRunner` for text to video."""

    _target: type = WanRunner

    checkpoint_path: str | None = None
    """Weights of the transformer, in place of those that the pipeline names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        pipeline: Any = self.pipeline
        channels = pipeline.diffusion_model.transformer.network.out_dim
        image_encoder = getattr(pipeline.encoder, "encoder", None)
        for name, part in (
            ("decoder", pipeline.decoder),
            ("encoder.encoder", image_encoder),
        ):
            given = getattr(part, "latent_channels", channels)
            if given != channels:
                raise ValueError(
                    f"pipeline.{name} has latents of {given} channels and the "
                    f"transformer of {channels}; the VAE of Wan 2.1 has 16, that of "
                    "Wan 2.2 TI2V-5B 48."
                )

    def tiny(self) -> RunnerConfig:
        """The same path through small networks, to a small picture."""
        return derive_config(
            super().tiny(),
            pipeline=tiny.changes(self.pipeline),
            pixel_height=tiny.HEIGHT,
            pixel_width=tiny.WIDTH,
        )

    @property
    def resolved_pipeline(self) -> StreamInferencePipelineConfig:
        """The pipeline that runs.

        Random weights come with no vocabulary: bytes stand in for the tokens, so that
        nothing is downloaded.
        """
        changes: dict[str, Any] = {}
        if self.checkpoint_path is not None:
            transformer = {"checkpoint_path": self.checkpoint_path}
            changes["diffusion_model"] = {"transformer": transformer}
        conditioner: Any = self.pipeline.conditioner
        if self.random_weights and conditioner and conditioner.text_encoder:
            unknown = {"checkpoint_path": None, "tokenizer_path": None}
            changes["conditioner"] = {"text_encoder": unknown}
        return derive_config(self.pipeline, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanStartRunnerConfig(WanRunnerConfig, StartImage):
    """Config of a run that starts from a first frame."""

    def tiny(self) -> RunnerConfig:
        """As that of text to video, with an image for whoever has none."""
        return derive_config(super().tiny(), image=self.image or tiny.STAND_IN)

    def __post_init__(self) -> None:
        super().__post_init__()
        transformer: Any = self.pipeline.diffusion_model.transformer
        encoder: Any = self.pipeline.encoder
        if encoder is None:
            raise ValueError(
                f"{self.runner_name} takes an image, so that pipeline.encoder must be "
                "one of images, got None."
            )
        if encoder.len_t != transformer.len_t:
            raise ValueError(
                "pipeline.encoder.len_t must equal that of the transformer, "
                f"{transformer.len_t}, got {encoder.len_t}."
            )


def check_one_chunk(config: WanRunnerConfig) -> None:
    """Refuses several chunks for a model that makes all frames in one.

    Raises:
        ValueError: `total_blocks` is not 1.
    """
    if config.total_blocks != 1:
        raise ValueError(
            f"{config.runner_name} makes all frames in one chunk: total_blocks must be "
            f"1, got {config.total_blocks}. The length of the video is that of the "
            "chunk, len_t and window_size_t of the transformer, in latent frames."
        )
