"""Chunks that are made before they are asked for."""

import numpy as np
import pytest

from fdjax.session.futures import Futures, Habits
from fdjax.testing import count_compilations
from tests.fdjax.session.batch_test import (
    ATOL,
    CONTROL,
    arrays,
    assert_same,
    batch_of,
    conditions,
    control,
    session,
)


def test_hits_and_misses_make_what_the_session_makes_alone():
    alone, live = session(1, 2), session(1, 2)
    futures = Futures(live, count=3, control=CONTROL)
    # Which of the futures is taken; None: one that was not made, "none": nothing was.
    for index, taken in enumerate([0, 2, None, "none", 1, None, 2], start=2):
        steps = [control(seed, index) for seed in (1, 2, 3)]
        if taken != "none":
            futures.ahead(steps)
        given = steps[taken] if isinstance(taken, int) else control(9, index)
        desired = np.asarray(alone.tick(given))
        np.testing.assert_allclose(live.tick(given), desired, rtol=0, atol=ATOL)
    assert (futures.hits, futures.misses) == (4, 2)
    assert live.committed_step_id == alone.committed_step_id


def test_undo_redo_prompts_and_forks_work_with_futures():
    live = session(1, 2)
    futures = Futures(live, count=2, control=CONTROL)
    before, made = arrays(live.cache), []
    for index in range(2, 8):
        futures.ahead([control(1, index), control(2, index)])
        made.append(np.asarray(live.tick(control(1 + index % 2, index))))
    futures.ahead([CONTROL])
    live.undo(6)
    assert_same(arrays(live.cache), before)
    for desired, again in zip(made, live.redo(6), strict=True):
        np.testing.assert_allclose(again, desired, rtol=0, atol=ATOL)
    futures.ahead([control(1, 8)])
    live.switch_prompt(conditions(5))
    other = live.fork()
    after = np.asarray(live.tick(control(1, 8)))
    assert futures.misses == 0  # nothing was ahead under the new prompt
    futures.end()
    np.testing.assert_allclose(other.tick(control(1, 8)), after, rtol=0, atol=ATOL)
    live.tick(control(1, 9))
    live.undo(9)  # down to the first chunk, which was made alone
    assert (live.committed_step_id, live.undo_limit) == (1, 0)


def test_nothing_is_compiled_after_the_first_of_each():
    def play(futures, live):
        for taken in (0, 1, 9):
            futures.ahead([control(1, 0), control(2, 0)])
            live.tick(control(1 + taken, 0))
        live.undo()

    first, second = session(1, 2), session(2, 2)
    play(Futures(first, count=2, control=CONTROL), first)
    futures = Futures(second, count=2, control=CONTROL)
    with count_compilations() as compilations:
        play(futures, second)
        assert compilations() == 0


def test_what_is_refused():
    live = session(1)
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        Futures(live, count=0, control=CONTROL)
    with pytest.raises(ValueError, match="or tick"):
        Futures(session(1, 0), count=2, control=CONTROL)
    batch_of(live)
    with pytest.raises(ValueError, match="its batch"):
        Futures(live, count=2, control=CONTROL)
    live = session(1)
    futures = Futures(live, count=2, control=CONTROL)
    with pytest.raises(ValueError, match="ahead makes 1 to 2 futures, got 3"):
        futures.ahead([CONTROL] * 3)
    with pytest.raises(ValueError, match="must be finite"):
        futures.ahead([CONTROL, CONTROL + np.nan])
    with pytest.raises(ValueError, match="must be float32"):
        live.tick(CONTROL[:, :1])
    assert live.committed_step_id == 1


def test_habits_guess_what_followed_before():
    keys = [np.full((1, 2), number) for number in range(4)]
    habits = Habits(keys)
    assert habits.likeliest(1)[0] is keys[0]
    for number in (1, 1, 1, 2, 1, 2, 1, 1):
        habits.observe(keys[number])
    # After 1 came 1 three times and 2 twice.
    assert [int(key[0, 0]) for key in habits.likeliest(3)] == [1, 2, 0]
    habits.observe(keys[2])
    assert int(habits.likeliest(1)[0][0, 0]) == 1
    habits.observe(np.full((1, 2), 7))
    assert len(habits.likeliest(9)) == 4
