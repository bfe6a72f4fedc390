"""A diffusion transformer, streamed: what every family of them shares."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdjax import sharding
from fdjax.attention.kv_cache import KVLayout
from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.contract.transformer import Transformer
from fdjax.streaming import patches, positions, rows, storage
from fdjax.streaming.attention import (
    LayerKV,
    SelfAttentionFn,
    SelfContainedAttention,
    StreamingAttention,
)
from fdjax.streaming.cache import KVCache, Residue, StreamCache, Workspace
from fdjax.streaming.layout import StreamLayout


class StreamingDiT(Transformer):
    """Streams a network chunk by chunk: caches, positions, guidance, commit.

    A family gives its `layout`, what it makes of conditions (`context`) and of a
    control (`check_control`, `prepare`, `inputs`, `postprocess`), and one forward
    pass (`forward`).

    Self-attention sees the first `sink_size_t` latent frames and the newest
    `window_size_t`, the current chunk included. Where that is the chunk alone the
    generation is bidirectional and keeps no cache.

    The network knows rows [B G V, ...]: each session's conditional branch, then with
    guidance its unconditional one, and in each of them the views.

    Several views lie side by side in the width of latents and controls, [B, T, H, V W,
    C], so that noise, codecs and files see one picture. Each view is a row with
    positions from zero and a cache of its own; `split_views` parts their tokens.
    """

    # What a family gives

    @property
    @abc.abstractmethod
    def layout(self) -> StreamLayout:
        """The sizes of streaming, from the config."""

    @abc.abstractmethod
    def context(self, params: Params, conditions: Conditions) -> PyTree:
        """What the network makes of the conditions, once per prompt.

        Returns:
            A tree with leaves [B G V, ...]; `rows` puts branches and views together.

        Raises:
            ValueError: A condition is missing or does not fit.
        """

    @abc.abstractmethod
    def forward(
        self,
        params: Params,
        latent: Array,
        timestep: PyTree,
        attention: SelfAttentionFn,
        states: tuple[Any, ...],
        workspace: Workspace,
    ) -> tuple[tuple[Any, ...], Array]:
        """One forward pass of the network.

        Args:
            params: Weights.
            latent: Noisy chunk, conditioned by `inputs`; L is that of one view.
                float32[B G V, L, C].
            timestep: In [0, 1000], as `inputs` gives it.  float32[] or [B G V, ...].
            attention: How queries meet keys.
            states: One per layer, for `attention`.
            workspace: Holds context, control and extras, in rows.

        Returns:
            The layers' new states, and the flow, float32[B G V, L, C].
        """

    def check_control(self, cache: StreamCache, control: PyTree) -> PyTree:
        """The control as the network takes it, B first.

        Raises:
            ValueError: It lacks what the network takes, or has other shapes.
        """
        del cache
        return control

    def prepare(self, params: Params, cache: StreamCache, control: PyTree) -> PyTree:
        """What the network makes of the control once per chunk; rows [B G V, ...]."""
        del params, cache, control

    def inputs(
        self, latent: Array, timestep: Array, cache: StreamCache, control: PyTree
    ) -> tuple[Array, PyTree]:
        """The network's latent and timestep, given the control.

        Args:
            latent: float32[B, L, C].
            timestep: float32[] or [B].
            cache: Tells sizes and each session's age.
            control: From `check_control`.

        Returns:
            float32[B, L, C or more], and the timestep as `forward` takes it: an array
            or a tree of arrays, each a scalar or with B first. The same
            in every view.
        """
        del cache, control
        return latent, timestep

    # Conditions and cache

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> StreamCache:
        """An empty cache; what conditions add is computed here, once.

        Args:
            params: Weights.
            conditions: Their number of rows is B.
            height: Latent rows.
            width: Latent columns, of all views together.

        Raises:
            ValueError: The size is no multiple of the patch, or a condition does not
                fit.
        """
        self.layout.grid(height, width)
        batch = conditions.batch_size
        return StreamCache(
            kv=KVCache.create(self.layout, batch=batch, height=height, width=width),
            context=self._unfold(self.context(params, conditions)),
            height=height,
            width=width,
        )

    def update_conditions(
        self, params: Params, cache: StreamCache, conditions: Conditions
    ) -> StreamCache:
        """The cache with a new prompt; what was generated stays visible.

        Raises:
            ValueError: Another number of sessions, or a condition does not fit.
        """
        if conditions.batch_size != cache.batch:
            raise ValueError(
                f"New conditions must be for the cache's {cache.batch} sessions, got "
                f"{conditions.batch_size}; start a new rollout for another number."
            )
        context = self._unfold(self.context(params, conditions))
        return dataclasses.replace(cache, context=context)

    def check_mesh(self, sizes: Mapping[str, int]) -> None:
        """Refuses a mesh that does not divide heads or branches; see `Transformer`."""
        self.layout.check_mesh(sizes)

    def latent_shape(self, cache: StreamCache) -> tuple[int, int, int]:
        """(B, L, C * patch volume) of one chunk."""
        # A chunk is of as many tokens in every layer.
        [layer, *_] = self.layout.tokens(cache.height, cache.width)
        tokens = layer.chunk * self.layout.num_views
        return cache.batch, tokens, self.layout.features

    # One chunk

    def start(self, params: Params, cache: StreamCache, control: PyTree) -> Workspace:
        """Positions, rotated cached keys and what the control adds, once per chunk.

        Raises:
            ValueError: The control lacks what the network takes, or has other shapes.
        """
        control = self.check_control(cache, control)
        return Workspace(
            tables=tuple(
                positions.chunk_table(self.layout, cache, each)
                for each in positions.timelines(self.layout)
            ),
            extras=self.prepare(params, cache, control),
            control=control,
            rotated_keys=positions.rotated_keys(self.layout, cache),
            # [B, G V, ...] -> [B G V, ...]: the network knows rows only.
            cache=self._map_rows(self._fold, cache),
        )

    def predict_flow(
        self, params: Params, workspace: Workspace, latent: Array, timestep: Array
    ) -> tuple[Workspace, Array]:
        """One evaluation, or with guidance two in one batch; see `Transformer`.

        flow = unconditional + guidance_scale * (conditional - unconditional)
        (classifier-free guidance, arXiv:2207.12598, equation 6, with s = 1 + w).
        """
        kv = workspace.cache.kv
        # Raw keys of the last step are kept where no further pass makes them.
        keep_raw = bool(workspace.rotated_keys) and self.layout.skip_finalize
        states, flow = self._forward(
            params,
            workspace,
            latent,
            timestep,
            self._states(workspace, keep_raw=keep_raw),
        )
        if self.layout.has_memory:
            keys = tuple(state.keys for state in states)
            if workspace.rotated_keys:
                workspace = dataclasses.replace(workspace, rotated_keys=keys)
                # What was written is scratch among the turned keys.
                keys = tuple(s.raw_keys for s in states) if keep_raw else kv.keys
            values = tuple(state.values for state in states)
            kv = dataclasses.replace(kv, keys=keys, values=values)
            cache = dataclasses.replace(workspace.cache, kv=kv)
            workspace = dataclasses.replace(workspace, cache=cache)
        if self.layout.num_rows > 1:
            # Branches and views meet here; the solver's numbers are few.
            flow = sharding.gathered(flow)
        # [B G V, L, C] -> [B, G, V, L, C]
        branches = self.layout.num_branches, self.layout.num_views
        flow = flow.reshape(-1, *branches, *flow.shape[1:])
        # [B, V, L, C]
        guided = flow[:, 0]
        if self.layout.num_branches > 1:
            scale = self.layout.guidance_scale
            guided = flow[:, 1] + scale * (flow[:, 0] - flow[:, 1])
        columns = self.layout.grid(workspace.cache.height, workspace.cache.width)[1]
        return workspace, patches.join_views(guided, columns)

    def release(self, workspace: Workspace) -> tuple[StreamCache, Residue]:
        """The cache, and for `commit` the control, or what the last step wrote."""
        cache = self._kept(workspace.cache)
        chunk = None
        if self.layout.skip_finalize and self.layout.has_memory:
            # A copy of the chunk's slots: a pure `generate` leaves the caller's cache
            # as it was, and drops this one.
            scratch = self.scratch(cache)
            chunk = scratch.keys, scratch.values
        return cache, Residue(control=workspace.control, chunk=chunk)

    def commit(
        self,
        params: Params,
        cache: StreamCache,
        residue: Residue,
        clean: Array,
        timestep: Array,
    ) -> StreamCache:
        """The cache with one clean chunk committed, by one more forward pass.

        The flow is not used, so the compiler leaves out the head and the last block's
        attention and MLP. With `skip_finalize` there is no pass: what the last
        denoising step wrote is put into the chunk's slots.
        """
        num_chunks = cache.kv.num_chunks + np.uint32(1)
        if residue.chunk is not None:
            keys, values = residue.chunk
            scratch = dataclasses.replace(cache.kv, keys=keys, values=values)
            cache = self.restore(cache, scratch)
        if residue.chunk is not None or not self.layout.has_memory:
            kv = dataclasses.replace(cache.kv, num_chunks=num_chunks)
            return dataclasses.replace(cache, kv=kv)
        workspace = self.start(params, cache, residue.control)
        relative = bool(workspace.rotated_keys)
        before = self._states(workspace, keep_raw=relative)
        states, _ = self._forward(params, workspace, clean, timestep, before)
        # In cache-relative mode the turned keys served this pass alone.
        keys = tuple(s.raw_keys if relative else s.keys for s in states)
        values = tuple(state.values for state in states)
        kv = KVCache(keys=keys, values=values, num_chunks=num_chunks)
        return self._kept(dataclasses.replace(workspace.cache, kv=kv))

    def _states(self, workspace: Workspace, *, keep_raw: bool) -> list[LayerKV]:
        """Each layer's buffers before a pass, with the unturned keys if asked for."""
        kv = workspace.cache.kv
        return [
            LayerKV(rotated, values, layout, keys if keep_raw else None)
            for rotated, values, layout, keys in zip(
                workspace.rotated_keys or kv.keys,
                kv.values,
                self._layers(workspace.cache),
                kv.keys,
                strict=True,
            )
        ]

    def scratch(self, cache: StreamCache) -> KVCache:
        """What lies in the slots of the next chunk, and the count."""
        # [B, (G V,) S, N, D] -> [B, (G V,) chunk, N, D]
        pairs = [
            storage.read(layer, keys, values, count)
            for layer, keys, values, count in self._folded_layers(cache, cache.kv)
        ]
        return self._with_pairs(cache.kv, pairs)

    def restore(
        self, cache: StreamCache, scratch: KVCache, sessions: Array | None = None
    ) -> StreamCache:
        """The cache before the chunk whose slots these are; conditions stay."""
        chunks = zip(self._fold(scratch.keys), self._fold(scratch.values), strict=True)
        # [B, (G V,) chunk, N, D] into [B, (G V,) S, N, D]
        pairs = [
            storage.write(layer, keys, values, chunk, count, self.rows(sessions))
            for (layer, keys, values, count), chunk in zip(
                self._folded_layers(cache, scratch), chunks, strict=True
            )
        ]
        kv = self._with_pairs(scratch, pairs)
        if sessions is not None:
            count = jnp.where(sessions, kv.num_chunks, cache.kv.num_chunks)
            kv = dataclasses.replace(kv, num_chunks=count)
        return dataclasses.replace(cache, kv=kv)

    def _folded_layers(self, cache: StreamCache, age: KVCache) -> Any:
        """Each layer's layout, buffers in rows, and the tokens that `age` counts."""
        count = self._row_counts(dataclasses.replace(cache, kv=age))
        keys, values = self._fold(cache.kv.keys), self._fold(cache.kv.values)
        layers = self._layers(cache)
        tokens = [layer.ring_tokens(count) for layer in layers]
        return zip(layers, keys, values, tokens, strict=True)

    def _with_pairs(self, kv: KVCache, pairs: list[tuple[Array, Array]]) -> KVCache:
        """The cache with each layer's keys and values, [B G V, ...], unfolded."""
        keys = self._unfold(tuple(key for key, _ in pairs))
        values = self._unfold(tuple(value for _, value in pairs))
        return dataclasses.replace(kv, keys=keys, values=values)

    def patchify(self, latent: Array) -> Array:
        """[B, T, H, W, C] to [B, L, C * patch volume], features (channel, t, h, w)."""
        return patches.patchify(latent, self.layout.patch_size)

    def unpatchify(self, latent: Array, cache: StreamCache) -> Array:
        """The inverse of `patchify`."""
        sizes = self.layout.len_t, cache.height, cache.width
        return patches.unpatchify(latent, sizes, self.layout.patch_size)

    # Rows: branches of guidance, and views

    def rows(
        self,
        conditional: Any,
        unconditional: Array | None = None,
        *,
        by_view: bool = False,
    ) -> Any:
        """Each session's branches one after the other, in each of them its views.

        Args:
            conditional: [B, ...], or None.
            unconditional: [B, ...]; None: as `conditional`.
            by_view: Whether the arrays are [B, V, ...]; else all views get the same.

        Returns:
            [B G V, ...], or None; the same array if there is one row per session.
        """
        return rows.spread(self.layout, conditional, unconditional, by_view=by_view)

    def split_views(self, tokens: Array, cache: StreamCache) -> Array:
        """Tokens of a patchified latent by view, [B, V L, ...] to [B, V, L, ...]."""
        _, columns = self.layout.grid(cache.height, cache.width)
        return patches.split_views(tokens, self.layout.num_views, columns)

    def _fold(self, tree: PyTree) -> PyTree:
        return rows.fold(self.layout, tree)

    def _unfold(self, tree: PyTree) -> PyTree:
        return rows.unfold(self.layout, tree)

    def _kept(self, cache: StreamCache) -> StreamCache:
        """A workspace's cache as it is carried, [B G V, ...] -> [B, G V, ...]."""
        cache = self._map_rows(self._unfold, cache)
        # Cut as it came, so that it can take its place.
        return sharding.constrain_tree(cache, sharding.CACHE)

    def _map_rows(self, function: Any, cache: StreamCache) -> StreamCache:
        """The cache with what has rows folded or unfolded."""
        keys, values, context = function(
            (cache.kv.keys, cache.kv.values, cache.context)
        )
        kv = dataclasses.replace(cache.kv, keys=keys, values=values)
        return dataclasses.replace(cache, kv=kv, context=context)

    # The forward pass, and positions

    def _forward(
        self,
        params: Params,
        workspace: Workspace,
        latent: Array,
        timestep: Array,
        states: list[LayerKV],
    ) -> tuple[tuple[Any, ...], Array]:
        """The network on all rows."""
        cache, layout = workspace.cache, self.layout
        attention: SelfAttentionFn
        layers: tuple[Any, ...] = tuple(states)
        if layout.has_memory:
            num_chunks = self._row_counts(cache)
            timelines = positions.timelines(layout)
            tables = dict(zip(timelines, workspace.tables, strict=True))
            by_layer = {
                tokens: tables[positions.timeline(layout, frames)]
                for tokens, frames in zip(
                    self._layers(cache), layout.frames, strict=True
                )
            }
            attention = StreamingAttention(num_chunks, layout.rope, by_layer)
        else:
            attention = SelfContainedAttention(layout.rope, workspace.tables[0])
            layers = (None,) * layout.num_layers
        latent, timestep = self.inputs(latent, timestep, cache, workspace.control)
        latent = self.rows(self.split_views(latent, cache), by_view=True)
        # Rows and tokens are cut from what all devices hold, and nothing is sent.
        latent = sharding.gathered(latent)
        return self.forward(
            params,
            sharding.constrain(latent, "BLC"),
            jax.tree.map(lambda x: self.rows(x) if jnp.ndim(x) else x, timestep),
            attention,
            layers,
            workspace,
        )

    def _row_counts(self, cache: StreamCache) -> Array:
        """Chunks committed, uint32[B G V]; that of a single session serves all rows."""
        count = cache.kv.num_chunks
        return self.rows(count) if cache.batch > 1 else count

    def _layers(self, cache: StreamCache) -> tuple[KVLayout, ...]:
        """Each layer's layout in tokens; none where there are no buffers."""
        sizes = cache.height, cache.width
        return self.layout.tokens(*sizes) if self.layout.has_memory else ()
