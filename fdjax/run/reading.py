"""What methods read their inputs with: prompt, controls, start image, by the config."""

import functools
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fdjax.checkpoint import files
from fdjax.config import Component
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.run.controls import FOREVER, Controls, read_controls
from fdjax.run.devices import Devices
from fdjax.run.devices import find as find_devices
from fdjax.run.inputs import RunnerInputs
from fdjax.run.start_image import Fit, read_start_image
from fdjax.run.steering import Steering, along
from fdjax.session import store

_log = logging.getLogger(__name__)


class InputReader(Component):
    """Reads what a `RunnerConfig` names; the runners of methods put it together."""

    @functools.cached_property
    def pipeline(self) -> StreamInferencePipeline:
        """The pipeline that the config describes."""
        return self.config.pipeline.setup()

    @property
    def first_chunk(self) -> int:
        """The chunk of the session at which the run begins; above 0 if it goes on.

        Raises:
            FileNotFoundError, ValueError: `resume` is no file of a session.
        """
        resume = self.config.resume
        return 0 if resume is None else store.read_notes(resume).get("chunks", 0)

    @property
    def has_embeddings(self) -> bool:
        """Whether prompt and first frame come from a file, ready made."""
        return self.config.embeddings_path is not None

    def frames_before(self, chunk: int) -> int:
        """Video frames of a session before one of its chunks.

        A method whose transformer's config has no `len_t` overrides it.
        """
        transformer: Any = self.config.pipeline.diffusion_model.transformer
        frames, later = (
            transformer.len_t
            if self.pipeline.decoder is None
            else self.pipeline.decoder.num_output_frames(transformer.len_t, is_first)
            for is_first in (True, False)
        )
        return frames + (chunk - 1) * later if chunk else 0

    @functools.cached_property
    def devices(self) -> Devices:
        """Where the parts of the pipeline live, as the config asks."""
        return find_devices(self.config.mesh, self.config.place, self.pipeline)

    def num_chunks(self, inputs: RunnerInputs, first: int = 0) -> int:
        """Chunks that a run makes: `total_blocks`, or fewer if the controls end.

        Args:
            inputs: From `read_inputs`.
            first: The chunk at which it begins; the controls are of the whole session.
        """
        chunks = [self.config.total_blocks]
        if inputs.controls is not None:
            chunks.append(len(inputs.controls) - first)
        elif inputs.script is not None and inputs.script.length < FOREVER:
            length, before = inputs.script.length, self.frames_before
            later = before(2) - before(1)
            chunks.append(1 + max(0, -((before(1) - length) // later)) - first)
        return min(chunks)

    def tell_end(self, inputs: RunnerInputs, chunks: int) -> None:
        """Says what comes when the controls end, if the session lives to see it."""
        script = inputs.script
        if script is not None and script.num_frames <= self.frames_before(chunks):
            self.say("%s", script.end_text)

    def say(self, text: str, *values: Any) -> None:
        """Tells what a run is at, unless `progress` is off."""
        if self.config.progress is not False:
            _log.info(text, *values)

    def steering(self, inputs: RunnerInputs) -> Steering:
        """What keys do in a live session; by default nothing.

        Args:
            inputs: From `read_inputs`.
        """
        return along(inputs)

    def read_text(self) -> tuple[str, ...] | None:
        """The prompt, from the text or the file that the config gives.

        None where ready embeddings stand for it.

        Raises:
            ValueError: It is empty, or this pipeline takes no prompt.
            FileNotFoundError: The prompt file is missing.
        """
        if self.has_embeddings:
            return None
        conditioner = self.pipeline.conditioner
        if conditioner is not None and conditioner.takes_text:
            return (files.read_prompt(self.config.prompt),)
        if str(self.config.prompt):
            raise ValueError(
                f"{self.config.runner_name} takes no prompt: its pipeline has no text "
                f"encoder; got prompt {str(self.config.prompt)!r}."
            )
        return None

    def read_controls(
        self, actions: Mapping[str, str] | None = None, *, takes_array: bool = False
    ) -> Controls | None:
        """What the config's `controls` say; None if there are none.

        Args:
            actions: What each key does; None: the method has no keys.
            takes_array: Whether it takes an array.

        Raises:
            ValueError: They are malformed, or change a prompt that there is not.
            FileNotFoundError: A file is missing.
        """
        if not str(self.config.controls).strip() and not actions:
            return None
        controls = read_controls(
            self.config.controls,
            actions or {},
            end=self.config.controls_end,
            takes_array=takes_array,
        )
        conditioner = self.pipeline.conditioner
        if controls.prompts and not (conditioner and conditioner.takes_text):
            raise ValueError(
                f"controls change the prompt at frame {controls.prompts[0][0]}, and "
                f"{self.config.runner_name} takes no prompt."
            )
        if controls.prompts and self.has_embeddings:
            raise ValueError(
                f"controls change the prompt at frame {controls.prompts[0][0]}, and "
                "with embeddings_path there is no text encoder; give prompt in its "
                "place."
            )
        return controls

    def read_image(
        self,
        path: str | pathlib.Path,
        method: str = "bilinear",
        fit: Fit = "stretch",
        multiples: tuple[int, int] = (1, 1),
    ) -> np.ndarray:
        """An image or a video's first frame for this run, in [-1, 1].

        Of the size of the config, but where `fit` is "keep": see `read_start_image`.

        Returns:
            float32[1, H, W, 3].
        """
        size = self.config.pixel_height, self.config.pixel_width
        return read_start_image(path, size, fit=fit, method=method, multiples=multiples)
