"""Runs that are extended: bit for bit as if they had never ended."""

import dataclasses
import pathlib
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdjax
from fdjax.config import derive_config
from fdjax.run import media
from fdjax.run.inputs import LazySequence
from tests.tiny_runner import CONFIG, TinyRunner

pytestmark = pytest.mark.usefixtures("default_signals")

NAME = "tiny-random-weights"


class SteppedRunner(TinyRunner):
    """Another control in every chunk."""

    def read_inputs(self):
        inputs = super().read_inputs()
        controls = LazySequence(
            self.config.num_controls, lambda index: jnp.full((1,), index / 10)
        )
        return dataclasses.replace(inputs, controls=controls)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SteppedConfig(type(CONFIG)):
    _target: type = SteppedRunner


def config(tmp_path, decoder=None, **changes):
    """Latents by default, as an mp4 does not keep every bit."""
    fields = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(CONFIG)}
    base = SteppedConfig(**fields | {"_target": SteppedRunner})
    pipeline = {} if decoder else {"decoder": None, "spatial_compression_ratio": 2}
    return derive_config(
        base, output_dir=str(tmp_path), save_session=True, pipeline=pipeline, **changes
    )


def whole(tmp_path, blocks):
    folder = tmp_path / "whole"
    return np.load(config(folder, total_blocks=blocks).setup().run().output)


def test_an_extended_run_goes_on_to_the_bit(tmp_path):
    first = config(tmp_path / "a", total_blocks=3).setup().run()
    session = tmp_path / "a" / f"{NAME}.session"
    assert session in first.files
    second = config(tmp_path / "a", total_blocks=2, resume=str(session)).setup().run()
    third = config(
        tmp_path / "a",
        total_blocks=1,
        seed=99,
        resume=tmp_path / "a" / f"{NAME}-2.session",
    )
    third = third.setup().run()
    assert second.output.name == f"{NAME}-2.npy"
    assert third.output.name == f"{NAME}-3.npy"
    indices = [chunk["autoregressive_index"] for chunk in second.stats + third.stats]
    assert indices == [3, 4, 5]
    parts = [np.load(run.output) for run in (first, second, third)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole(tmp_path, 6))


def test_the_video_of_an_extended_run_has_whole_chunks(tmp_path):
    config(tmp_path, decoder=True, total_blocks=2).setup().run()
    session = tmp_path / f"{NAME}.session"
    more = config(tmp_path, decoder=True, total_blocks=2, resume=session)
    assert len(media.read_video(more.setup().run().output)) == 4  # no shorter first one


def test_controls_go_on_where_the_session_stands(tmp_path):
    config(tmp_path, num_controls=3).setup().run()
    session = tmp_path / f"{NAME}.session"
    with pytest.raises(ValueError, match=r"must go beyond chunk 3, .* after 3 chunks"):
        config(tmp_path, num_controls=3, resume=session).setup().run()
    result = config(tmp_path, num_controls=5, resume=session).setup().run()
    assert [chunk["autoregressive_index"] for chunk in result.stats] == [3, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, None])
def test_an_interrupted_run_can_be_extended(tmp_path, monkeypatch, number):
    """A signal in the midst of a chunk waits for its end; an exception does not."""
    kind = type(CONFIG.pipeline.setup())
    generate, calls = kind.generate, []

    def interrupted(self, *args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            return generate(self, *args, **kwargs)  # from shapes, ahead
        calls.append(1)
        if len(calls) == 3:
            if number is None:
                raise KeyboardInterrupt
            signal.raise_signal(number)
        return generate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt, match=rf"{NAME}\.session"):
            config(tmp_path / "a", total_blocks=9).setup().run()
    made = 2 if number is None else 3
    first = np.load(tmp_path / "a" / f"{NAME}.npy")
    session = tmp_path / "a" / f"{NAME}.session"
    rest = config(tmp_path / "a", total_blocks=5 - made, resume=session).setup().run()
    joined = np.concatenate([first, np.load(rest.output)], 1)
    np.testing.assert_array_equal(joined, whole(tmp_path, 5))


def test_a_session_that_does_not_fit_is_refused_before_weights_are_read(
    tmp_path, monkeypatch
):
    config(tmp_path, total_blocks=1).setup().run()
    session = tmp_path / f"{NAME}.session"
    monkeypatch.setattr(
        TinyRunner, "load_weights", lambda *_, **__: pytest.fail("weights read")
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    other = derive_config(
        config(tmp_path, resume=session),
        pipeline={"diffusion_model": {"context_noise": 5.0}},
    )
    with pytest.raises(ValueError, match=r"another pipeline: .*context_noise"):
        other.setup().run()
    with pytest.raises(FileNotFoundError, match="no session at"):
        config(tmp_path, resume=tmp_path / "none").setup().run()
    with pytest.raises(ValueError, match="is no session"):
        config(tmp_path, resume=tmp_path / f"{NAME}.npy").setup().run()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_pending_session_is_not_extended(tmp_path):
    run = config(tmp_path).setup()
    params = run.pipeline.init_params(jax.random.key(0))
    cache = run.new_cache(params, run.encode_conditions({}, None))
    pending, _ = run.pipeline.generate(params, cache, jnp.ones((1,)))
    path = pathlib.Path(tmp_path / "p.session")
    fdjax.save_cache(path, pending, pipeline=run.pipeline)
    with pytest.raises(ValueError, match="must be ready"):
        config(tmp_path, resume=path).setup().run()
