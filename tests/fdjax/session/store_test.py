"""Sessions on disk: what comes back, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdjax
from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions
from fdjax.engine import stages
from fdjax.session import container, store, tree
from fdjax_models.methods.template.config import AUTOREGRESSIVE
from tests import tiny

PIPELINE = tiny.CONFIG.setup()
PARAMS = PIPELINE.init_params(jax.random.key(0))


def start():
    return tiny.initialize(PIPELINE, PARAMS, jax.random.key(3))


def step(cache, value):
    cache, video = PIPELINE.generate(PARAMS, cache, jnp.full((2,), value))
    return PIPELINE.finalize(PARAMS, cache), video


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def states():
    fresh = start()
    later = step(fresh, 0.1)[0]
    pending = PIPELINE.generate(PARAMS, later, jnp.full((2,), 0.2))[0]
    return {"fresh": fresh, "later": later, "pending": pending}


@pytest.mark.parametrize("name", ["fresh", "later", "pending"])
def test_a_session_comes_back_to_the_bit(tmp_path, name):
    cache = states()[name]
    path = tmp_path / "one.session"
    fdjax.save_cache(path, cache, pipeline=PIPELINE, notes={"chunks": 3})
    loaded = fdjax.load_cache(path, pipeline=PIPELINE)
    assert_same(cache, loaded)
    assert store.read_notes(path) == {"chunks": 3}
    if name == "pending":
        cache, loaded = (PIPELINE.finalize(PARAMS, c) for c in (cache, loaded))
    for a, b in zip(step(cache, 0.3), step(loaded, 0.3), strict=True):
        assert_same(a, b)


def test_nothing_is_compiled_again_for_a_loaded_session(tmp_path):
    device = jax.devices()[0]
    params = jax.device_put(PARAMS, device)

    def steps(cache, count):
        for _ in range(count):
            cache, _ = PIPELINE.generate(params, cache, jnp.ones((2,)), donate=True)
            cache = PIPELINE.finalize(params, cache, donate=True)
        return cache

    def programs():
        compiled = (stages.diffuse_in_place, stages.finalize_in_place, stages.decode)
        return [function._cache_size() for function in compiled]

    cache = steps(tiny.initialize(PIPELINE, params, jax.random.key(3)), 2)
    fdjax.save_cache(tmp_path / "s", cache, pipeline=PIPELINE)
    before = programs()
    steps(fdjax.load_cache(tmp_path / "s", pipeline=PIPELINE), 2)
    assert programs() == before


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_keep_their_kind(tmp_path, impl):
    cache = tiny.initialize(PIPELINE, PARAMS, jax.random.key(3, impl=impl))
    fdjax.save_cache(tmp_path / "s", cache, pipeline=PIPELINE)
    loaded = fdjax.load_cache(tmp_path / "s", pipeline=PIPELINE)
    assert jax.random.key_impl(loaded.key) == jax.random.key_impl(cache.key)
    assert_same(cache, loaded)


@pytest.mark.parametrize(("saved", "loaded"), [(1, 128), (128, 1), (128, 96)])
def test_the_padding_of_another_kind_of_device_is_mapped(
    tmp_path, monkeypatch, saved, loaded
):
    pipeline = AUTOREGRESSIVE.setup()
    transformer = type(pipeline.diffusion_model.transformer)
    original = transformer.layout.func

    def use(slots):
        layout = property(
            lambda self: dataclasses.replace(original(self), slot_multiple=slots)
        )
        monkeypatch.setattr(transformer, "layout", layout)

    params = pipeline.init_params(jax.random.key(0))
    conditions = Conditions(text=jax.random.normal(jax.random.key(1), (1, 4, 16)))

    def begin():
        cache = pipeline.initialize_cache(
            params, conditions=conditions, pixel_height=6, pixel_width=4
        )
        full = jax.random.normal(jax.random.key(2), ())
        kv = cache.transformer_cache.kv
        capacity = pipeline.diffusion_model.transformer.layout.tokens(
            cache.transformer_cache.height, cache.transformer_cache.width
        )[0].capacity
        keys = tuple(
            k.at[..., :capacity, :, :].set(full.astype(k.dtype)) for k in kv.keys
        )
        kv = kv.replace(keys=keys)
        return cache.replace(transformer_cache=cache.transformer_cache.replace(kv=kv))

    jax.clear_caches()
    use(saved)
    fdjax.save_cache(tmp_path / "s", begin(), pipeline=pipeline)
    jax.clear_caches()
    use(loaded)
    assert_same(begin(), fdjax.load_cache(tmp_path / "s", pipeline=pipeline))
    jax.clear_caches()


def test_another_pipeline_is_refused_by_field(tmp_path):
    path = tmp_path / "s"
    fdjax.save_cache(path, start(), pipeline=PIPELINE)
    changes = {"transformer": {"channels": 5}}
    other = derive_config(tiny.CONFIG, diffusion_model=changes).setup()
    with pytest.raises(ValueError, match=r"another pipeline: .*channels: 4 there, 5"):
        fdjax.load_cache(path, pipeline=other)
    for free in ({"name": "x"}, {"diffusion_model": {"seed": 9}}):
        fdjax.load_cache(path, pipeline=derive_config(tiny.CONFIG, **free).setup())


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "s"
    fdjax.save_cache(path, start(), pipeline=PIPELINE)
    with pytest.raises(FileExistsError, match="exists"):
        fdjax.save_cache(path, start(), pipeline=PIPELINE)
    fdjax.save_cache(path, states()["later"], pipeline=PIPELINE, overwrite=True)
    assert fdjax.load_cache(path, pipeline=PIPELINE).autoregressive_index[0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_donated_cache_is_refused(tmp_path):
    cache = start()
    PIPELINE.generate(PARAMS, cache, jnp.ones((2,)), donate=True)
    with pytest.raises(ValueError, match="used up by donate=True"):
        fdjax.save_cache(tmp_path / "s", cache, pipeline=PIPELINE)


def rewrite(path, change):
    contents = container.read(str(path), path)
    arrays = {name: np.array(t.read()) for name, t in contents.tensors.items()}
    header = dict(contents.header)
    change(header, arrays)
    with path.open("wb") as file:
        container.write(file, header, arrays)


def nested(header, _=None, levels=200):
    for _ in range(levels):
        header["structure"] = {"tuple": [header["structure"]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, a: h.update(format=9), "format 2, it is of format '9'"),
        (lambda h, a: h["structure"].update({"class": "os:system"}), "needs the class"),
        (
            lambda h, a: h["structure"].update({"class": "subprocess:Popen"}),
            "needs the class subprocess:Popen",
        ),
        (lambda h, a: h["structure"]["parts"].pop("key"), "structure is damaged"),
        (lambda h, a: a.pop("cache.autoregressive_index"), "structure is damaged"),
        (lambda h, a: h.update(structure={"tuple": []}), "no session but a tuple"),
        (nested, "is no session"),
    ],
)
def test_a_damaged_session_is_refused(tmp_path, change, message):
    path = tmp_path / "s"
    fdjax.save_cache(path, start(), pipeline=PIPELINE)
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        fdjax.load_cache(path, pipeline=PIPELINE)


def test_a_structure_is_not_followed_for_ever():
    header = {"structure": None}
    nested(header)
    with pytest.raises(ValueError, match="nested too deeply"):
        tree.build(header["structure"], {})


def test_what_is_no_session_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no session at"):
        fdjax.load_cache(tmp_path / "none", pipeline=PIPELINE)
    path = tmp_path / "text"
    path.write_text("hello, this is no session")
    with pytest.raises(ValueError, match="is no session"):
        fdjax.load_cache(path, pipeline=PIPELINE)
    fdjax.save_cache(tmp_path / "s", start(), pipeline=PIPELINE)
    whole = (tmp_path / "s").read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match="truncated"):
        fdjax.load_cache(path, pipeline=PIPELINE)


def test_what_no_file_can_hold_is_named():
    with pytest.raises(ValueError, match=r"cache\.x is a object"):
        tree.describe({"x": object()})
