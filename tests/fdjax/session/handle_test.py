"""A live session: steps, the way back, forks, events, states."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax.session import journal
from fdjax.session.blend import BLENDS, slerp
from fdjax.session.handle import Session, SessionState
from fdjax.testing import count_compilations
from tests.fdjax.session.small import PARAMS, PIPELINE

NUM_CHUNKS = 7


def conditions(seed=1):
    return Conditions(text=jax.random.normal(jax.random.key(seed), (1, 4, 16)))


CONDITIONS = conditions()


def control(index):
    return jax.random.normal(jax.random.key(100 + index), (1, 2, 6, 4, 8))


def session(**options):
    return Session(
        PIPELINE,
        PARAMS,
        conditions=CONDITIONS,
        pixel_height=6,
        pixel_width=4,
        key=jax.random.key(5),
        **options,
    )


def ticks(live, chunks):
    return [np.asarray(live.tick(control(index))) for index in chunks]


@pytest.fixture(scope="module")
def videos():
    """The chunks of a rollout without a session."""
    cache = PIPELINE.initialize_cache(
        PARAMS,
        conditions=CONDITIONS,
        pixel_height=6,
        pixel_width=4,
        key=jax.random.key(5),
    )
    found = []
    for index in range(NUM_CHUNKS):
        cache, video = PIPELINE.generate(PARAMS, cache, control(index), donate=True)
        found.append(np.asarray(video))
        cache = PIPELINE.finalize(PARAMS, cache, donate=True)
    return found


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_session_makes_what_the_pipeline_makes(videos):
    live = session()
    made = ticks(live, range(NUM_CHUNKS))
    for a, b in zip(made, videos, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
    assert live.committed_step_id == NUM_CHUNKS
    assert [step.index for step in live.timeline] == list(range(NUM_CHUNKS))


@pytest.mark.parametrize("limits", [(7, 0), (2, 5), (0, 7)])
def test_undone_chunks_come_again_to_the_bit(limits):
    live = session(undo_on_device=limits[0], undo_on_host=limits[1])
    made = ticks(live, range(NUM_CHUNKS))
    for count in (1, 4, NUM_CHUNKS):
        live.undo(count)
        assert_same(ticks(live, range(NUM_CHUNKS - count, NUM_CHUNKS)), made[-count:])
    live.jump(2)
    assert (live.committed_step_id, live.redo_limit) == (2, NUM_CHUNKS - 2)
    assert_same(live.jump(5), made[2:5])
    assert_same(live.redo(2), made[5:])


def test_undo_by_way_of_the_host_compiles_nothing():
    for limits in ((4, 0), (0, 4)):
        live = session(undo_on_device=limits[0], undo_on_host=limits[1])
        ticks(live, range(3))
        with count_compilations() as compilations:
            live.undo(2)
            live.redo(2)
            compiled = compilations()
    # The first one did; what comes back from the host meets the same programs.
    assert compiled == 0


def test_another_control_after_undo_gives_another_future():
    live = session()
    made = ticks(live, range(4))
    live.undo(2)
    other = live.tick(control(50))
    assert not np.array_equal(other, made[2])
    with pytest.raises(ValueError, match=r"redo can make 0 to 0 .* got 1; a tick"):
        live.redo()


def test_a_step_keeps_one_chunk_of_keys_and_values():
    live = session()
    ticks(live, range(3))
    entry = journal.take(PIPELINE, live.cache)
    cache = live.cache.transformer_cache
    [layer, *_] = PIPELINE.diffusion_model.transformer.layout.tokens(
        cache.height, cache.width
    )
    assert layer.num_slots > 2 * layer.chunk  # the window is worth not copying
    window = sum(leaf.nbytes for leaf in (*cache.kv.keys, *cache.kv.values))
    codecs = (live.cache.encoder_cache, live.cache.decoder_cache)
    states = sum(leaf.nbytes for leaf in jax.tree.leaves(codecs))
    chunk = window * layer.chunk // layer.num_slots
    assert chunk <= entry.nbytes <= 1.1 * (chunk + states)


def test_old_steps_move_to_the_host_and_then_go():
    live = session(undo_on_device=2, undo_on_host=3)
    ticks(live, range(NUM_CHUNKS))
    assert live.undo_limit == 5
    kinds = [
        {isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(entry.arrays)}
        for entry in live._journal
    ]
    assert kinds == [{True}] * 3 + [{False}] * 2
    with pytest.raises(ValueError, match=r"undo can go back 0 to 5 of 7 .* got 6"):
        live.undo(6)
    with pytest.raises(ValueError, match="undo_on_host must be >= 0, got -1"):
        session(undo_on_host=-1)


def test_forks_do_not_see_each_other():
    live, alone = session(), session()
    made = ticks(alone, range(NUM_CHUNKS))
    ticks(live, range(4))
    fork = live.fork()
    ticks(fork, (60, 61, 62))  # overwrites slots that the other one still sees
    fork.undo(5)
    ticks(fork, (70, 71, 72))
    second = fork.fork()
    assert_same(ticks(live, range(4, NUM_CHUNKS)), made[4:])
    live.undo(NUM_CHUNKS)
    assert_same(ticks(live, range(NUM_CHUNKS)), made)
    assert_same([fork.tick(control(80))], [second.tick(control(80))])
    assert [len(each.timeline) for each in (live, fork)] == [NUM_CHUNKS, 6]


def test_undo_goes_back_beyond_a_change_of_prompt():
    live = session()
    made = ticks(live, range(3))
    live.switch_prompt(conditions(9))
    other = ticks(live, range(3, 5))
    plain = session()
    assert not np.array_equal(ticks(plain, range(4))[3], other[0])
    live.undo(4)
    assert_same(live.redo(4), [*made[1:], *other])
    live.undo(5)
    assert_same(ticks(live, range(3)), made)


@pytest.mark.parametrize("blend", ["linear", "slerp"])
def test_a_prompt_is_blended_and_undone(blend):
    live, at_once, by_hand = session(), session(), session()
    other = conditions(9)
    ticks(live, range(2))
    live.switch_prompt(other, num_chunks=3, blend=blend)
    made = ticks(live, range(2, 6))
    ticks(at_once, range(2))
    at_once.switch_prompt(other)
    assert not np.array_equal(ticks(at_once, range(2, 3))[0], made[0])
    ticks(by_hand, range(2))
    for index, weight in enumerate((1 / 3, 2 / 3, 1.0, 1.0), start=2):
        text = BLENDS[blend](CONDITIONS.text, other.text, weight)
        by_hand.switch_prompt(Conditions(text=text))
        [video] = ticks(by_hand, [index])
        np.testing.assert_allclose(video, made[index - 2], rtol=0, atol=1e-5)
    live.undo(3)
    assert_same(ticks(live, range(3, 6)), made[1:])
    live.undo(5)
    assert_same(live.redo(5)[1:], made)
    assert live.timeline[-1].conditions is other


def test_a_prompt_that_does_not_fit_is_refused():
    live = session()
    wide = Conditions(text=jnp.zeros((1, 5, 16)))
    for options, message in (
        ({"num_chunks": 2}, "where their shapes are the same"),
        ({"num_chunks": 0}, "num_chunks must be >= 1, got 0"),
        ({"blend": "cubic"}, r"one of \['linear', 'slerp'\], got 'cubic'"),
    ):
        with pytest.raises(ValueError, match=message):
            live.switch_prompt(wide, **options)
    with pytest.raises(ValueError, match="1 sessions, got 2"):
        live.switch_prompt(Conditions(text=jnp.zeros((2, 4, 16))))
    assert_same(ticks(live, [0]), ticks(session(), [0]))


def test_slerp_keeps_to_the_arc():
    a, b = jnp.array([2.0, 0.0, 0.0]), jnp.array([0.0, 4.0, 0.0])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(slerp(a, b, 0.5), [3 * half, 3 * half, 0], rtol=1e-6)
    for weight, end in ((0.0, a), (1.0, b)):
        np.testing.assert_allclose(slerp(a, b, weight), end, atol=1e-6)
    for other in (a, 3 * a, -a, 0 * a):
        np.testing.assert_allclose(
            slerp(a, other, 0.25), 0.75 * a + 0.25 * other, atol=1e-6
        )


def test_events_are_applied_once():
    live, plain = session(), session()
    made = ticks(plain, range(3))
    assert live.submit("b", control(1), chunk=1)
    assert live.submit("old", control(40))
    assert live.submit("a", control(0))
    assert not live.submit("a", control(30))
    first = live.tick()
    assert not live.submit("a", control(30))
    assert_same([first, live.tick(), live.tick(control(2))], made)
    assert live.applied_event_ids == ("old", "a", "b")
    live.undo(2)
    assert live.applied_event_ids == ("old", "a")
    assert_same(live.redo(2), made[1:])
    assert live.applied_event_ids == ("old", "a", "b")
    with pytest.raises(ValueError, match=r"'c' is for chunk 1, the next is 3"):
        live.submit("c", control(0), chunk=1)
    live.submit("d", control(0))
    with pytest.raises(ValueError, match=r"Chunk 3 has events \['d'\]"):
        live.tick(control(0))


def test_a_control_that_its_owner_changes_is_kept_as_it_was():
    live, mine = session(), np.array(control(0))
    first = live.tick(mine)
    mine[:] = 0
    live.undo()
    assert_same(live.redo(), [first])


def test_a_refused_control_leaves_the_session_as_it_was():
    live = session()
    made = ticks(live, range(2))
    with pytest.raises(ValueError, match="NaN"):
        live.tick(jnp.full((1, 2, 6, 4, 8), jnp.nan))
    assert (live.state, live.committed_step_id) == (SessionState.ACTIVE, 2)
    live.undo()
    assert_same(ticks(live, range(1, 2)), made[1:])


def test_states(monkeypatch):
    live = session()
    made = ticks(live, range(2))

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(PIPELINE), "finalize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            live.tick(control(2))
    assert live.state is SessionState.FAILED
    with pytest.raises(ValueError, match=r"tick needs an active .* failed; reset\(\)"):
        live.tick(control(2))
    live.reset()
    assert live.committed_step_id == live.undo_limit == 0
    assert_same(ticks(live, range(2)), made)
    with pytest.raises(TypeError, match="got seed"):
        live.reset(seed=3)
    with pytest.raises(ValueError, match="multiples of"):
        live.reset(pixel_height=-1)
    assert live.state is SessionState.FAILED
    live.reset(key=jax.random.key(6))
    assert not np.array_equal(ticks(live, range(1))[0], made[0])
    live.close()
    for call in (live.tick, live.undo, live.redo, live.fork, live.reset):
        with pytest.raises(ValueError, match=r"closed.* begin a new"):
            call()
    assert len(live.timeline) == 1


def test_thumbnails_are_small_and_there():
    live = session()
    video = ticks(live, range(1))[0]
    [step] = live.timeline
    assert dataclasses.is_dataclass(step)
    np.testing.assert_array_equal(step.thumbnail, video[:, -1])
