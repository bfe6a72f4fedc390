"""Runs whose networks give NaN: what is written, what is said, and when they end."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import NullEncoder, NullEncoderConfig
from fdjax.run import finite, media
from tests import tiny
from tests.tiny_runner import CONFIG, TinyRunner

NAME = "tiny-random-weights"


class BadDecoder(tiny.DoublingDecoder):
    def decode(self, params, cache, latent):
        cache, video = super().decode(params, cache, latent)
        return cache, jnp.where(jnp.arange(8)[:, None] == 3, jnp.inf, video)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadDecoderConfig(tiny.DoublingDecoderConfig):
    _target: type = BadDecoder


class BadEncoder(NullEncoder):
    def encode(self, params, cache, input):
        return cache, input * jnp.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadEncoderConfig(NullEncoderConfig):
    _target: type = BadEncoder


class TurningBad(tiny.MeanTransformer):
    """Gives NaN from the chunk on whose control is above 5."""

    def predict_flow(self, params, workspace, latent, timestep):
        workspace, flow = super().predict_flow(params, workspace, latent, timestep)
        bad = jnp.any(workspace[1] > 5)
        return workspace, jnp.where(bad, jnp.nan, flow)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurningBadConfig(tiny.MeanTransformerConfig):
    _target: type = TurningBad


@pytest.fixture
def turn_bad_at(monkeypatch):
    def apply(index):
        original = TinyRunner.read_inputs

        def read_inputs(self):
            inputs = original(self)
            controls = list(inputs.controls)
            controls[index] = jnp.full((1,), 9.0)
            return dataclasses.replace(inputs, controls=controls)

        monkeypatch.setattr(TinyRunner, "read_inputs", read_inputs)

    return apply


def config(tmp_path, **pipeline):
    changed = dataclasses.replace(CONFIG.pipeline, **pipeline)
    return derive_config(
        CONFIG, pipeline=changed, output_dir=str(tmp_path / "out"), total_blocks=8
    )


def turning(tmp_path):
    model = dataclasses.replace(
        CONFIG.pipeline.diffusion_model, transformer=TurningBadConfig()
    )
    return config(tmp_path, diffusion_model=model)


def stats(tmp_path):
    return json.loads((tmp_path / "out" / f"stats_{NAME}.json").read_text())


@pytest.mark.parametrize("index", [1, 3, 7])
def test_the_run_ends_before_the_first_bad_chunk(tmp_path, turn_bad_at, index):
    turn_bad_at(index)
    message = f"chunk {index} is NaN or infinite, .* is 'diffuse'.*allow_nonfinite"
    with pytest.raises(finite.NonFiniteError, match=message):
        turning(tmp_path).setup().run()
    video = media.read_video(tmp_path / "out" / f"{NAME}.mp4")
    assert len(video) == 1 + 2 * (index - 1)
    chunks = stats(tmp_path)
    assert [chunk.get("nonfinite") for chunk in chunks] == [None] * index + ["diffuse"]
    assert chunks[-1]["autoregressive_index"] == index
    assert chunks[-1]["frames"] == 0


def test_a_first_chunk_that_is_bad_leaves_the_stats_alone(tmp_path, turn_bad_at):
    turn_bad_at(0)
    with pytest.raises(
        finite.NonFiniteError, match=r"chunk 0 .*Nothing was made, see .*/stats_ti"
    ):
        turning(tmp_path).setup().run()
    [chunk] = stats(tmp_path)
    assert chunk["nonfinite"] == "diffuse"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = "config", "replay"
    assert names == {f"stats_{NAME}.json", *(f"{NAME}.{kind}.json" for kind in kinds)}


def test_the_run_goes_on_if_asked(tmp_path, turn_bad_at, caplog):
    turn_bad_at(2)
    with caplog.at_level("INFO"):
        changed = derive_config(turning(tmp_path), allow_nonfinite=True)
        result = changed.setup().run()
    assert result.num_frames == 1 + 2 * 7
    bad = [chunk.get("nonfinite") for chunk in stats(tmp_path)]
    assert bad == [None] * 2 + ["diffuse"] * 6  # the memory has been spoilt
    assert "6 chunks of them NaN or infinite" in caplog.text


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"decoder": BadDecoderConfig()}, "decode"),
        ({"encoder": BadEncoderConfig()}, "encode"),
    ],
)
def test_the_stage_is_the_first_that_is_bad(tmp_path, changes, stage):
    with pytest.raises(finite.NonFiniteError, match=f"chunk 0 .* is '{stage}'"):
        config(tmp_path, **changes).setup().run()


def test_bad_conditions_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        TinyRunner,
        "encode_conditions",
        lambda self, params, inputs: Conditions(text=jnp.full((1, 3, 4), jnp.nan)),
    )
    with pytest.raises(finite.NonFiniteError, match=r"conditions gives NaN.*: text"):
        config(tmp_path).setup().run()
    assert not list(pathlib.Path(tmp_path / "out").iterdir())


def test_the_watch_does_not_wait(monkeypatch):
    class Never:
        def is_ready(self):
            return False

        def __bool__(self):
            raise AssertionError("waited")

    watch = finite.FiniteWatch()
    watch._waiting.extend(finite.ChunkFlags(n, {"decode": Never()}) for n in range(9))
    watch.look()
    assert watch.bad == {}


def test_processes_that_run_together_stop_at_one_chunk(monkeypatch):
    """They go by age, as one may know sooner than another."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    watch = finite.FiniteWatch()
    seen = []
    for index in range(8):
        watch.record("decode", jnp.full((2,), jnp.nan if index == 1 else 0.0))
        watch.end_chunk(index)
        watch.look()
        seen.append(dict(watch.bad))
    assert seen == [{}] * 5 + [{1: "decode"}] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [np.full, jnp.full])
def test_controls_that_are_not_finite_are_refused(value, make):
    pipeline = tiny.CONFIG.setup()
    params = pipeline.init_params(jax.random.key(0))
    cache = tiny.initialize(pipeline, params, jax.random.key(1))
    with pytest.raises(ValueError, match="input must be finite, 2 of 2 values are NaN"):
        pipeline.generate(params, cache, make((2,), value, np.float32))
    nested = {"keys": [np.array([1.0, value], np.float32)]}
    with pytest.raises(
        ValueError, match=r"input\['keys'\]\[0\] must be finite, 1 of 2"
    ):
        pipeline.generate(params, cache, nested)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 6, 8, 3), np.uint8), "floating point in .*got uint8"),
        (np.full((2, 6, 8, 3), 200.0, np.float32), "lie in .*values from 200"),
        (np.full((2, 6, 8, 3), np.nan, np.float32), "lie in .*from nan to nan"),
        (np.zeros((2, 6, 8), np.float32), "must be .*got shape"),
    ],
)
def test_conditions_made_by_hand_are_looked_at_too(image, message):
    pipeline = tiny.CONFIG.setup()
    params = pipeline.init_params(jax.random.key(0))
    wrong = tiny.conditions().replace(image=image)
    cache = tiny.initialize(pipeline, params, jax.random.key(1))
    with pytest.raises(ValueError, match=message):
        pipeline.initialize_cache(params, conditions=wrong)
    with pytest.raises(ValueError, match=message):
        pipeline.update_conditions(params, cache, wrong)
    text = tiny.conditions().text.at[0, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"conditions\.text must be finite, 1 of"):
        pipeline.update_conditions(params, cache, Conditions(text=text))
