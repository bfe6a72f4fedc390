"""Runs the template on synthetic inputs: random conditions and controls."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fdjax.axes import Params
from fdjax.config import Seed
from fdjax.contract.conditioner import Conditions
from fdjax.run.inputs import LazySequence, RunnerInputs
from fdjax.run.runner import Runner, RunnerConfig


class TemplateRunner(Runner):
    """Reads no files; a method with files overrides `read_inputs` to read them."""

    config: "TemplateRunnerConfig"

    def read_inputs(self) -> RunnerInputs:
        """One random control per chunk, however many chunks there are."""
        self.read_text()
        pipeline = self.config.pipeline
        if pipeline.encoder is None:
            return RunnerInputs()
        encoder: Any = pipeline.encoder
        transformer: Any = pipeline.diffusion_model.transformer
        size = self.pipeline.latent_size(
            self.config.pixel_height, self.config.pixel_width
        )
        # [B, T, H, W, C]
        shape = (1, transformer.len_t, *size, encoder.in_channels)
        key = jax.random.key(self.config.input_seed)
        return RunnerInputs(
            controls=LazySequence(
                2**31,
                lambda index: jax.random.normal(jax.random.fold_in(key, index), shape),
            )
        )

    def encode_conditions(self, params: Params, inputs: RunnerInputs) -> Conditions:
        """Random conditions, as a text encoder would give them."""
        del params, inputs
        transformer: Any = self.config.pipeline.diffusion_model.transformer
        # [text and negative text, B, P, C]
        shape = (2, 1, self.config.num_context_tokens, transformer.context_dim)
        # Apart from those of the controls, of which there are fewer than 2**31.
        key = jax.random.fold_in(jax.random.key(self.config.input_seed), 2**31)
        text, negative_text = jax.random.normal(key, shape, jnp.float32)
        return Conditions(
            text=text,
            negative_text=negative_text if transformer.guidance_scale > 1 else None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplateRunnerConfig(RunnerConfig):
    """Config of `TemplateRunner`."""

    _target: type = TemplateRunner

    pixel_height: int = 6
    """Rows of the video."""

    pixel_width: int = 4
    """Columns of the video."""

    fps: int = 8
    """Frames per second of the video file."""

    random_weights: bool = True
    """The template is not trained."""

    num_context_tokens: int = 4
    """Tokens of the random conditions."""

    input_seed: Seed = 42
    """Seed of the random conditions and controls."""
