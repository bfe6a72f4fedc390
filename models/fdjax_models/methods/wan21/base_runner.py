"""Runs methods of the Wan family: a prompt, and where the method takes one an image."""

import dataclasses
import functools
import pathlib
from typing import Any

from fdjax.config import derive_config
from fdjax.engine.pipeline import StreamInferencePipeline, StreamInferencePipelineConfig
from fdjax.run.runner import Runner, RunnerConfig, RunnerInputs


class WanRunner(Runner):
    """Text to video; image to video if the config has an `image_path`."""

    config: "WanRunnerConfig"

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
        if isinstance(self.config, WanImageRunnerConfig):
            if self.config.image_path is None:
                raise ValueError(
                    f"{self.config.runner_name} starts from an image: set image_path "
                    "to a file or a URL."
                )
            image = self.read_image(self.config.image_path)
        return RunnerInputs(text=text, image=image)

    def _check_size(self) -> None:
        config = self.config
        transformer: Any = config.pipeline.diffusion_model.transformer
        _, rows, columns = transformer.network.patch_size
        height, width = config.pixel_height, config.pixel_width
        latent_height, latent_width = self.pipeline.latent_size(height, width)
        if latent_height % rows or latent_width % columns:
            tall = height // latent_height * rows
            wide = width // latent_width * columns
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
class WanImageRunnerConfig(WanRunnerConfig):
    """Config of `WanRunner` for image to video."""

    image_path: str | pathlib.Path | None = None
    """The first frame: an image, a video or a URL; resized to the size of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        transformer: Any = self.pipeline.diffusion_model.transformer
        encoder: Any = self.pipeline.encoder
        if encoder.len_t != transformer.len_t:
            raise ValueError(
                "pipeline.encoder.len_t must equal that of the transformer, "
                f"{transformer.len_t}, got {encoder.len_t}."
            )
