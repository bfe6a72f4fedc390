"""Whole sessions in files: they go on bit for bit, and what is wrong is refused."""

import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdjax
from fdjax.config import derive_config
from fdjax.engine import stages
from fdjax.session import container, store
from fdjax.session.handle import Session
from tests import tiny
from tests.fdjax.session.handle_test import (
    PARAMS,
    PIPELINE,
    assert_same,
    conditions,
    control,
    session,
    ticks,
)


def played():
    """Five chunks, one undone, a prompt on its way, events to come."""
    live = session(undo_on_device=2, undo_on_host=8)
    live.submit("first", control(0))
    live.tick()
    ticks(live, range(1, 3))
    live.switch_prompt(conditions(9), num_chunks=4, blend="slerp")
    ticks(live, range(3, 5))
    live.submit("later", control(6), chunk=6)
    live.submit("much later", np.asarray(control(7)), chunk=9)
    live.undo()
    return live


@pytest.fixture(scope="module")
def saved():
    return played().to_bytes()


def load(data, **options):
    return Session.load(data, PIPELINE, PARAMS, **options)


def assert_goes_on(one, other):
    """Both do the same from here: forwards, and all the way back."""
    limit = one.undo_limit
    assert other.undo_limit == limit
    for live in (one, other):
        assert not live.submit("first", control(0), chunk=7)
    assert_same(one.redo(one.redo_limit), other.redo(other.redo_limit))
    assert one.applied_event_ids == other.applied_event_ids
    assert_same([one.tick(control(5))], [other.tick(control(5))])
    assert_same([one.tick()], [other.tick()])  # the event's
    assert_same([one.tick(control(7))], [other.tick(control(7))])
    distance = min(limit + 3, one.undo_limit)
    one.undo(distance), other.undo(distance)
    assert_same(one.redo(distance), other.redo(distance))
    assert one.applied_event_ids == other.applied_event_ids
    one.reset(), other.reset()
    assert_same(ticks(one, range(2)), ticks(other, range(2)))


@pytest.mark.parametrize("limits", [(2, 8), (0, 9), (9, 0)])
def test_a_loaded_session_goes_on_to_the_bit(saved, limits):
    other = load(saved, undo_on_device=limits[0], undo_on_host=limits[1])
    assert other.pixel_size == (6, 4)
    assert_goes_on(played(), other)


def test_the_timeline_comes_back(saved):
    live, other = played(), load(saved)
    assert len(other.timeline) == len(live.timeline) == 4
    for one, two in zip(live.timeline, other.timeline, strict=True):
        assert (one.index, one.event_ids) == (two.index, two.event_ids)
        np.testing.assert_array_equal(one.control, two.control)
        shown = np.clip(one.thumbnail, -1, 1)
        np.testing.assert_allclose(two.thumbnail, shown, atol=1 / 255 + 1e-6)
    assert other.timeline[0].conditions is other.timeline[1].conditions
    assert load(other.to_bytes()).to_bytes() == other.to_bytes()


def test_a_new_process_goes_on_from_a_file(tmp_path):
    path = tmp_path / "walk.session"
    live = played()
    live.save(path)
    program = """
        import sys
        import numpy as np
        from tests.fdjax.session import saved_test
        from fdjax.session.handle import Session

        live = Session.load(sys.argv[1], saved_test.PIPELINE, saved_test.PARAMS)
        again = live.redo()
        live.undo(4)
        np.save(sys.argv[2], np.concatenate([*again, *live.redo(2)], axis=1))
    """
    made = tmp_path / "made.npy"
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), path, made],
        check=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    again = live.redo()
    live.undo(4)
    np.testing.assert_array_equal(
        np.load(made), np.concatenate([*again, *live.redo(2)], axis=1)
    )


@pytest.mark.parametrize("way_back", [0, 2])
def test_less_of_the_way_back_can_be_saved(saved, way_back):
    live = load(saved)
    small = live.to_bytes(way_back=way_back)
    assert len(small) < len(saved)
    assert load(small).undo_limit == way_back
    with pytest.raises(ValueError, match="way_back must be >= 0, got -1"):
        live.to_bytes(way_back=-1)


def test_a_session_that_has_not_begun():
    live = session()
    assert_same(ticks(load(live.to_bytes()), range(2)), ticks(live, range(2)))


def test_controls_of_every_kind_come_back():
    live = session()
    values = [None, 3, 0.1, "go", True, jnp.float32(0.1) * 1, 2 * jnp.asarray(0.1)]
    values += [np.float64(1 / 3), {"a": [np.arange(3), (1, None)]}, control(1)]
    for number, value in enumerate(values):
        live.submit(f"{number}", value, chunk=20 + number)
    events = load(live.to_bytes())._events
    assert [event.chunk for event in events] == list(range(20, 20 + len(values)))
    for event, value in zip(events, values, strict=True):
        assert jax.tree.structure(event.control) == jax.tree.structure(value)
        for a, b in zip(*map(jax.tree.leaves, (event.control, value)), strict=True):
            if not isinstance(b, str):
                assert jax.typeof(jnp.asarray(a)) == jax.typeof(jnp.asarray(b))
            assert a == b if np.ndim(a) == 0 else np.array_equal(a, b)
    live.submit("odd", object(), chunk=99)
    with pytest.raises(ValueError, match="control is a object"):
        live.to_bytes()


def test_nothing_is_compiled_again(saved):
    params = jax.device_put(PARAMS, jax.devices()[0])
    live = Session.load(saved, PIPELINE, params)
    live.redo(), live.undo(3), ticks(live, range(3))
    functions = (stages.diffuse_in_place, stages.finalize_in_place, stages.decode)
    before = [function._cache_size() for function in functions]
    live = Session.load(saved, PIPELINE, params)
    live.redo(), live.undo(3), ticks(live, range(3))
    assert [function._cache_size() for function in functions] == before


def test_load_cache_reads_it_too(tmp_path):
    live = played()
    live.save(tmp_path / "s")
    cache = fdjax.load_cache(tmp_path / "s", pipeline=PIPELINE, params=PARAMS)
    assert cache.autoregressive_index.tolist() == [4]
    assert store.read_notes(tmp_path / "s") == {}
    fdjax.save_cache(tmp_path / "c", cache, pipeline=PIPELINE)
    with pytest.raises(ValueError, match=r"holds a cache alone.*--resume"):
        load(tmp_path / "c")


def one_line(error):
    assert "\n" not in str(error.value)


def test_another_pipeline_and_other_weights_are_refused(saved, tmp_path):
    config = derive_config(
        PIPELINE.config, diffusion_model={"scheduler": {"shift": 3.0}}
    )
    with pytest.raises(ValueError, match=r"another pipeline: .*shift") as e:
        Session.load(saved, config.setup(), PARAMS)
    one_line(e)
    path = tmp_path / "s"
    path.write_bytes(saved)
    other = PIPELINE.init_params(jax.random.key(8))
    mixed = PARAMS | {"decoder": jax.tree.map(lambda x: x + 1, PARAMS["decoder"])}
    for params, names in ((other, "decoder.*transformer"), (mixed, "decoder: '")):
        with pytest.raises(ValueError, match=f"other weights: .*{names}") as e:
            Session.load(path, PIPELINE, params)
        one_line(e)
        assert names != "decoder: '" or "transformer" not in str(e.value)
        with pytest.raises(ValueError, match=f"other weights: .*{names}"):
            fdjax.load_cache(path, pipeline=PIPELINE, params=params)


def test_what_was_cut_or_changed_is_refused(saved, tmp_path):
    path = tmp_path / "s"
    header = int.from_bytes(saved[:8], "little")
    cuts = (0, 1, 7, 8, 40, header - 3, header + 8, header + 99, len(saved) - 1)
    for length in cuts:
        path.write_bytes(saved[:length])
        for source in (saved[:length], path):
            with pytest.raises(
                ValueError, match=r"truncated|is no session|is empty"
            ) as e:
                load(source)
            one_line(e)
    places = (
        0,
        5,
        9,
        30,
        60,
        99,
        header // 2,
        header + 9,
        header + 500,
        len(saved) - 1,
    )
    for place in places:
        changed = bytearray(saved)
        changed[place] ^= 1
        for source in (bytes(changed), path):
            path.write_bytes(changed)
            with pytest.raises(
                ValueError, match=r"damaged|no session|trunc|format"
            ) as e:
                load(source)
            one_line(e)
    with pytest.raises(ValueError, match="checksum"):
        load(saved + b"more")
    with pytest.raises(FileNotFoundError, match="no session at"):
        load(tmp_path / "none")
    for foreign in (b"\x89PNG\r\n", b"PK\x03\x04" * 99, os.urandom(999)):
        with pytest.raises(ValueError, match="is no session"):
            load(foreign)


def forged(saved, change):
    """The file as somebody would write it who knows the checksum."""
    contents = container.read("x", saved)
    header = json.loads(json.dumps(dict(contents.header)))
    arrays = {name: np.array(t.read()) for name, t in contents.tensors.items()}
    change(header["session"], arrays)
    file = io.BytesIO()
    container.write(file, header, arrays)
    return file.getvalue()


def _resize(name, shape):
    return lambda h, a: a.update({name: np.zeros(shape, a[name].dtype)})


FORGERIES = {
    "another chunk": (lambda h, a: h.update(num_steps=5), "chunk 5 is another one"),
    "more than all": (lambda h, a: h.update(num_steps=9), "columns differ"),
    "negative": (lambda h, a: h.update(num_steps=-1), "in place of a number"),
    "no conditions": (lambda h, a: h.update(conditions=[]), "timeline is damaged"),
    "other class": (
        lambda h, a: h["conditions"][0].update({"class": "os:system"}),
        "needs the class os:system",
    ),
    "not conditions": (
        lambda h, a: h["conditions"].__setitem__(0, {"plain": 1}),
        "int in place of conditions",
    ),
    "wide conditions": (_resize("conditions.0.text", (1, 4, 99)), "does not take"),
    "many sessions": (_resize("conditions.0.text", (5, 4, 16)), "does not take its c"),
    "large picture": (lambda h, a: h["start"].update(pixel_height=6000), "not take"),
    "odd picture": (lambda h, a: h["start"].update(pixel_height=-6), "in place of a n"),
    "keys": (
        lambda h, a: h["start"]["key"].update(impl="mine"),
        "unrecognized PRNG",
    ),
    "control": (
        _resize("controls.0.control", (7, 1, 9)),
        "does not take its first control",
    ),
    "way": (_resize("way.0.3", (1, 1)), "way back"),
    "long way": (lambda h, a: h["journal"].extend(h["journal"] * 3), "longer than its"),
    "first": (lambda h, a: h["journal"][0].update(is_first=True), "is another chunk's"),
    "early event": (lambda h, a: h["events"][0].__setitem__(1, 0), "that are made"),
    "number event": (lambda h, a: h["events"][0].__setitem__(0, 5), "must be texts"),
    "seen": (lambda h, a: h.update(seen={"a": 1}), "must be texts"),
    "images": (_resize("images", (5, 1)), "thumbnails are no pictures"),
    "list": (lambda h, a: h.update(chunks=[]), "timeline is damaged"),
    "nested": (
        lambda h, a: h["conditions"].__setitem__(
            0, json.loads('{"tuple":[' * 40 + "1" + "]}" * 40)
        ),
        "session|damaged|deep",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_the_pipeline_could_not_have_made_is_refused(saved, name):
    change, message = FORGERIES[name]
    with pytest.raises(ValueError, match=message) as e:
        load(forged(saved, change))
    one_line(e)
    assert len(str(e.value)) < 700


def test_what_differs_is_named(saved, monkeypatch, caplog):
    here = container.made_by()
    monkeypatch.setattr(container, "made_by", lambda: here | {"jax": "0.1"})
    with caplog.at_level(logging.WARNING):
        load(saved)
    [message] = caplog.messages
    assert re.search(r"not bit for bit: jax: '[\d.]+' there, '0.1' here", message)


def test_the_old_file_stays_when_the_disk_is_full(tmp_path, saved, monkeypatch):
    path = tmp_path / "s"
    live = load(saved)
    live.save(path)
    with pytest.raises(FileExistsError, match="exists"):
        live.save(path)
    before = path.read_bytes()

    def full(file, header, arrays):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(container, "write", full)
        with pytest.raises(OSError, match=r"the disk filled up while .* nothing of it"):
            live.save(path, overwrite=True)
    assert path.read_bytes() == before == saved
    assert os.listdir(tmp_path) == ["s"]
    live.redo()
    live.save(path, overwrite=True)
    assert len(load(path).timeline) == 5
    live.close()
    with pytest.raises(ValueError, match="save needs an active session"):
        live.save(path, overwrite=True)


def test_a_batch_comes_back():
    pipeline = tiny.CONFIG.setup()
    params = pipeline.init_params(jax.random.key(0))
    start = {"pixel_height": 6, "pixel_width": 8, "key": jax.random.key(2)}
    live = Session(pipeline, params, conditions=tiny.conditions(), **start)
    live.tick(jnp.full((2,), 0.1))
    other = Session.load(live.to_bytes(), pipeline, params)
    assert other.cache.num_sessions == 2
    assert_same([live.tick(jnp.ones((2,)))], [other.tick(jnp.ones((2,)))])
    live.undo(2), other.undo(2)
    assert_same(live.redo(2), other.redo(2))


def test_it_holds_no_more_than_it_says():
    """A name that is used often is read once."""
    live = session()
    mapping = store._OnHost(container.read("x", live.to_bytes()).tensors)
    name = next(iter(mapping))
    assert mapping[name] is mapping[name]
