"""Checks that a method does something with what it is given, and keeps what it must.

The other checks compare a method with itself, which one that ignores its inputs passes
too. These change one thing, a control, a committed chunk, a state, and look whether
what depends on it changes. Each assertion says which function to look at.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.attention.kv_cache import KVLayout
from fdjax.axes import Array, Params, PyTree
from fdjax.contract.transformer import Transformer
from fdjax.engine import stages
from fdjax.engine.cache import StreamInferencePipelineCache
from fdjax.engine.diffusion import DiffusionModel
from fdjax.streaming import storage
from fdjax.streaming.cache import StreamCache
from fdjax.streaming.dit import StreamingDiT
from fdjax.testing.case import PipelineCase, assert_close, perturbed, same

# Float32 sums of a few terms, over at most a hundred steps of a solver.
_SOLVER_TOLERANCE = 1e-4


def latent_size(transformer: Transformer, cache: PyTree) -> tuple[int, ...]:
    """Shape of a chunk as a latent, (B, T, H, W, C)."""
    tokens = jnp.zeros(transformer.latent_shape(cache))
    return jax.eval_shape(lambda: transformer.unpatchify(tokens, cache)).shape


@functools.partial(jax.jit, static_argnums=0)
def _flow(
    model: DiffusionModel, params: Params, cache: PyTree, control: PyTree, latent: Array
) -> Array:
    """The flow of a solver's first step.  float32[B, L, C]."""
    transformer, timestep = model.transformer, model.scheduler.steps.timestep[0]
    workspace = transformer.start(params, cache, control)
    [(_, network), *_] = transformer.segments(model.scheduler.steps.timestep)
    weights = network.weights(params, latent)
    return network.predict_flow(weights, workspace, latent, jnp.float32(timestep))[1]


def _encode(
    case: PipelineCase, cache: StreamInferencePipelineCache, input: PyTree
) -> PyTree:
    """The control that an input gives."""
    encoder = case.pipeline.encoder
    if encoder is None:
        return None
    params = case.params()["encoder"]
    return stages.encode(encoder, params, cache.encoder_cache, input)[1]


def check_patches(case: PipelineCase) -> None:
    """`patchify` and `unpatchify` undo each other, on a latent that is no square too.

    Sizes are those of the case, and rows and columns swapped or stretched where the
    network takes that.
    """
    transformer = case.pipeline.diffusion_model.transformer
    for cache, rows_and_columns in _caches_of_sizes(case):
        shape = transformer.latent_shape(cache)
        tokens = jax.random.normal(jax.random.key(0), shape)
        latent = transformer.unpatchify(tokens, cache)
        assert latent.ndim == 5, (
            f"unpatchify gave {latent.shape}, a latent is [B, T, H, W, C]"
        )
        size = rows_and_columns or latent.shape[2:4]
        assert latent.shape[2:4] == size, (
            f"unpatchify gave {latent.shape[2:4]} rows and columns, the cache is for "
            f"{size}"
        )
        again = transformer.patchify(latent)
        assert same(again, tokens), (
            "patchify does not undo unpatchify: tokens come back in another order or "
            f"shape, {again.shape} for {shape}; on a latent {latent.shape}"
        )
        latent = jax.random.normal(jax.random.key(1), latent.shape)
        again = transformer.unpatchify(transformer.patchify(latent), cache)
        assert same(again, latent), (
            f"unpatchify does not undo patchify on a latent {latent.shape}: rows, "
            "columns, frames or channels are swapped"
        )


def _caches_of_sizes(
    case: PipelineCase,
) -> list[tuple[PyTree, tuple[int, int] | None]]:
    """Empty caches of the transformer, and the rows and columns that they are for."""
    setting = case.setting()
    if setting is None:
        return [(case.cache().transformer_cache, None)]
    caches: list[tuple[PyTree, tuple[int, int] | None]]
    caches = [(case.cache().transformer_cache, setting.latents)]
    transformer = case.pipeline.diffusion_model.transformer
    params, (height, width) = case.params()["transformer"], setting.latents
    for size in ((height, 2 * width), (2 * height, width)):
        make = functools.partial(
            transformer.initialize_cache, height=size[0], width=size[1]
        )
        try:
            shapes = jax.eval_shape(make, params, setting.conditions)
        except ValueError:  # a network of one size
            continue
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        caches.append((zeros, size))
    return caches


def check_scheduler(case: PipelineCase) -> None:
    """The solver leads a network that knows the clean latent to it, and reads draws."""
    scheduler = case.pipeline.diffusion_model.scheduler
    steps, sigmas = scheduler.steps, np.asarray(scheduler.sigmas)
    needs = np.asarray(steps.needs_draw)
    assert sigmas.shape == scheduler.timesteps.shape == (len(needs) + 1,), (
        "sigmas and timesteps have one entry per step, and one for the end"
    )
    assert (np.diff(sigmas) < 0).all(), f"sigmas must decrease, got {sigmas}"
    # Two latents and a draw per step, float32[64] each.
    noise, clean, *draws = jax.random.normal(
        jax.random.key(0), (2 + len(needs), 64), jnp.float32
    )
    state = scheduler.init(noise)
    for index, (needed, draw) in enumerate(zip(needs, draws, strict=True)):
        record = jax.tree.map(lambda column: column[index], steps)  # noqa: B023
        # x = (1 - sigma) x_0 + sigma noise, so that this is noise - x_0.
        flow = (state.latent - clean) / sigmas[index]
        following = scheduler.update(state, record, flow, draw * needed)
        if needed:
            other = scheduler.update(state, record, flow, -draw)
            assert not same(other.latent, following.latent), (
                f"step {index} says needs_draw, but update ignores its draw"
            )
        state = following
    if sigmas[-1] > 0:  # some noise is left on purpose
        return
    hint = "update does not lead the exact flow to the clean latent"
    assert_close(scheduler.result(state), clean, _SOLVER_TOLERANCE, hint=hint)


def check_control(case: PipelineCase) -> None:
    """Another input changes the control, and another control changes the flow."""
    pipeline, model = case.pipeline, case.pipeline.diffusion_model
    if case.make_input is None or pipeline.encoder is None:
        return
    params = case.params()["transformer"]
    encoded, steered = [], []
    for index in (0, 2):
        cache, _ = case.run(case.cache(), range(index))
        input, other = case.input(index), case.other_input(index)
        if other is None:
            return
        controls = [_encode(case, cache, each) for each in (input, other)]
        encoded.append(not same(*controls))
        shape = model.transformer.latent_shape(cache.transformer_cache)
        latent = jax.random.normal(jax.random.key(index), shape)
        flows = [
            _flow(model, params, cache.transformer_cache, control, latent)
            for control in controls
        ]
        steered.append(not same(*flows))
    assert any(encoded), "the encoder gives the same control whatever its input"
    assert any(steered), (
        "predict_flow gives the same flow whatever the control; look at start, at what "
        "the workspace keeps of the control, and at predict_flow"
    )


def _pair(
    case: PipelineCase, index: int
) -> tuple[StreamInferencePipelineCache, StreamInferencePipelineCache]:
    """Ready caches after chunk `index`, of which only that chunk's content differs."""
    pipeline, params = case.pipeline, case.params()
    cache, _ = case.run(case.cache(), range(index))
    pending, _ = pipeline.generate(params, cache, case.input(index))
    assert pending.final_state is not None
    state, transformer = pending.final_state, pipeline.diffusion_model.transformer
    if isinstance(transformer, StreamingDiT) and transformer.layout.skip_finalize:
        # What is committed are the keys and values of the residue.
        state = perturbed(state)
    else:
        state = dataclasses.replace(state, clean=perturbed(state.clean))
    other = dataclasses.replace(pending, final_state=state)
    return pipeline.finalize(params, pending), pipeline.finalize(params, other)


def _differ(
    case: PipelineCase,
    caches: Sequence[StreamInferencePipelineCache],
    index: int,
) -> bool:
    """Whether two caches make different latents of chunk `index`."""
    states = [
        case.pipeline.generate(case.params(), cache, case.input(index))[0].final_state
        for cache in caches
    ]
    return not same(*(state.clean for state in states if state is not None))


def check_commit(case: PipelineCase) -> None:
    """What is committed reaches the next chunk."""
    if not case.has_memory:
        return
    caches = _pair(case, 1)
    assert not same(*(cache.transformer_cache for cache in caches)), (
        "commit gives the same cache whatever the clean latent: it commits nothing; a "
        "method that keeps nothing sets remembers=False in its PipelineCase"
    )
    assert _differ(case, caches, 2), (
        "the next chunk is the same whatever was committed; look at what start and "
        "predict_flow read of the cache"
    )


def check_history(case: PipelineCase) -> None:
    """New conditions leave what was committed visible."""
    pipeline, params, setting = case.pipeline, case.params(), case.setting()
    if case.new_conditions is not None:
        conditions = case.new_conditions(pipeline, params)
    elif setting is not None:  # the old ones again change nothing, either
        conditions = setting.conditions
    else:
        return
    if not case.has_memory:
        return
    caches: Sequence[StreamInferencePipelineCache] = _pair(case, 1)
    for _ in range(2):  # the second time they are no longer new
        caches = [
            pipeline.update_conditions(params, cache, conditions) for cache in caches
        ]
        assert _differ(case, caches, 2), (
            "after update_conditions the next chunk no longer depends on the committed "
            "ones: it wipes the history; replace the conditions' part of the cache only"
        )


def check_encoder_state(case: PipelineCase) -> None:
    """What the encoder keeps of its inputs is read, and what it reads is kept."""
    encoder = case.pipeline.encoder
    if case.make_input is None or encoder is None:
        return
    cache = case.cache()
    params = case.params()["encoder"]
    inputs = [case.input(index) for index in range(4)]
    step = functools.partial(stages.encode, encoder, params)
    if _check_state("encode", step, cache.encoder_cache, inputs, case.other_input(1)):
        return
    assert _comes_from_conditions(case), (
        "encode reads a state that it never writes, and that is not made of the "
        "conditions either: it forgets its inputs; return the new state first"
    )


def _comes_from_conditions(case: PipelineCase) -> bool:
    """Whether an encoder's first state depends on the conditions."""
    encoder, setting = case.pipeline.encoder, case.setting()
    if setting is None or encoder is None:
        return True
    states = [
        encoder.initialize_cache(case.params()["encoder"], each, *setting.latents)
        for each in (setting.conditions, perturbed(setting.conditions))
    ]
    return not same(*states)


def check_decoder_state(case: PipelineCase) -> None:
    """What the decoder keeps of its latents is read, and what it reads is kept."""
    decoder = case.pipeline.decoder
    if decoder is None:
        return
    cache = case.cache()
    transformer = case.pipeline.diffusion_model.transformer
    shape = latent_size(transformer, cache.transformer_cache)
    # Four chunks to decode, and one in place of the second.
    *latents, other = jax.random.normal(jax.random.key(0), (5, *shape))
    step = functools.partial(stages.decode, decoder, case.params()["decoder"])
    assert _check_state("decode", step, cache.decoder_cache, latents, other), (
        "decode reads a state that it never writes: it forgets its latents; return the "
        "new state first"
    )


def _check_state(
    name: str,
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    state: PyTree,
    inputs: Sequence[PyTree],
    other: PyTree,
) -> bool:
    """Whether a state is not one that is read and never written.

    Raises:
        AssertionError: It is written and never read.
    """
    # Past the first chunk, which may have a structure of its own.
    state, _ = step(state, inputs[0])
    # Two states that differ by the last input only.
    first, _ = step(state, inputs[1])
    second, _ = step(state, inputs[1] if other is None else other)
    written, read = not same(first, second), False
    fixed = same(first, state)
    for input in inputs[2:]:
        (first, a), (second, b) = step(first, input), step(second, input)
        read = read or not same(a, b)
    assert read or not written, (
        f"{name} writes a state that depends on its input, and no later chunk depends "
        "on that state: it forgets; read the state that it is given"
    )
    if written or not fixed:
        return True
    outputs = [step(each, inputs[2])[1] for each in (state, perturbed(state))]
    return same(*outputs)


def check_window(case: PipelineCase) -> None:
    """Of a `StreamingDiT`: exactly the tokens of sink and window are seen.

    Frame after frame of the buffers gets other values, over a whole turn of the ring.
    """
    transformer = case.pipeline.diffusion_model.transformer
    if not isinstance(transformer, StreamingDiT) or not transformer.layout.has_memory:
        return
    frames = transformer.layout.frames
    # Chunks that fill every layer's buffer, and those until a ring comes around.
    full = max(each.capacity // each.chunk for each in frames)
    turn = max(each.window // math.gcd(each.window, each.chunk) for each in frames)
    cache, _ = case.run(case.cache(), range(full))
    for index in range(full, full + min(turn, 6)):
        _check_visible(case, transformer, cache, index)
        cache, _ = case.run(cache, range(index, index + 1))


def _check_visible(
    case: PipelineCase,
    transformer: StreamingDiT,
    cache: StreamInferencePipelineCache,
    index: int,
) -> None:
    """The frames that chunk `index` sees, and those that it does not."""
    model, params = case.pipeline.diffusion_model, case.params()["transformer"]
    control = _encode(case, cache, case.input(index))
    stream: StreamCache = cache.transformer_cache
    shape = transformer.latent_shape(stream)
    latent = jax.random.normal(jax.random.key(index), shape)
    flow = functools.partial(_flow, model, params)
    expected = flow(stream, control, latent)
    end = (index + 1) * transformer.layout.frames[0].chunk
    for frame in range(end - transformer.layout.frames[0].chunk):
        for seen in (True, False):
            layers = [
                _visible(each, end, frame) is seen and _held(each, end, frame)
                for each in transformer.layout.frames
            ]
            if not any(layers):
                continue
            # The ends of a frame that is seen must reach the flow, of others nothing.
            for tokens in _ends(transformer, stream) if seen else (slice(None),):
                changed = _with_other_frame(transformer, stream, frame, tokens, layers)
                differs = not same(flow(changed, control, latent), expected)
                assert differs is seen, (
                    f"chunk {index} {'does not see' if seen else 'sees'} latent frame "
                    f"{frame} of tokens, or a part of it, which is "
                    f"{'in' if seen else 'out of'} its sink and window; look at the "
                    "layout, the slots and the valid length"
                )


def _ends(transformer: StreamingDiT, cache: StreamCache) -> tuple[slice, slice]:
    """A frame's first token, and its last: a bound that is off by one loses one."""
    rows, columns = transformer.layout.grid(cache.height, cache.width)
    return slice(1), slice(rows * columns - 1, None)


def _visible(layout: KVLayout, end: int, frame: int) -> bool:
    """Whether a committed frame is seen when the current chunk ends before `end`."""
    return frame < layout.sink or frame >= end - layout.window


def _held(layout: KVLayout, end: int, frame: int) -> bool:
    """Whether a buffer holds the frame, before the current chunk is written."""
    return frame < layout.sink or frame >= end - layout.chunk - layout.window


def _with_other_frame(
    transformer: StreamingDiT,
    cache: StreamCache,
    frame: int,
    tokens: slice,
    layers: Sequence[bool],
) -> StreamCache:
    """The cache with other values in the slots of a frame's tokens, in some layers."""
    rows, columns = transformer.layout.grid(cache.height, cache.width)
    values = list(cache.kv.values)
    for layer, chosen in enumerate(layers):
        if not chosen:
            continue
        layout = transformer.layout.frames[layer]
        # The frame's slot, counted in frames.
        slot = frame
        if frame >= layout.sink:
            slot = layout.sink + (frame - layout.sink) % layout.window
        slots = np.arange(slot * rows * columns, (slot + 1) * rows * columns)[tokens]
        # On the host, where no index compiles anything.  [B, (G,) S, N, D]
        buffer = np.array(storage.values_by_slot(np.asarray(values[layer])))
        noise = np.random.default_rng(0).normal(size=buffer[..., slots, :, :].shape)
        buffer[..., slots, :, :] += noise.astype(buffer.dtype)
        values[layer] = jnp.asarray(storage.as_stored(buffer))
    kv = dataclasses.replace(cache.kv, values=tuple(values))
    return dataclasses.replace(cache, kv=kv)


BEHAVIOUR: tuple[Callable[[PipelineCase], None], ...] = (
    check_patches,
    check_scheduler,
    check_control,
    check_commit,
    check_history,
    check_encoder_state,
    check_decoder_state,
    check_window,
)
"""The checks of this file, in an order in which a failure says most."""
