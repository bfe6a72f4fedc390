"""Programs compiled ahead are those that the calls need: nothing is compiled twice."""

import threading

import jax
import pytest

import fdjax
from fdjax.engine import programs

RUNNER = fdjax.runner_configs()["maze-world"].tiny().setup()


@pytest.fixture
def compiled(monkeypatch):
    """Programs that this thread compiled since; other tests leave threads behind."""
    times = []
    jax.monitoring.register_event_duration_secs_listener(
        listener := lambda name, _, **__: (
            times.append(name)
            if name.endswith("backend_compile_duration")
            and threading.current_thread() is threading.main_thread()
            else None
        )
    )
    yield times
    jax.monitoring.unregister_event_duration_listener(listener)


def test_calls_find_their_programs(compiled):
    jax.clear_caches()
    pipeline, inputs = RUNNER.pipeline, RUNNER.prepare()
    params = pipeline.init_params(jax.random.key(0))
    conditions = RUNNER.encode_conditions(params, inputs)
    shapes = jax.eval_shape(lambda: (params, conditions))
    key = jax.random.key(3)

    def start(params, conditions):
        return pipeline.initialize_cache(
            params, conditions=conditions, pixel_height=96, pixel_width=160, key=key
        )

    controls = inputs.controls
    ahead = programs.Programs(
        programs.session(pipeline, shapes[0], lambda: start(*shapes), controls)
    )
    ahead.wait()
    assert ahead.num_programs == 6  # codecs have a first chunk of their own
    first = ahead.num_programs
    compiled.clear()
    cache = start(params, conditions)
    for chunk in range(3):
        control = controls[min(chunk, len(controls) - 1)]
        cache, _ = pipeline.generate(params, cache, control, donate=True)
        cache = pipeline.finalize(params, cache, donate=True)
    assert not compiled
    assert ahead.num_programs == first


def test_what_cannot_be_traced_is_left_to_the_call():
    def calls():
        yield
        raise ValueError("no such chunk")

    ahead = programs.Programs(calls())
    ahead.wait()
    ahead.wait(0)
    assert ahead.num_programs == 0
