"""What a session did, told as JSON and done again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.session import recording
from fdjax.session.handle import Session
from fdjax.session.repeat import repeat
from tests.fdjax.session import handle_test
from tests.fdjax.session.handle_test import (
    CONDITIONS,
    PIPELINE,
    assert_same,
    conditions,
    control,
    ticks,
)

# The template's random decoder makes hundreds; thumbnails are within [-1, 1].
_DECODER = jax.tree.map(lambda x: x * 1e-3, handle_test.PARAMS["decoder"])
PARAMS = handle_test.PARAMS | {"decoder": _DECODER}


def session():
    size = {"pixel_height": 6, "pixel_width": 4}
    key = jax.random.key(5)
    return Session(PIPELINE, PARAMS, conditions=CONDITIONS, key=key, **size)


@pytest.fixture(scope="module")
def played():
    live = session()
    live.submit("first", control(0))
    live.tick()
    ticks(live, range(1, 3))
    live.switch_prompt(conditions(9), num_chunks=2)
    ticks(live, range(3, 5))
    live.undo()
    return live


@pytest.fixture(scope="module")
def told(played):
    return played.replay()


def changed(text, change):
    content = json.loads(text)
    content.pop("sha256")
    change(content)
    return json.dumps(content | {"sha256": recording._digest(content)})


def test_the_same_is_done_again_and_goes_on(told, played):
    assert len(told) < 20_000
    other, differs = repeat(told, PIPELINE, PARAMS)
    assert differs is None
    assert other.applied_event_ids == played.applied_event_ids == ("first",)
    assert not other.submit("first", control(0))
    for one, two in zip(played.timeline, other.timeline, strict=True):
        np.testing.assert_array_equal(one.thumbnail, two.thumbnail)
    live = played.fork()
    for each in (live, other):
        each.switch_prompt(conditions(3))
    assert_same([live.tick(control(8))], [other.tick(control(8))])
    assert other.replay() == live.replay()


def test_the_first_chunk_that_differs_is_named(told):
    def other_hash(content):
        content["chunks"][2][2] = "0" * 16

    assert repeat(changed(told, other_hash), PIPELINE, PARAMS)[1] == 2

    def other_control(content):
        content["controls"]["places"][1] = content["controls"]["places"][0]

    assert repeat(changed(told, other_control), PIPELINE, PARAMS)[1] == 1


def test_large_conditions_are_given_again(monkeypatch):
    monkeypatch.setattr(recording, "_EMBEDDED", 100)
    live = session()
    ticks(live, range(1))
    live.switch_prompt(conditions(9))
    ticks(live, range(1, 2))
    text = live.replay()
    right = [step.conditions for step in live.timeline]
    assert repeat(text, PIPELINE, PARAMS, conditions=right)[1] is None
    with pytest.raises(
        ValueError, match=r"condition 1 .* too large .*give conditions="
    ):
        repeat(text, PIPELINE, PARAMS, conditions=right[:1])
    with pytest.raises(ValueError, match="condition 0 is another one"):
        repeat(text, PIPELINE, PARAMS, conditions=right[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=3), "must be of format 1, is of 3"),
        (
            lambda c: c["settings"].update({"encoder": 3}),
            "another pipeline: encoder: 3",
        ),
        (
            lambda c: c["weights"].update(decoder="x"),
            "other weights: decoder: 'x' there",
        ),
        (lambda c: c.update(settings=None), "does not say of what"),
        (lambda c: c["chunks"].pop(), "zip"),
        (lambda c: c["arrays"].clear(), "damaged"),
        (lambda c: c.update(conditions=[]), "damaged"),
        (
            lambda c: c["arrays"]["start.key"].__setitem__(2, "!"),
            "cannot be used: ",
        ),
    ],
)
def test_what_does_not_fit_is_refused(told, change, message):
    with pytest.raises(ValueError, match=message) as error:
        repeat(changed(told, change), PIPELINE, PARAMS)
    assert "\n" not in str(error.value)


def test_what_was_cut_or_edited_is_refused(told):
    for text in (told[:-9], "", "[]", "{}", b"\xff", "[" * 999):
        with pytest.raises(ValueError, match=r"no whole recording|no recording"):
            repeat(text, PIPELINE, PARAMS)
    edited = told.replace('"pixel_height": 6', '"pixel_height": 8')
    with pytest.raises(ValueError, match="was edited"):
        repeat(edited, PIPELINE, PARAMS)
    with pytest.raises(ValueError, match="at most"):
        repeat(b" " * (9 << 20), PIPELINE, PARAMS)
    other = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), PARAMS)
    with pytest.raises(ValueError, match="recording is of other weights"):
        repeat(told, PIPELINE, other)
