"""The contract of a denoising network that streams against its own cache."""

import abc
import dataclasses

from fdjax.axes import Array, Params, PyTree
from fdjax.config import InstantiateConfig
from fdjax.contract.component import ParametricComponent
from fdjax.contract.conditioner import Conditions


class Transformer(ParametricComponent):
    """Predicts the flow of one chunk, seeing the chunks committed before it.

    The life of a chunk:

        workspace = start(params, cache, control)              once
        workspace, flow = predict_flow(..., workspace, ...)    every solver step
        cache = stop(workspace)                                once
        cache = append(params, clean, timestep, cache, control)    in finalize

    A workspace holds the cache and what is worth computing once per chunk. Between
    `start` and `stop` only the current chunk's own slots may change, which no later
    chunk reads: the visible contents of the cache stay as they are. Only `append`
    commits.

    Latents are patchified, `[B, L, C]`, float32; the network casts to its own dtype.
    """

    @property
    def needs_negative_text(self) -> bool:
        """Whether conditions must hold `negative_text` (classifier-free guidance)."""
        return False

    @abc.abstractmethod
    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> PyTree:
        """An empty cache for latents of `height` x `width`, B from the conditions.

        Raises:
            ValueError: A size or a condition does not fit the network.
        """

    @abc.abstractmethod
    def update_conditions(
        self, params: Params, cache: PyTree, conditions: Conditions
    ) -> PyTree:
        """The cache with new conditions; committed chunks stay."""

    @abc.abstractmethod
    def latent_shape(self, cache: PyTree) -> tuple[int, ...]:
        """Shape of one chunk's patchified latent, (B, L, C)."""

    def start(self, params: Params, cache: PyTree, control: PyTree) -> PyTree:
        """The workspace for one chunk; the cache itself unless overridden."""
        del params, control
        return cache

    @abc.abstractmethod
    def predict_flow(
        self,
        params: Params,
        latent: Array,
        timestep: Array,
        workspace: PyTree,
        control: PyTree,
    ) -> tuple[PyTree, Array]:
        """One evaluation of the network.

        Args:
            params: Weights.
            latent: Noisy chunk.  float32[B, L, C].
            timestep: In [0, 1000].  float32[].
            workspace: From `start`, or from the call before.
            control: What the encoder gave for this chunk, or None.

        Returns:
            The workspace, and the flow noise - x_0, float32[B, L, C].
        """

    def stop(self, workspace: PyTree) -> PyTree:
        """The cache that a workspace holds; the inverse of `start`."""
        return workspace

    @abc.abstractmethod
    def append(
        self,
        params: Params,
        latent: Array,
        timestep: Array,
        cache: PyTree,
        control: PyTree,
    ) -> PyTree:
        """The cache with one clean chunk committed."""

    def postprocess(self, latent: Array, control: PyTree) -> Array:
        """The clean latent as it is kept and decoded; unchanged unless overridden."""
        del control
        return latent

    @abc.abstractmethod
    def patchify(self, latent: Array) -> Array:
        """[B, T, H, W, C] to tokens [B, L, C * patch volume]."""

    @abc.abstractmethod
    def unpatchify(self, latent: Array, cache: PyTree) -> Array:
        """The inverse of `patchify`; the cache knows the sizes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(InstantiateConfig[Transformer]):
    """Base of the configs of denoising networks."""
