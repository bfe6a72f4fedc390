"""The contract of a denoising network that streams against its own cache."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.axes import Array, Params, PyTree
from fdjax.config import InstantiateConfig
from fdjax.contract.component import ParametricComponent
from fdjax.contract.conditioner import Conditions


class FlowNetwork(Protocol):
    """What predicts the flow in some of a solver's steps."""

    def weights(self, params: Params, latent: Array) -> Params:
        """What `predict_flow` takes as its params, where it computes.

        Called once, outside of the loop over the steps. A network whose weights wait
        elsewhere brings them here.

        Args:
            params: The transformer's.
            latent: What the first of the steps sees: there when the steps before it
                are over.  float32[B, L, C].
        """

    def predict_flow(
        self, params: Params, workspace: PyTree, latent: Array, timestep: Array
    ) -> tuple[PyTree, Array]:
        """See `Transformer.predict_flow`."""


class Transformer(ParametricComponent):
    """Predicts the flow of one chunk, seeing the chunks committed before it.

    The life of a chunk:

        workspace = start(params, cache, control)                       once
        workspace, flow = predict_flow(params, workspace, latent, t)    every step
        cache, residue = release(workspace)                             once
        clean = postprocess(residue, clean)                             once
        cache = commit(params, cache, residue, clean, t)                in finalize

    A workspace holds the cache and what is worth computing once per chunk. Between
    `start` and `release` only the current chunk's own slots may change, which no later
    chunk reads: the visible contents of the cache stay as they are. Only `commit`
    changes them.

    The residue is what `commit` needs of the chunk besides its clean latent: the
    control, small tables. It crosses from one compiled program to the next beside the
    cache, so it shares no buffer with the cache (donating both must not alias) and
    holds nothing of the cache's size (a pure call would copy it). What is large is
    made again in `commit`.

    Every array leaf of the cache and of the residue has the sessions, B, as its first
    axis; each session has its own clock.

    Latents are patchified, `[B, L, C]`, float32; the network casts to its own dtype.
    """

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

    @abc.abstractmethod
    def start(self, params: Params, cache: PyTree, control: PyTree) -> PyTree:
        """The workspace for one chunk.

        Args:
            params: Weights.
            cache: The cache; it is handed on in the workspace.
            control: What the encoder gave for this chunk, or None. The one time that
                it is handed over: workspace and residue keep what is needed of it.
        """

    def weights(self, params: Params, latent: Array) -> Params:
        """See `FlowNetwork.weights`; the params unless overridden."""
        del latent
        return params

    @abc.abstractmethod
    def predict_flow(
        self, params: Params, workspace: PyTree, latent: Array, timestep: Array
    ) -> tuple[PyTree, Array]:
        """One evaluation of the network.

        Args:
            params: Weights, from `weights`.
            workspace: From `start`, or from the call before.
            latent: Noisy chunk.  float32[B, L, C].
            timestep: In [0, 1000].  float32[].

        Returns:
            The workspace, and the flow noise - x_0, float32[B, L, C].
        """

    @abc.abstractmethod
    def release(self, workspace: PyTree) -> tuple[PyTree, PyTree]:
        """The cache that a workspace holds, and the residue of the chunk."""

    @abc.abstractmethod
    def commit(
        self,
        params: Params,
        cache: PyTree,
        residue: PyTree,
        clean: Array,
        timestep: Array,
    ) -> PyTree:
        """The cache with one clean chunk committed.

        Args:
            params: Weights.
            cache: From `release`, or the one that `start` was given.
            residue: From `release`.
            clean: The chunk, noised to `timestep` if that is not 0.  float32[B, L, C].
            timestep: In [0, 1000].  float32[].
        """

    def scratch(self, cache: PyTree) -> PyTree:
        """What one chunk, generated and committed in place, changes of the cache.

        The whole cache unless overridden. A network that overwrites a few slots gives
        those alone, so that going back a chunk costs no copy of the window.

        Args:
            cache: Before the chunk.

        Returns:
            A tree that `restore` takes; every leaf has B first.
        """
        return cache

    def restore(
        self, cache: PyTree, scratch: PyTree, sessions: Array | None = None
    ) -> PyTree:
        """The cache as it was when `scratch` was taken, bit for bit.

        Conditions are those of the one or the other: who changes them meanwhile calls
        `update_conditions`.

        Args:
            cache: One chunk later; several chunks go back one by one, newest first.
            scratch: From `scratch`.
            sessions: Which sessions go back; the others stay as they are, bit for bit.
                None: all.  bool[B].
        """
        return scratch if sessions is None else select(sessions, scratch, cache)

    def postprocess(self, residue: PyTree, latent: Array) -> Array:
        """The clean latent as it is kept and decoded; unchanged unless overridden."""
        del residue
        return latent

    def segments(self, timesteps: np.ndarray) -> "Sequence[tuple[int, FlowNetwork]]":
        """Who predicts from which step on; the network itself unless overridden.

        A network of two experts divides the solver's loop between them. They share
        parameters, cache and workspace with this one.

        Args:
            timesteps: Those of the solver's steps.  float32[K].

        Returns:
            Pairs of a step and a network, ascending; the first step is 0.
        """
        del timesteps
        return ((0, self),)

    def check_mesh(self, sizes: Mapping[str, int]) -> None:
        """Refuses a mesh that cannot cut this network; all that cut more than sessions
        unless overridden.

        Args:
            sizes: Devices along each axis; see `fdjax.sharding`.

        Raises:
            ValueError: With what must hold.
        """
        if extra := [name for name, n in sizes.items() if name != "data" and n > 1]:
            raise ValueError(
                f"{type(self).__name__} can be cut by sessions alone, the mesh axis "
                f"data; got {', '.join(extra)}."
            )

    @abc.abstractmethod
    def patchify(self, latent: Array) -> Array:
        """[B, T, H, W, C] to tokens [B, L, C * patch volume]."""

    @abc.abstractmethod
    def unpatchify(self, latent: Array, cache: PyTree) -> Array:
        """The inverse of `patchify`; the cache knows the sizes."""


def select(sessions: Array, chosen: Any, others: Any) -> Any:
    """Some sessions of one tree and the rest of another.

    Args:
        sessions: Which are taken from `chosen`.  bool[B].
        chosen: Leaves [B, ...].
        others: As `chosen`.
    """

    def pick(a: Array, b: Array) -> Array:
        # bool[B] -> bool[B, 1, ...]
        return jnp.where(sessions.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, chosen, others)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(InstantiateConfig[Transformer]):
    """Base of the configs of denoising networks."""
