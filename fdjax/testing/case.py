"""A pipeline under test, and what tests of it compare and count with."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.pipeline import StreamInferencePipeline, StreamInferencePipelineConfig
from fdjax.streaming.dit import StreamingDiT

# Reordered float32 sums of networks this small; relative to the output's scale.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class PipelineCase:
    """A pipeline under test.

    Attributes:
        config: A tiny config; its pipeline is run with random parameters.
        initialize: `(pipeline, params, key) -> cache`, a fresh ready cache.
        make_input: `(chunk index) -> input` of `generate`, B first in every leaf; None:
            no input.
        num_chunks: Chunks per rollout; enough to pass the window.
        new_conditions: `(pipeline, params) -> Conditions` of the same shapes but other
            values, for a change of prompt; None: not tested.
        remembers: Whether a chunk depends on those before it. False for a method that
            makes each on its own; None: as the layout of a `StreamingDiT` says, and
            True of any other transformer.
    """

    config: StreamInferencePipelineConfig
    initialize: Callable[
        [StreamInferencePipeline, Params, Array], StreamInferencePipelineCache
    ]
    make_input: Callable[[int], PyTree] | None = None
    num_chunks: int = 5
    new_conditions: Callable[[StreamInferencePipeline, Params], Any] | None = None
    remembers: bool | None = None

    @property
    def pipeline(self) -> StreamInferencePipeline:
        """The pipeline that the config describes."""
        return self.config.setup()

    def params(self) -> Params:
        """Random parameters, the same at every call."""
        return _params(self.config)

    def cache(self, seed: int = 0) -> StreamInferencePipelineCache:
        """A fresh cache."""
        return self.initialize(self.pipeline, self.params(), jax.random.key(seed))

    def input(self, index: int) -> PyTree:
        """The input of chunk `index`."""
        return None if self.make_input is None else self.make_input(index)

    def other_input(self, index: int) -> PyTree:
        """An input that chunk `index` could have had instead; None if there is none.

        That of another chunk; where all chunks have the same, one with other numbers.
        """
        own = self.input(index)
        for other in range(self.num_chunks):
            input = self.input(other)
            if signature(input) == signature(own) and not same(input, own):
                return input
        return perturbed(own) if jax.tree.leaves(own) else None

    @property
    def has_memory(self) -> bool:
        """Whether a chunk depends on those before it; see `remembers`."""
        if self.remembers is not None:
            return self.remembers
        transformer = self.pipeline.diffusion_model.transformer
        return (
            not isinstance(transformer, StreamingDiT) or transformer.layout.has_memory
        )

    def setting(self) -> "Setting | None":
        """What `initialize` gave to the pipeline; None if it went another way."""
        listener = _Listener(self.pipeline)
        spoken_to: Any = listener
        self.initialize(spoken_to, self.params(), jax.random.key(0))
        return listener.heard

    def run(
        self, cache: StreamInferencePipelineCache, chunks: range, **options: Any
    ) -> tuple[StreamInferencePipelineCache, list[np.ndarray]]:
        """Generates and finalizes; the videos are copied to the host, `joined`."""
        videos = []
        for index in chunks:
            cache, video = self.pipeline.generate(
                self.params(), cache, self.input(index), **options
            )
            videos.append(joined(video))
            cache = self.pipeline.finalize(self.params(), cache, **options)
        return cache, videos


def joined(output: PyTree) -> np.ndarray:
    """A chunk's output as one array; views of video [B, T, H, W, 3] side by side."""
    views = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(output)]
    return views[0] if len(views) == 1 else np.concatenate(views, axis=-2)


@functools.lru_cache(maxsize=4)
def _params(config: StreamInferencePipelineConfig) -> Params:
    return config.setup().init_params(jax.random.key(7))


def assert_close(
    actual: Any, desired: Any, tolerance: float = TOLERANCE, *, hint: str = ""
) -> None:
    """Asserts max |actual - desired| <= tolerance * max |desired|, and finite.

    Args:
        actual: What came out.
        desired: What should have.
        tolerance: Relative to the largest desired value.
        hint: What is wrong if it does not hold, for the message.
    """
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.shape == desired.shape, (hint, actual.shape, desired.shape)
    assert np.isfinite(actual).all(), f"not finite; {hint}"
    scale = np.abs(desired).max()
    error = np.abs(actual - desired).max()
    assert error <= tolerance * scale, f"{error=} > {tolerance} * {scale=}; {hint}"


@contextlib.contextmanager
def count_compilations() -> Iterator[Callable[[], int]]:
    """Counts XLA compilations inside the block, by jax's own monitoring events."""
    if not _COUNTER:
        _COUNTER.append(0)
        jax.monitoring.register_event_duration_secs_listener(_on_event)
    start = _COUNTER[0]
    yield lambda: _COUNTER[0] - start


_COUNTER: list[int] = []


def _on_event(event: str, duration_secs: float, **metadata: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _COUNTER[0] += 1


class Setting(NamedTuple):
    """Conditions, and the sizes of video and latent.

    Attributes:
        conditions: Those of the sessions.
        pixels: Rows and columns of the video.
        latents: Rows and columns of the latent.
    """

    conditions: Conditions
    pixels: tuple[int, int]
    latents: tuple[int, int]


class _Listener:
    """A pipeline that remembers what its `initialize_cache` was given."""

    def __init__(self, pipeline: StreamInferencePipeline) -> None:
        self._pipeline = pipeline
        self.heard: Setting | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def initialize_cache(
        self,
        params: Params,
        *,
        text: Sequence[str] | None = None,
        image: Array | None = None,
        conditions: Conditions | None = None,
        **options: Any,
    ) -> StreamInferencePipelineCache:
        """That of the pipeline."""
        pipeline = self._pipeline
        if conditions is None:
            conditions = pipeline.encode_conditions(params, text=text, image=image)
        height, width = options.get("pixel_height"), options.get("pixel_width")
        if conditions.image is not None:
            _, height, width, _ = conditions.image.shape
        if height is not None and width is not None:
            latents = pipeline.latent_size(height, width)
            self.heard = Setting(conditions, (height, width), latents)
        return pipeline.initialize_cache(params, conditions=conditions, **options)


def signature(tree: PyTree) -> tuple:
    """Structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    kinds = (getattr(leaf, "dtype", type(leaf)) for leaf in leaves)
    return structure, tuple(zip(map(np.shape, leaves), kinds, strict=True))


def same(first: PyTree, second: PyTree) -> bool:
    """Whether two trees are alike in structure and in every bit."""
    if signature(first) != signature(second):
        return False
    pairs = zip(to_host(first), to_host(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def to_host(tree: PyTree) -> list[np.ndarray]:
    """Copies of all leaves; of keys, their words."""
    return [
        # numpy has no typed keys.
        np.asarray(jax.random.key_data(leaf))
        if isinstance(leaf, jax.Array)
        and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        # A copy, as a view would change with a donated buffer.
        else np.array(leaf)
        for leaf in jax.tree.leaves(tree)
    ]


def perturbed(tree: PyTree, seed: int = 1) -> PyTree:
    """The tree with noise of size one on every floating-point leaf."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for leaf in leaves]
    keys = jax.random.split(jax.random.key(seed), len(leaves) + 1)[:-1]
    leaves = [
        leaf + np.asarray(jax.random.normal(key, leaf.shape), leaf.dtype)
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        else leaf
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)
