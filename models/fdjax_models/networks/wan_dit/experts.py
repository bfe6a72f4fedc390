"""Two Wan DiTs in turn: one for high noise, one for low (Wan 2.2 A14B).

step        0    1    2  |  3    4    5    6    7       commit
timestep  1000   ...     |       ...                    0         0
        [   high noise   ]                         [high noise]
                         [      low noise       ]            [low noise ]
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from fdjax import checkpoint
from fdjax.axes import Array, Params, PyTree
from fdjax.contract.component import ParametricComponent
from fdjax.contract.conditioner import Conditions
from fdjax.contract.transformer import FlowNetwork, Transformer
from fdjax.sharding import to_device_memory
from fdjax_models.networks.wan_dit.transformer import (
    WanTransformer,
    WanTransformerConfig,
)

HIGH, LOW = "high_noise", "low_noise"
# Folders of published checkpoints: diffusers' second network, and the official names.
_OF_HIGH = {"high_noise", "high_noise_model"}
_OF_LOW = {"low_noise", "low_noise_model", "transformer_2"}


@flax.struct.dataclass(kw_only=True)
class ExpertPair:
    """A cache, a workspace or a residue of each expert.

    Attributes:
        high_noise: Of the expert for noisy latents.
        low_noise: Of the other one.
    """

    high_noise: PyTree
    low_noise: PyTree


class WanExperts(Transformer):
    """Denoises with one expert down to a noise level, then with the other.

    Each has weights and a key/value cache of its own, since their activations differ.
    A denoising step writes the cache of one of them, a commit those of both
    (NVIDIA/flashdreams, recipes/wan/transformer/wan22.py).

    Weights that lie in the host's memory (`fdjax.sharding.in_host_memory`) are brought
    to the device for their expert's turn: the device never holds those of both.
    """

    config: "WanExpertsConfig"

    @functools.cached_property
    def parts(self) -> Mapping[str, ParametricComponent]:
        """The two networks."""
        return {HIGH: self._expert(HIGH), LOW: self._expert(LOW)}

    def check_files(self) -> None:
        """Refuses a converted checkpoint that was made of the other expert's.

        Raises:
            ValueError: With both names.
        """
        paths = (part.checkpoint_path for part in self.parts.values())
        _check_names(*(path and checkpoint.origin(path) for path in paths))

    def init_params(self, key: jax.Array) -> Params:
        """Random weights of both networks."""
        keys = self.part_keys(key)
        return {name: part.init_params(keys[name]) for name, part in self.parts.items()}

    def segments(self, timesteps: np.ndarray) -> Sequence[tuple[int, FlowNetwork]]:
        """Above the boundary the one, at and below it the other.

        The reference compares both in the network's dtype: in bfloat16 they are
        multiples of 4 above 512, and the boundary 875 is 876.
        """
        dtype = jnp.dtype(self.config.network.dtype)
        rounded, boundary = (
            np.asarray(x, np.float32).astype(dtype).astype(np.float32)
            for x in (timesteps, self.config.boundary)
        )
        high = rounded > boundary
        count = int(high.sum())
        if not high[:count].all():
            raise ValueError(
                "The solver's timesteps must cross the boundary once, "
                f"{self.config.boundary}, got {timesteps.tolist()}."
            )
        both = [(0, _Turn(self, HIGH)), (count, _Turn(self, LOW))]
        ends = [count, len(timesteps)]
        # Without an expert that no step needs.
        return [
            (first, turn)
            for (first, turn), end in zip(both, ends, strict=True)
            if first < end
        ]

    # Each of these asks both experts, or the one whose sizes serve for both.

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> ExpertPair:
        """Two empty caches for the same conditions."""
        return self._each(
            lambda part, own: part.initialize_cache(own, conditions, height, width),
            params,
        )

    def update_conditions(
        self, params: Params, cache: ExpertPair, conditions: Conditions
    ) -> ExpertPair:
        """Both caches with a new prompt."""
        return self._each(
            lambda part, own, one: part.update_conditions(own, one, conditions),
            params,
            cache,
        )

    def start(self, params: Params, cache: ExpertPair, control: PyTree) -> ExpertPair:
        """Both workspaces; the control is the same for both."""
        return self._each(
            lambda part, own, one: part.start(own, one, control), params, cache
        )

    def predict_flow(
        self, params: Params, workspace: ExpertPair, latent: Array, timestep: Array
    ) -> tuple[ExpertPair, Array]:
        """That of the expert for high noise; `segments` gives each one's turn."""
        turn = _Turn(self, HIGH)
        weights = turn.weights(params, latent)
        return turn.predict_flow(weights, workspace, latent, timestep)

    def release(self, workspace: ExpertPair) -> tuple[ExpertPair, ExpertPair]:
        """Both caches, and both residues."""
        pairs = {name: part.release(_of(workspace, name)) for name, part in self._all}
        caches, residues = ({n: pair[i] for n, pair in pairs.items()} for i in (0, 1))
        return ExpertPair(**caches), ExpertPair(**residues)

    def commit(
        self,
        params: Params,
        cache: ExpertPair,
        residue: ExpertPair,
        clean: Array,
        timestep: Array,
    ) -> ExpertPair:
        """Both caches with the chunk committed, by a forward pass of each expert."""
        done: dict[str, PyTree] = {}
        for name, part in self._all:
            own = to_device_memory(params[name], after=done)
            done[name] = part.commit(
                own, _of(cache, name), _of(residue, name), clean, timestep
            )
        return ExpertPair(**done)

    def scratch(self, cache: ExpertPair) -> ExpertPair:
        """What a chunk overwrites in both caches."""
        return self._each(lambda part, one: part.scratch(one), cache)

    def restore(
        self, cache: ExpertPair, scratch: ExpertPair, sessions: Array | None = None
    ) -> ExpertPair:
        """Both caches as they were."""
        return self._each(
            lambda part, one, taken: part.restore(one, taken, sessions), cache, scratch
        )

    def postprocess(self, residue: ExpertPair, latent: Array) -> Array:
        """The clean latent with the first frame, as configured."""
        return self._first.postprocess(residue.high_noise, latent)

    def check_mesh(self, sizes: Mapping[str, int]) -> None:
        """Refuses a mesh that cuts no expert; both have the same sizes."""
        self._first.check_mesh(sizes)

    def latent_shape(self, cache: ExpertPair) -> tuple[int, int, int]:
        """(B, L, C * patch volume) of one chunk."""
        return self._first.latent_shape(cache.high_noise)

    def patchify(self, latent: Array) -> Array:
        """[B, T, H, W, C] to [B, L, C * patch volume]."""
        return self._first.patchify(latent)

    def unpatchify(self, latent: Array, cache: ExpertPair) -> Array:
        """The inverse of `patchify`."""
        return self._first.unpatchify(latent, cache.high_noise)

    @functools.cached_property
    def _all(self) -> tuple[tuple[str, WanTransformer], ...]:
        return tuple((name, self._expert(name)) for name in (HIGH, LOW))

    @property
    def _first(self) -> WanTransformer:
        return self._all[0][1]

    def _expert(self, name: str) -> WanTransformer:
        """One of them by itself: the same settings, and a checkpoint of its own."""
        own = {
            field.name: getattr(self.config, field.name)
            for field in dataclasses.fields(WanTransformerConfig)
            if field.name != "_target"
        }
        if name == LOW:
            own["checkpoint_path"] = self.config.low_noise_checkpoint_path
        return WanTransformer(WanTransformerConfig(**own))

    def _each(self, function: Any, *trees: Any) -> ExpertPair:
        """The function of each expert and its part of every tree."""
        return ExpertPair(
            **{
                name: function(part, *(_of(tree, name) for tree in trees))
                for name, part in self._all
            }
        )


@dataclasses.dataclass(frozen=True)
class _Turn:
    """One expert's steps: it writes its part of the common workspace."""

    experts: WanExperts
    name: str

    def weights(self, params: Params, latent: Array) -> Params:
        """The expert's own, on the device; see `FlowNetwork.weights`."""
        return to_device_memory(params[self.name], after=latent)

    def predict_flow(
        self, params: Params, workspace: ExpertPair, latent: Array, timestep: Array
    ) -> tuple[ExpertPair, Array]:
        """See `Transformer.predict_flow`; the params are those of `weights`."""
        part = dict(self.experts._all)[self.name]
        own, flow = part.predict_flow(
            params, _of(workspace, self.name), latent, timestep
        )
        return dataclasses.replace(workspace, **{self.name: own}), flow


def _of(tree: Any, name: str) -> Any:
    """One expert's part of a pair, or of params, brought to the device."""
    if isinstance(tree, ExpertPair):
        return getattr(tree, name)
    return to_device_memory(tree[name])


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanExpertsConfig(WanTransformerConfig):
    """Config of `WanExperts`: the settings of both, and two checkpoints.

    `checkpoint_path` is that of the expert for high noise.
    """

    _target: type = WanExperts

    low_noise_checkpoint_path: str | None = None
    """Published or converted checkpoint of the expert for low noise."""

    boundary: float = 875.0
    """Timestep, in [0, 1000], above which the expert for high noise predicts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.boundary <= 1000:
            raise ValueError(
                f"boundary is a timestep in [0, 1000], got {self.boundary}."
            )
        _check_names(self.checkpoint_path, self.low_noise_checkpoint_path)


def _check_names(high: str | None, low: str | None) -> None:
    """Refuses checkpoints that are the same one, or by their folders exchanged.

    The experts have the same keys and shapes.

    Raises:
        ValueError: With both, or the field and the folder.
    """
    if high is not None and high == low:
        raise ValueError(
            "checkpoint_path and low_noise_checkpoint_path must name two "
            f"checkpoints, one for each expert; both are {high}."
        )
    for field, source, others in (
        ("checkpoint_path", high, _OF_LOW),
        ("low_noise_checkpoint_path", low, _OF_HIGH),
    ):
        parts = set() if source is None else set(pathlib.PurePath(source).parts)
        if wrong := sorted(parts & others):
            raise ValueError(
                f"{field} must name the other expert's checkpoint: {source} is in "
                f"a folder {wrong[0]}. Change the two paths over."
            )
