"""Conditions on disk: what is kept, what is loaded, what makes an entry void."""

import dataclasses
import logging
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import checkpoint
from fdjax.config import DTypeName, derive_config
from fdjax.contract.conditioner import (
    ImageEncoder,
    ImageEncoderConfig,
    TextEncoder,
    TextEncoderConfig,
)
from fdjax.engine.conditioner import TextImageConditionerConfig
from fdjax.run import conditions_store
from fdjax.run.conditions_store import WeightsOnDemand, cached, cached_encode
from tests import tiny


class LetterEncoder(TextEncoder):
    """A row per letter, of its code times a weight; padded with zeros."""

    def init_params(self, key):
        return {"w": jax.random.normal(key, (4,))}

    def tokenize(self, text):
        return [list(map(ord, each)) for each in text]

    def encode(self, params, text):
        rows = np.zeros((len(text), self.config.length, 4), np.float32)
        for row, letters in zip(rows, self.tokenize(text), strict=True):
            if len(letters) > self.config.length:
                warnings.warn(f"{len(letters)} letters are too many", stacklevel=2)
            letters = letters[: self.config.length]
            row[: len(letters)] = np.outer(letters, params["w"])
        return jnp.asarray(rows, self.config.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LetterEncoderConfig(TextEncoderConfig):
    _target: type = LetterEncoder

    checkpoint_path: str | None = "hf://somewhere/letters.safetensors"
    length: int = 6
    dtype: DTypeName = "float32"


class MeanEncoder(ImageEncoder):
    """The mean colour of an image, scaled."""

    def init_params(self, key):
        return {"w": jnp.float32(2)}

    def encode(self, params, image):
        return image.mean((1, 2))[:, None] * params["w"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanEncoderConfig(ImageEncoderConfig):
    _target: type = MeanEncoder

    checkpoint_path: str | None = "hf://somewhere/mean.safetensors"


PIPELINE = derive_config(
    tiny.CONFIG,
    conditioner=TextImageConditionerConfig(
        text_encoder=LetterEncoderConfig(),
        image_encoder=MeanEncoderConfig(),
        negative_prompt="bad",
    ),
)


@pytest.fixture
def loads(monkeypatch):
    """Names of the components whose weights were loaded."""
    seen = []

    def load(component, *, sharding=None):
        seen.append(type(component).__name__)
        return component.init_params(jax.random.key(0))

    monkeypatch.setattr(checkpoint, "load_params", load)
    return seen


@pytest.fixture(autouse=True)
def keep_small_encoders(monkeypatch):
    monkeypatch.setitem(cached_encode.__kwdefaults__, "keep_from", 0)


def _encode(config, texts, directory):
    encoder = config.setup()
    return cached_encode(encoder, _load(encoder), texts, directory=directory)


def _load(encoder):
    return lambda: checkpoint.load_params(encoder)


def _entries(directory):
    return sorted(directory.glob("*"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_second_run_loads_nothing(loads, tmp_path, dtype):
    config = LetterEncoderConfig(dtype=dtype)
    first = _encode(config, ["ab", "", "abcdef"], tmp_path)
    assert loads == ["LetterEncoder"]
    second = _encode(config, ["abcdef", "ab", ""], tmp_path)
    assert loads == ["LetterEncoder"]
    assert second.dtype == first.dtype == dtype
    np.testing.assert_array_equal(second, first[jnp.array([2, 0, 1])])
    direct = config.setup().encode(
        config.setup().init_params(jax.random.key(0)), ["ab"]
    )
    np.testing.assert_array_equal(first[:1], direct)
    assert jnp.any(direct != 0)


def test_only_what_is_missing_is_encoded(loads, tmp_path, monkeypatch):
    config, texts = LetterEncoderConfig(), []
    original = LetterEncoder.encode

    def encode(self, params, text):
        texts.extend(text)
        return original(self, params, text)

    monkeypatch.setattr(LetterEncoder, "encode", encode)
    _encode(config, ["a", "b"], tmp_path)
    _encode(config, ["b", "c", "a"], tmp_path)
    assert texts == ["a", "b", "c"]


def test_padding_is_not_stored(loads, tmp_path):
    for length in (6, 4096):
        _encode(LetterEncoderConfig(length=length), ["ab"], tmp_path)
    small, large = (path.stat().st_size for path in _entries(tmp_path))
    assert abs(large - small) < 16


@pytest.mark.parametrize(
    "changes",
    [{"length": 7}, {"dtype": "bfloat16"}, {"checkpoint_path": "hf://other/file"}],
)
def test_another_config_is_another_entry(loads, tmp_path, changes):
    _encode(LetterEncoderConfig(), ["ab"], tmp_path)
    _encode(LetterEncoderConfig(**changes), ["ab"], tmp_path)
    assert len(loads) == 2


def test_another_version_of_remote_weights_is_another_entry(
    loads, tmp_path, monkeypatch
):
    """The same address, which has been fetched again meanwhile."""
    versions = ["", "first", "first", "second", "second"]
    monkeypatch.setattr(
        conditions_store.fetch, "cached_version", lambda source: versions.pop(0)
    )
    _encode(LetterEncoderConfig(), ["ab"], tmp_path)  # fetched while it was encoded
    _encode(LetterEncoderConfig(), ["ab"], tmp_path)
    assert len(loads) == 1
    _encode(LetterEncoderConfig(), ["ab"], tmp_path)
    assert len(loads) == 2
    assert not versions


def _write_file(folder):
    (folder / "weights").write_bytes(bytes(300_000))
    return folder / "weights", folder / "weights"


def _write_folder(folder):
    shard = folder / "shard-1.safetensors"
    shard.write_bytes(bytes(300_000))
    return folder, shard


def _write_index(folder):
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder / "model.safetensors.index.json", _write_folder(folder)[1]


def _write_own_directory(folder):
    encoder = LetterEncoderConfig().setup()
    path = folder / "own"
    checkpoint.save(path, encoder.init_params(jax.random.key(0)), component=encoder)
    nested = next(file for file in path.glob("params/*/*") if file.stat().st_size > 8)
    return path, nested


def _flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "layout", [_write_file, _write_folder, _write_index, _write_own_directory]
)
def test_a_changed_file_is_another_entry(loads, tmp_path, layout):
    """One bit at the start, in the middle or at the end, size and time as before."""
    (tmp_path / "weights").mkdir()
    source, changing = layout(tmp_path / "weights")
    config = LetterEncoderConfig(checkpoint_path=str(source))
    _encode(config, ["ab"], tmp_path / "cache")
    _encode(config, ["ab"], tmp_path / "cache")
    assert len(loads) == 1
    stat = changing.stat()
    for number, place in enumerate((0, stat.st_size // 2, -1)):
        _flip(changing, place)
        os.utime(changing, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        for _ in range(2):
            _encode(config, ["ab"], tmp_path / "cache")
        assert len(loads) == number + 2


def test_contents_tell_files_apart_that_nothing_else_does(tmp_path, monkeypatch):
    """A file system may give a copy the number, the size and the times of the old."""
    file, _ = _write_file(tmp_path)
    config = LetterEncoderConfig(checkpoint_path=str(file))
    same = file.stat()
    monkeypatch.setattr(type(file), "stat", lambda self, **_: same)
    identities = [conditions_store._identity(config.setup())]
    for place in (0, 150_000, -1):
        _flip(file, place)
        identities.append(conditions_store._identity(config.setup()))
    assert len({conditions_store._key(each, "ab") for each in identities}) == 4


def test_another_version_is_another_entry(loads, tmp_path, monkeypatch):
    _encode(LetterEncoderConfig(), ["ab"], tmp_path)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "99")
    _encode(LetterEncoderConfig(), ["ab"], tmp_path)
    assert len(loads) == 2


def test_random_weights_are_never_kept(loads, tmp_path):
    for _ in range(2):
        _encode(LetterEncoderConfig(checkpoint_path=None), ["ab"], tmp_path)
    assert len(loads) == 2
    assert not _entries(tmp_path)


def test_small_encoders_are_not_kept(loads, tmp_path):
    encoder = LetterEncoderConfig().setup()
    for _ in range(2):
        cached_encode(encoder, _load(encoder), ["ab"], directory=tmp_path, keep_from=17)
    assert len(loads) == 2
    assert not _entries(tmp_path)


def _truncate(data):
    return data[:-3]


def _flip_last(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [_truncate, _flip_last, lambda _: b"", lambda _: b"{}" * 40]
)
def test_a_damaged_entry_is_made_again(loads, tmp_path, caplog, damage):
    want = _encode(LetterEncoderConfig(), ["ab"], tmp_path)
    (path,) = _entries(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        got = _encode(LetterEncoderConfig(), ["ab"], tmp_path)
    assert str(path) in caplog.text
    np.testing.assert_array_equal(got, want)
    assert len(loads) == 2
    _encode(LetterEncoderConfig(), ["ab"], tmp_path)
    assert len(loads) == 2


def test_a_place_that_cannot_be_written_costs_nothing(loads, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        got = _encode(LetterEncoderConfig(), ["ab"], tmp_path / "file")
    assert got.shape == (1, 6, 4)
    assert "cannot be kept" in caplog.text
    assert "FDJAX_CACHE_DIR" in caplog.text


def test_warnings_are_given_every_time(loads, tmp_path):
    for _ in range(2):
        with pytest.warns(UserWarning, match="7 letters are too many"):
            _encode(LetterEncoderConfig(), ["ab", "abcdefg"], tmp_path)
    assert len(loads) == 1


def test_warnings_about_code_are_not_kept(loads, tmp_path, monkeypatch):
    original = LetterEncoder.encode

    def encode(self, params, text):
        warnings.warn("old spelling", FutureWarning, stacklevel=1)
        return original(self, params, text)

    monkeypatch.setattr(LetterEncoder, "encode", encode)
    with pytest.warns(FutureWarning, match="old spelling"):
        _encode(LetterEncoderConfig(), ["ab"], tmp_path)
    _encode(LetterEncoderConfig(), ["ab"], tmp_path)
    assert len(loads) == 1


def test_conditions_of_a_pipeline(loads, tmp_path):
    pipeline = PIPELINE.setup()
    image = jnp.linspace(-1, 1, 2 * 6 * 8 * 3).reshape(2, 6, 8, 3)
    names = ["text_encoder", "image_encoder"]

    def conditions(text, image):
        weights = WeightsOnDemand(pipeline.load_params, names)
        conditioner = cached(pipeline.conditioner, directory=tmp_path)
        return conditioner.encode(weights, text=text, image=image)

    got = conditions(["ab", "c"], image)
    assert loads == ["LetterEncoder", "MeanEncoder"]
    params = {
        name: pipeline.components[name].init_params(jax.random.key(0)) for name in names
    }
    want = pipeline.encode_conditions(params, text=["ab", "c"], image=image)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert got.negative_text is not None
    jax.tree.map(np.testing.assert_array_equal, conditions(["ab", "c"], image), want)
    assert loads == ["LetterEncoder", "MeanEncoder"]
    assert len(_entries(tmp_path)) == 5  # two prompts, two images, the negative prompt
    # A new image needs the image encoder, and only that.
    conditions(["c", "ab"], -image)
    assert loads == ["LetterEncoder", "MeanEncoder", "MeanEncoder"]


class TwoWayEncoder(LetterEncoder):
    """Rows, their sum over the letters, and one number."""

    def encode(self, params, text):
        rows = super().encode(params, text)
        return {"rows": rows, "pooled": rows.sum(1), "number": rows.sum((1, 2))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoWayEncoderConfig(LetterEncoderConfig):
    _target: type = TwoWayEncoder


def test_several_arrays_of_one_encoder(loads, tmp_path):
    config, texts = TwoWayEncoderConfig(), ["ab", "", "c"]
    want = config.setup().encode(config.setup().init_params(jax.random.key(0)), texts)
    for _ in range(2):
        got = _encode(config, texts, tmp_path)
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert loads == ["TwoWayEncoder"]
    assert len(_entries(tmp_path)) == 3


def test_an_encoder_of_something_else_is_refused(loads, tmp_path, monkeypatch):
    monkeypatch.setattr(LetterEncoder, "encode", lambda *_: ([1], [2]))
    with pytest.raises(ValueError, match="must return an array or a dict of arrays"):
        _encode(LetterEncoderConfig(), ["ab"], tmp_path)


def test_weights_on_demand():
    loads = []

    def load(*, only):
        loads.extend(only)
        return dict.fromkeys(only, 1)

    weights = WeightsOnDemand(load, ["a", "b"])
    assert sorted(weights) == ["a", "b"]
    assert "a" in weights
    assert not loads
    assert (weights["a"], weights["a"]) == (1, 1)
    assert loads == ["a"]
    with pytest.raises(KeyError, match="c"):
        weights["c"]


def test_cache_lies_where_the_environment_says(loads, tmp_path, monkeypatch):
    monkeypatch.setenv("FDJAX_CACHE_DIR", str(tmp_path))
    encoder = LetterEncoderConfig().setup()
    cached_encode(encoder, _load(encoder), ["ab"])
    assert len(_entries(tmp_path / "conditions")) == 1
