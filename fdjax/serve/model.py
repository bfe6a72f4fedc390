"""The model that a server runs: loaded once, asked for sessions and pictures."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.run import media, needs
from fdjax.run.inputs import RunnerInputs
from fdjax.run.runner import Runner
from fdjax.run.steering import Steering
from fdjax.session import store
from fdjax.session.handle import Session

_MOST_SEEDS = 2**31
_UNDO_ON_DEVICE = 4  # newest chunks

Pixels = np.ndarray
"""uint8[T, H, W, 3]."""

Progress = Callable[[str, float], None]
"""Is told what is being done, and which part of all is behind it, in [0, 1]."""


class Model:
    """A method with its weights; everything here runs on the engine's thread."""

    def __init__(
        self, runner: Runner, inputs: RunnerInputs, undo_chunks: int = 64
    ) -> None:
        """Loads nothing.

        Args:
            runner: Of the method.
            inputs: From `Runner.prepare`.
            undo_chunks: That a session can go back.

        Raises:
            ValueError: The method makes no video, or wants several devices.
        """
        if runner.pipeline.decoder is None:
            raise ValueError(
                f"{runner.config.runner_name} gives latents, which no page can show; "
                "serve a method with a decoder."
            )
        for name in ("mesh", "place"):
            if getattr(runner.config, name) is not None:
                raise ValueError(
                    f"Sessions of a server live on one device; leave --{name} out, "
                    "or use fdjax-run."
                )
        self.runner, self.inputs = runner, inputs
        on_device = min(undo_chunks, _UNDO_ON_DEVICE)
        self.undo: Any = {
            "undo_on_device": on_device,
            "undo_on_host": undo_chunks - on_device,
        }
        self.steering: Steering = runner.steering(inputs)
        self.params: Params = {}
        self._hashes: Mapping[str, str] | None = None
        # Kept once loaded: prompts change.
        self._encoders: Any = {}
        self._first: Conditions | None = None

    @property
    def name(self) -> str:
        """Slug of the method."""
        return self.runner.config.runner_name

    @property
    def fps(self) -> float:
        """Frames per second that it is shown at."""
        return self.runner.config.fps

    @property
    def prompt(self) -> str:
        """The prompt of a session that gives none; "" where there is none."""
        return self.inputs.text[0] if self.inputs.text else ""

    @property
    def takes_prompt(self) -> bool:
        """Whether prompts can be given and changed."""
        conditioner = self.runner.pipeline.conditioner
        return conditioner is not None and bool(self.inputs.text)

    def load(self, progress: Progress) -> Session:
        """Loads the weights, and compiles what sessions run.

        Returns:
            A session with some chunks, to try more with.
        """
        pipeline = self.runner.pipeline
        progress("Encoding the first prompt", 0.05)
        self._encoders = self.runner.encoder_weights()
        self._first = self.inputs.conditions or self.encode(self.prompt)[0]
        progress("Loading weights", 0.15)
        self.params = self.runner.load_weights(list(needs.streaming(pipeline)))
        progress("Compiling the first chunk", 0.3)
        session, state = self.begin(None, 0), self.steering.start
        for part in (0.55, 0.8):
            state, control = self.steering.control(state, "")
            video = only(pixels(session.tick(control)))
            progress("Compiling the next chunks", part)
        progress("Compiling undo and fork", 0.9)
        session.fork().undo()
        # A view is as large from chunk to chunk.
        self.shown_size = video.shape[1], video.shape[2]
        self.pattern = jax.eval_shape(lambda: session.cache)
        self.pixel_size = session.pixel_size
        return session

    def weights(self) -> Mapping[str, str]:
        """Hashes of the weights; made once."""
        if self._hashes is None:
            self._hashes = store.weights_of(self.params)
        return self._hashes

    def encode(self, prompt: str) -> tuple[Conditions, tuple[str, ...]]:
        """The conditions of a prompt, and what was warned of about it.

        Raises:
            ValueError: The method takes no prompt, or not this one.
        """
        inputs = self.inputs
        if prompt != self.prompt:
            if not self.takes_prompt:
                raise ValueError(f"{self.name} takes no prompt.")
            if not prompt.strip():
                raise ValueError("The prompt must not be empty.")
            inputs = dataclasses.replace(inputs, text=(prompt,))
        with _own_warnings() as notes:
            conditions = self.runner.encode_conditions(self._encoders, inputs)
        return conditions, tuple(notes)

    def begin(self, prompt: str | None, seed: int) -> Session:
        """A session before its first chunk.

        Args:
            prompt: None for that of the command line.
            seed: Of the noise.
        """
        config = self.runner.config
        first = self._first
        if first is None or prompt not in (None, self.prompt):
            first = self.encode(prompt or "")[0]
        # Of an image its own size counts, as in a run.
        sized = first.image is not None
        return Session(
            self.runner.pipeline,
            self.params,
            conditions=first,
            pixel_height=None if sized else config.pixel_height,
            pixel_width=None if sized else config.pixel_width,
            key=jax.random.key(seed % _MOST_SEEDS),
            **self.undo,
        )


@jax.jit
def _prepared(output: PyTree) -> tuple[list[jax.Array], jax.Array]:
    """Its videos as bytes, and of which sessions they are finite."""
    videos = [leaf for leaf in jax.tree.leaves(output) if _is_video(leaf)]
    # [views, B] -> [B]
    finite = jnp.stack([jnp.isfinite(v).all(axis=(1, 2, 3, 4)) for v in videos])
    return [media.to_uint8(video) for video in videos], finite.all(axis=0)


def pixels(output: PyTree) -> list[Pixels | FloatingPointError]:
    """The video of each session's chunk, several views side by side; waits for it.

    Args:
        output: What `generate` gives, [B, ...].

    Returns:
        Of each session uint8[T, H, W, 3], or why there is none.

    Raises:
        ValueError: It has no video.
    """
    if not any(map(_is_video, jax.tree.leaves(output))):
        raise ValueError("The method makes no video, which no page can show.")
    videos, finite = jax.device_get(_prepared(output))
    tallest = max(video.shape[2] for video in videos)
    # Each view [B, T, H, W, 3], black below where others are taller
    padded = [
        np.pad(video, [(0, 0)] * 2 + [(0, tallest - video.shape[2])] + [(0, 0)] * 2)
        for video in videos
    ]
    # [B, T, H, views x W, 3]
    joined = np.concatenate(padded, axis=3)
    error = FloatingPointError("the chunk is NaN or infinite")
    return [
        video if good else error for video, good in zip(joined, finite, strict=True)
    ]


def only(made: list[Pixels | FloatingPointError]) -> Pixels:
    """The video of the only session.

    Raises:
        FloatingPointError: It is not finite.
    """
    (video,) = made
    if isinstance(video, Exception):
        raise video
    return video


def _is_video(leaf: Any) -> bool:
    return leaf.ndim == 5 and leaf.shape[-1] == 3


@contextlib.contextmanager
def _own_warnings() -> Iterator[list[str]]:
    """What is logged within as a warning, by this thread."""
    found: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                found.append(record.getMessage())

    handler = Collector(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(handler)
