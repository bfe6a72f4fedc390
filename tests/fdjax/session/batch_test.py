"""Sessions that make their chunks together: each as if it were alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.contract.conditioner import Conditions
from fdjax.session.batch import SessionBatch
from fdjax.session.handle import Session, SessionState
from fdjax.testing import count_compilations
from tests.fdjax.session.small import PARAMS, PIPELINE

CAPACITY = 4
CONTROL = np.zeros((1, 2, 6, 4, 8), np.float32)
ATOL = 2e-5  # of videos in [-1, 1]: sums over at most a thousand float32


def conditions(seed):
    return Conditions(text=jax.random.normal(jax.random.key(seed), (1, 4, 16)))


def control(seed, index):
    key = jax.random.fold_in(jax.random.key(100 + seed), index)
    return np.asarray(jax.random.normal(key, CONTROL.shape))


def session(seed, num_chunks=1, **options):
    made = Session(
        PIPELINE,
        PARAMS,
        conditions=options.pop("conditions", conditions(seed)),
        pixel_height=6,
        pixel_width=4,
        key=jax.random.key(seed),
        **options,
    )
    for index in range(num_chunks):
        made.tick(control(seed, index))
    return made


def batch_of(*sessions, **options):
    batch = SessionBatch(session(0), capacity=CAPACITY, control=CONTROL, **options)
    for each in sessions:
        batch.join(each)
    return batch


def arrays(cache):
    keyless = (cache.transformer_cache, cache.encoder_cache, cache.decoder_cache)
    leaves = jax.tree.leaves((keyless, cache.autoregressive_index))
    return [np.asarray(leaf) for leaf in leaves]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_lanes_of_any_age_make_what_they_make_alone():
    # Ages 1 (joins late), 2 and 6: before, at and behind a full window.
    ages = {1: 1, 2: 2, 3: 6}
    alone = {seed: session(seed, age) for seed, age in ages.items()}
    joined = {seed: session(seed, age) for seed, age in ages.items()}
    batch = batch_of(joined[2], joined[3])
    for tick in range(6):
        if tick == 2:
            batch.join(joined[1])
        live = [seed for seed in ages if joined[seed] in batch.sessions]
        # Not all of them go on in every tick.
        live = [seed for seed in live if seed != 3 or tick != 3]
        given = {seed: control(seed, joined[seed].committed_step_id) for seed in live}
        made = batch.tick({joined[seed]: given[seed] for seed in live})
        assert not made.failed
        videos = made.on_host()
        for seed in live:
            desired = np.asarray(alone[seed].tick(given[seed]))
            np.testing.assert_allclose(videos[joined[seed]], desired, atol=ATOL)
            np.testing.assert_array_equal(made[joined[seed]], videos[joined[seed]])
            assert np.ptp(desired) > 0.1  # and not all alike
    assert [joined[seed].committed_step_id for seed in ages] == [5, 8, 11]
    # Noise and clocks are the same to the bit.
    for seed in ages:
        ours, theirs = joined[seed].cache, alone[seed].cache
        assert jnp.array_equal(ours.autoregressive_index, theirs.autoregressive_index)
        assert jnp.array_equal(
            jax.random.key_data(ours.key), jax.random.key_data(theirs.key)
        )


def test_a_lane_that_does_not_go_on_stays_as_it_was():
    first, second = session(1, 5), session(2)
    batch = batch_of(first, second)
    before = arrays(first.cache)
    batch.tick({second: control(2, 1)})
    batch.tick({second: control(2, 2)})
    assert_same(arrays(first.cache), before)
    batch.tick({first: control(1, 5), second: control(2, 3)})
    assert not all(map(np.array_equal, arrays(first.cache), before))


def broken(cache):
    """A cache as weights that overflow leave it."""

    def spoil(leaf):
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.full_like(leaf, jnp.nan) if inexact else leaf

    spoilt = jax.tree.map(spoil, cache.transformer_cache)
    return dataclasses.replace(cache, transformer_cache=spoilt)


def test_neighbours_do_not_matter_to_the_bit():
    neighbours = {
        "none": [],
        "others": [session(4, 6), session(5, 2)],
        "broken": [session(4, 6), session(5, 2)],
    }
    videos = {}
    for name, others in neighbours.items():
        live = session(1, 2)
        if name == "broken":
            for each in others:
                each._place.cache = broken(each.cache)
        batch = batch_of(live, *others)
        made = [
            batch.tick({live: control(1, 2 + n), **dict.fromkeys(others)})
            for n in range(4)
        ]
        expected = tuple(others) if name == "broken" else ()
        assert all(each.failed == expected for each in made)
        videos[name] = [np.asarray(each[live]) for each in made]
    assert_same(videos["others"], videos["none"])
    assert_same(videos["broken"], videos["none"])


@pytest.mark.parametrize("limits", [(12, 0), (1, 8), (0, 8)])
def test_a_lane_is_undone_and_made_again_to_the_bit(limits):
    live, other = session(1, 2), session(2)
    batch = batch_of(live, other, undo_on_device=limits[0], undo_on_host=limits[1])
    videos = []
    for index in range(5):
        made = batch.tick({live: control(1, 2 + index), other: control(2, 1 + index)})
        videos.append(np.asarray(made[live]))
    before = arrays(other.cache)
    live.undo(4)
    assert live.committed_step_id == 3
    assert_same(live.redo(2), videos[1:3])
    assert_same(arrays(other.cache), before)
    made = [batch.tick({live: control(1, n)})[live] for n in (5, 6)]
    assert_same(made, videos[3:])
    # Down to what was made alone, but for the first chunk.
    assert live.undo_limit == 6
    live.undo(6)
    fresh = session(1, 1)
    assert_same(arrays(live.cache), arrays(fresh.cache))


def test_joining_leaving_and_all_else_compiles_nothing():
    batch = batch_of(undo_on_device=1, undo_on_host=4)
    first, *others = [session(seed) for seed in range(1, 5)]
    other_prompt = conditions(50)
    with count_compilations() as compilations:
        batch.join(first)
        for each in others:
            batch.join(each)
            batch.tick({first: None, each: control(1, 1)})
        batch.tick(dict.fromkeys(batch.sessions))
        first.undo(3)
        first.redo()
        first.switch_prompt(other_prompt)
        first.submit("step", control(1, 9))
        batch.tick({first: None})
        fork = first.fork()
        others[0].close()
        batch.leave(others[1])
        batch.join(fork)
        batch.join(others[1])
        made = batch.tick(dict.fromkeys(batch.sessions))
        made.on_host(), made.failed, made[fork]
        assert compilations() == 0
    assert first.applied_event_ids == ("step",)
    np.testing.assert_array_equal(made[first].shape, made[fork].shape)


def test_a_session_goes_on_alone_where_it_left():
    live, alone = session(1, 2), session(1, 2)
    batch = batch_of(session(2), live)
    for index in range(2, 4):
        batch.tick({live: control(1, index)})
        alone.tick(control(1, index))
    batch.leave(live)
    assert batch.num_free == CAPACITY - 1
    with pytest.raises(ValueError, match="not in this batch"):
        batch.tick({live: CONTROL})
    desired = np.asarray(alone.tick(control(1, 4)))
    np.testing.assert_allclose(live.tick(control(1, 4)), desired, atol=ATOL)
    live.undo(3)
    assert live.committed_step_id == 2
    assert_same(arrays(live.cache), arrays(session(1, 2).cache))


def test_a_fork_in_the_batch_has_its_own_future():
    live = session(1, 2)
    batch = batch_of(live)
    batch.tick({live: control(1, 2)})
    fork = live.fork()
    batch.join(fork)
    assert fork.committed_step_id == 3
    made = batch.tick({live: control(1, 3), fork: control(9, 3)})
    assert not np.array_equal(made[live], made[fork])
    fork.undo()
    same = batch.tick({fork: control(1, 3)})
    np.testing.assert_allclose(same[fork], made[live], atol=ATOL)


def test_the_newest_ticks_alone_are_kept_without_the_host():
    live, other = session(1, 2), session(2)
    batch = batch_of(live, other, undo_on_device=2, undo_on_host=0)
    batch.tick({live: CONTROL})
    for _ in range(2):
        batch.tick({other: CONTROL})
    assert (live.undo_limit, other.undo_limit) == (0, 2)


def test_what_is_refused_changes_nothing():
    live, other = session(1), session(2)
    batch = batch_of(live, other)
    before = arrays(live.cache)
    bad = np.full_like(CONTROL, np.nan)
    for given, message in [
        ({live: CONTROL, other: bad}, "The control of lane 1 must be finite"),
        ({live: CONTROL, other: CONTROL[:, :1]}, r"lane 1 must be float32\[1, 2, 6"),
        ({live: (CONTROL,)}, "must have the structure"),
        ({live: CONTROL, session(3): CONTROL}, "not in this batch"),
        ({}, "at least one session"),
    ]:
        with pytest.raises(ValueError, match=message):
            batch.tick(given)
    with pytest.raises(ValueError, match="must be finite"):
        live.submit("bad", bad)
    assert_same(arrays(live.cache), before)
    assert (live.committed_step_id, other.committed_step_id) == (1, 1)
    with pytest.raises(ValueError, match="a first chunk is made alone"):
        batch.join(session(3, 0))
    with pytest.raises(ValueError, match="is in a batch; leave it"):
        batch.join(live)
    batch.join(session(3)), batch.join(session(4))
    with pytest.raises(ValueError, match="All 4 lanes are taken"):
        batch.join(session(5))
    with pytest.raises(ValueError, match="can go back 0 to 0 of 1"):
        live.undo()
    batch.tick({live: CONTROL})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 0}, "capacity must be >= 1, got 0"),
        ({"capacity": 2, "undo_on_host": -1}, "undo_on_host must be >= 0"),
        ({"capacity": 2, "control": CONTROL[0]}, "leaves .1, ...."),
    ],
)
def test_a_batch_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        SessionBatch(session(0), **options)


def test_a_step_that_fails_midway_fails_the_sessions(monkeypatch):
    live, other = session(1), session(2)
    batch = batch_of(live, other)
    finalize = type(PIPELINE).finalize

    def break_down(*args, **options):
        finalize(*args, **options)
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(PIPELINE), "finalize", break_down)
        with pytest.raises(RuntimeError):
            batch.tick({live: CONTROL})
    assert {live.state, other.state} == {SessionState.FAILED}
    with pytest.raises(ValueError, match="failed midway; make a new batch"):
        batch.join(session(3))
    live.reset()
    live.tick(CONTROL)


def test_a_session_that_is_reset_or_closed_frees_its_lane():
    live, other = session(1, 2), session(2)
    batch = batch_of(live, other)
    batch.tick({live: CONTROL, other: CONTROL})
    live.reset()
    other.close()
    assert batch.num_free == CAPACITY
    assert live.state is SessionState.ACTIVE
    live.tick(control(1, 0))
    batch.join(live)
    # As if it had never been there.
    made = batch.tick({live: control(1, 1)})[live]
    again = session(1)
    batch.leave(live)
    batch.join(again)
    assert_same([batch.tick({again: control(1, 1)})[again]], [made])
