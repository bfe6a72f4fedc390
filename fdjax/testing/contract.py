"""The contract suite: what every pipeline must hold, for tests of any method.

Use it from a plug-in's own tests:

    from fdjax import testing

    CASE = testing.PipelineCase(config=tiny_config, initialize=initialize)

    @pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(CASE)

Take a tiny config with random weights: each check runs a few chunks.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fdjax.axes import PyTree
from fdjax.engine import stages
from fdjax.engine.cache import (
    StreamInferencePipelineCache,
    put_session,
    stack_caches,
    take_session,
)
from fdjax.session import journal
from fdjax.streaming.cache import StreamCache
from fdjax.testing.behaviour import BEHAVIOUR, latent_size
from fdjax.testing.case import (
    PipelineCase,
    assert_close,
    count_compilations,
    joined,
    signature,
    to_host,
)

# float32, over six chunks: a batch sums in another order than a session alone.
SESSION_TOLERANCE = 1e-5

# By which low precision may leave the range of a video, relative to its width.
VIDEO_SLACK = 0.005


def check_output(case: PipelineCase) -> None:
    """Video is finite, in its range, of the promised size; chunks differ."""
    pipeline = case.pipeline
    _, videos = case.run(case.cache(), range(3))
    for index, video in enumerate(videos):
        assert np.isfinite(video).all()
        assert video.std() > 0
        if pipeline.decoder is not None:
            _check_video(case, video, index == 0)
    assert not np.array_equal(videos[1], videos[2])


def _check_video(case: PipelineCase, video: np.ndarray, first: bool) -> None:
    """Frames, rows, columns and values of a decoder's video."""
    decoder, setting = case.pipeline.decoder, case.setting()
    assert decoder is not None
    transformer = case.pipeline.diffusion_model.transformer
    num_latents = latent_size(transformer, case.cache().transformer_cache)[1]
    expected = decoder.num_output_frames(num_latents, first)
    assert video.shape[1] == expected, (
        f"decode gave {video.shape[1]} frames for {num_latents} latent frames, "
        f"num_output_frames promises {expected}"
    )
    if setting is not None:
        assert video.shape[2:4] == setting.pixels, (
            f"the video is {video.shape[2:4]} pixels, asked for were {setting.pixels}; "
            "look at unpatchify, decode and spatial_compression_ratio"
        )
    if decoder.video_range is not None:
        low, high = decoder.video_range
        slack = VIDEO_SLACK * (high - low)
        assert low - slack <= video.min() <= video.max() <= high + slack, (
            f"decode gave values from {video.min():.4g} to {video.max():.4g}, video "
            f"must lie in [{low:g}, {high:g}]; bound it, or set video_range"
        )


def check_reproducible(case: PipelineCase) -> None:
    """Same key, same bytes; another key, another video."""
    _, first = case.run(case.cache(seed=0), range(3))
    _, again = case.run(case.cache(seed=0), range(3))
    _, other = case.run(case.cache(seed=1), range(3))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[-1], other[-1])


def check_fork(case: PipelineCase) -> None:
    """`generate` and `finalize` leave the caller's cache as it was."""
    pipeline, params = case.pipeline, case.params()
    cache, _ = case.run(case.cache(), range(2))
    before = to_host(cache)
    pending, first = pipeline.generate(params, cache, case.input(2))
    pending_before = to_host(pending)
    pipeline.finalize(params, pending)
    _assert_identical(to_host(cache), before)
    _assert_identical(to_host(pending), pending_before)
    _, again = pipeline.generate(params, cache, case.input(2))
    assert np.array_equal(joined(first), joined(again))


def check_resume(case: PipelineCase) -> None:
    """A cache copied to the host and back goes on bit for bit."""
    cache, _ = case.run(case.cache(), range(2))
    _, unbroken = case.run(cache, range(2, case.num_chunks))
    leaves, structure = jax.tree.flatten(cache)
    leaves = [
        # A typed key goes to the host as its words.
        jax.random.wrap_key_data(jax.numpy.array(jax.random.key_data(leaf)))
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jax.numpy.asarray(np.asarray(leaf))
        for leaf in leaves
    ]
    _, resumed = case.run(
        jax.tree.unflatten(structure, leaves), range(2, case.num_chunks)
    )
    assert all(np.array_equal(a, b) for a, b in zip(unbroken, resumed, strict=True))


def check_donate(case: PipelineCase) -> None:
    """Working in place gives the same video and refuses the used-up cache."""
    pipeline, params = case.pipeline, case.params()
    chunks = range(case.num_chunks)
    _, pure = case.run(case.cache(), chunks)
    _, in_place = case.run(case.cache(), chunks, donate=True)
    hint = (
        "working in place gives another video: what predict_flow, release or commit "
        "leave in the cache is seen where it must not be"
    )
    for desired, actual in zip(pure, in_place, strict=True):
        assert_close(actual, desired, hint=hint)
    used = case.cache()
    pipeline.generate(params, used, case.input(0), donate=True)
    _assert_refused("donate", lambda: pipeline.generate(params, used, case.input(0)))


def check_undo(case: PipelineCase) -> None:
    """`scratch` and `restore` lead back over every chunk made in place, to the bit."""
    pipeline = case.pipeline
    cache, entries, caches, videos = case.cache(), [], [], []
    for index in range(case.num_chunks):
        caches.append(to_host(cache))
        entries.append(journal.take(pipeline, cache))
        cache, [video] = case.run(cache, range(index, index + 1), donate=True)
        videos.append(video)
    for entry, before in zip(reversed(entries), reversed(caches), strict=True):
        cache = journal.restore(pipeline, cache, journal.to_host(entry))
        alike = map(np.array_equal, to_host(cache), before)
        assert all(alike), "restore does not give the cache that scratch was taken of"
    _, again = case.run(cache, range(case.num_chunks), donate=True)
    _assert_identical(again, videos)


def check_order(case: PipelineCase) -> None:
    """Calls out of order are refused before anything is compiled or run."""
    pipeline, params = case.pipeline, case.params()
    ready = case.cache()
    pending, _ = pipeline.generate(params, ready, case.input(0))
    with count_compilations() as compilations:
        _assert_refused("generate", lambda: pipeline.finalize(params, ready))
        _assert_refused(
            "finalize", lambda: pipeline.generate(params, pending, case.input(1))
        )
        assert compilations() == 0


def check_structure(case: PipelineCase) -> None:
    """Shapes, dtypes and tree structure never change after the first chunk."""
    pipeline, params = case.pipeline, case.params()
    cache, _ = case.run(case.cache(), range(1))
    ready = signature(cache)
    pending = None
    for index in range(1, case.num_chunks):
        cache, _ = pipeline.generate(params, cache, case.input(index))
        assert pending in (None, signature(cache))
        pending = signature(cache)
        cache = pipeline.finalize(params, cache)
        assert signature(cache) == ready
    assert (np.asarray(cache.autoregressive_index) == case.num_chunks).all()
    if isinstance(cache.transformer_cache, StreamCache):
        age = np.asarray(cache.transformer_cache.kv.num_chunks)
        assert (age == case.num_chunks).all(), (
            f"commit counted {age} chunks of {case.num_chunks}; positions and slots "
            "are computed from that"
        )


def check_compilations(case: PipelineCase) -> None:
    """`generate` has two executables, first and later; `finalize` one; then none.

    The network is compiled once, with the first chunk. The second chunk compiles
    codecs only. Filling, steady state, a reset and a new prompt add nothing.
    """
    pipeline, params = case.pipeline, case.params()
    inputs = [case.input(index) for index in range(case.num_chunks)]
    _forget_compiled_stages()
    cache = case.cache()
    codecs = sum(part is not None for part in (pipeline.encoder, pipeline.decoder))
    for index, input in enumerate(inputs):
        # At first the codecs and the network, then the codecs' later chunks, then none.
        limit = (codecs + 1, codecs)[index] if index < 2 else 0
        with count_compilations() as compilations:
            cache, _ = pipeline.generate(params, cache, input)
            assert compilations() <= limit, (index, compilations(), limit)
        with count_compilations() as compilations:
            cache = pipeline.finalize(params, cache)
            assert compilations() == (index == 0), (index, compilations())
    if case.new_conditions is not None:
        conditions = case.new_conditions(pipeline, params)
        cache = pipeline.update_conditions(params, cache, conditions)
        with count_compilations() as compilations:
            cache, _ = pipeline.generate(params, cache, inputs[-1])
            pipeline.finalize(params, cache)
            assert compilations() == 0
    cache = case.cache(seed=3)
    with count_compilations() as compilations:
        for input in inputs[:2]:
            cache, _ = pipeline.generate(params, cache, input)
            cache = pipeline.finalize(params, cache)
        assert compilations() == 0


def check_new_conditions(case: PipelineCase) -> None:
    """A new prompt changes the next chunk; the old conditions give the old chunk."""
    if case.new_conditions is None:
        return
    pipeline, params = case.pipeline, case.params()
    cache, _ = case.run(case.cache(), range(2))
    _, old = pipeline.generate(params, cache, case.input(2))
    changed = pipeline.update_conditions(
        params, cache, case.new_conditions(pipeline, params)
    )
    _, new = pipeline.generate(params, changed, case.input(2))
    assert not np.array_equal(joined(old), joined(new)), (
        "new conditions do not change the next chunk; look at update_conditions and at "
        "what predict_flow reads of them"
    )


def check_rollout(case: PipelineCase) -> None:
    """`rollout`, one scan, equals the Python loop."""
    pipeline, params = case.pipeline, case.params()
    inputs = None
    if case.make_input is not None:
        inputs = [case.input(index) for index in range(case.num_chunks)]
    _, loop = case.run(case.cache(), range(case.num_chunks))
    cache, scanned = jax.jit(pipeline.rollout, static_argnums=3)(
        params, case.cache(), inputs, case.num_chunks
    )
    assert (np.asarray(cache.autoregressive_index) == case.num_chunks).all()
    hint = "rollout differs from generate and finalize in a loop"
    # Chunks joined along T.  [B, all T, H, W, C]
    actual, desired = joined(scanned), np.concatenate(loop, axis=1)
    assert_close(actual, desired, hint=hint)


def check_without_jit(case: PipelineCase) -> None:
    """Compiled and operation by operation, with every scan a Python loop, agree."""
    _, compiled = case.run(case.cache(), range(2))
    with jax.disable_jit():
        _, plain = case.run(case.cache(), range(2))
    for desired, actual in zip(compiled, plain, strict=True):
        assert_close(actual, desired)


def check_batch_axis(case: PipelineCase) -> None:
    """Every array leaf of a cache has the sessions as its first axis."""
    cache, _ = case.run(case.cache(), range(1))
    pending, _ = case.pipeline.generate(case.params(), cache, case.input(1))
    for state in (case.cache(), cache, pending):
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            assert leaf.shape[:1] == (state.num_sessions,), (
                f"{jax.tree_util.keystr(path)} has shape {leaf.shape}, its first axis "
                f"must be the {state.num_sessions} sessions"
            )


def check_sessions(case: PipelineCase) -> None:
    """Sessions of different age and seed in one batch equal each one alone.

    Their noise to the bit, their video within round-off: a batch sums in another order.
    """
    pipeline, params = case.pipeline, case.params()
    old, _ = case.run(case.cache(seed=0), range(3))
    new, _ = case.run(case.cache(seed=1), range(1))
    batch = stack_caches([old, new])
    ages = np.array([3] * old.num_sessions + [1] * new.num_sessions)
    assert np.array_equal(batch.autoregressive_index, ages)
    chunks = max(case.num_chunks - 1, 3)
    videos = []
    for step in range(chunks):
        before, entry = batch, journal.take(pipeline, batch)
        inputs = case.input(3 + step), case.input(1 + step)
        # Each session has the input of its own age.  [B1 + B2, ...]
        input = jax.tree.map(lambda *leaves: np.concatenate(leaves), *inputs)
        batch, video = pipeline.generate(params, batch, input)
        videos.append(joined(video))
        batch = pipeline.finalize(params, batch)
    _, alone_old = case.run(old, range(3, 3 + chunks))
    _, alone_new = case.run(new, range(1, 1 + chunks))
    hint = "sessions of one batch mix: a row depends on another row, or on its age"
    for video, *alone in zip(videos, alone_old, alone_new, strict=True):
        # [B1, ...] and [B2, ...] -> [B1 + B2, ...]
        assert_close(video, np.concatenate(alone), SESSION_TOLERANCE, hint=hint)
    single = take_session(batch, 1)
    assert signature(single) == signature(take_session(batch, 0))
    swapped = put_session(batch, 0, single)
    _assert_identical(to_host(take_session(swapped, 0)), to_host(single))
    _assert_identical(
        to_host(take_session(swapped, 1)), to_host(take_session(batch, 1))
    )
    # The first session goes back a chunk, the last one does not.
    first, last = take_session(before, 0), take_session(batch, -1)
    chosen = np.arange(batch.num_sessions) == 0
    back = journal.restore(pipeline, batch, entry, chosen)
    _assert_identical(to_host(take_session(back, 0)), to_host(first))
    _assert_identical(to_host(take_session(back, -1)), to_host(last))


def check_in_place(case: PipelineCase) -> None:
    """A donating call aliases the cache, and the residue shares no buffer with it."""
    pipeline, params = case.pipeline, case.params()
    cache, _ = case.run(case.cache(), range(1))
    pending, _ = pipeline.generate(params, cache, case.input(1))
    held = _buffers(cache.transformer_cache)
    assert not held & _buffers(pending.final_state)
    leaves = jax.tree.leaves(cache.transformer_cache)
    chunk = max(leaf.nbytes for leaf in jax.tree.leaves(pending.final_state))
    # What is no larger than a chunk may be made anew, such as the tokens' count.
    expected = sum(leaf.nbytes for leaf in leaves if leaf.nbytes > chunk)
    weights, clock = params["transformer"], (cache.autoregressive_index, cache.key)
    _, control = _encoded(case, cache, 1)
    model = pipeline.diffusion_model
    programs = (
        stages.diffuse_in_place.lower(
            model, weights, cache.transformer_cache, control, None, *clock
        ),
        stages.finalize_in_place.lower(
            model, weights, pending.transformer_cache, pending.final_state, None, *clock
        ),
    )
    for lowered in programs:
        analysis: Any = lowered.compile().memory_analysis()
        assert analysis.alias_size_in_bytes >= expected, analysis


def _encoded(
    case: PipelineCase, cache: StreamInferencePipelineCache, index: int
) -> tuple[PyTree, PyTree]:
    """What the encoder makes of an input."""
    encoder = case.pipeline.encoder
    if encoder is None:
        return (), None
    return encoder.encode(
        case.params()["encoder"], cache.encoder_cache, case.input(index)
    )


CHECKS: tuple[Callable[[PipelineCase], None], ...] = (
    check_output,
    check_reproducible,
    check_fork,
    check_resume,
    check_donate,
    check_undo,
    check_order,
    check_structure,
    check_new_conditions,
    check_rollout,
    check_without_jit,
    check_batch_axis,
    check_sessions,
    check_in_place,
    *BEHAVIOUR,
    check_compilations,  # last: what it forgets, every other check would compile again
)
"""Every check of the suite."""


def _forget_compiled_stages() -> None:
    """Makes the pipeline's stages compile anew, and nothing else of the process.

    `jax.clear_caches()` would cost every other test its compiled code, too.
    """
    compiled = [each for each in vars(stages).values() if hasattr(each, "clear_cache")]
    assert compiled, f"{stages.__name__} has no jitted function"
    for stage in compiled:
        stage.clear_cache()


def _buffers(tree: PyTree) -> set[int]:
    """Addresses of the arrays' memory, on every device."""
    return {
        shard.data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if leaf.nbytes
    }


def _assert_identical(actual: list[np.ndarray], desired: list[np.ndarray]) -> None:
    for a, b in zip(actual, desired, strict=True):
        assert np.array_equal(a, b)


def _assert_refused(cure: str, call: Callable[[], Any]) -> None:
    message = None
    try:
        call()
    except ValueError as error:
        message = str(error)
    assert message is not None, "the call was not refused"
    assert cure in message, f"{message!r} does not name the cure, {cure!r}"
