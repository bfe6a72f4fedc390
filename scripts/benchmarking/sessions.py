"""Worker: many sessions in one batch, of equal and of different age.

For each number of sessions, with waiting after each chunk:

    raw         `generate` and `finalize` on the batch's cache: no handle, no way back
    equal       `SessionBatch.tick` of all, equal age
    different   the same, ages spread over two windows
    half        every second session sits the chunk out

and what it costs to begin a session (its first chunk is made alone), to let it join and
to let it leave. For each number of futures, what a player waits for a chunk.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarking import measure, methods

_UNDO_TICKS = 4  # kept on the device


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        pipeline: Of the method.
        params: Weights.
        conditions: Of one session.
        size: Height and width, pixels.
        control: Index of a chunk -> its control, or None.
    """

    pipeline: Any
    params: Any
    conditions: Any
    size: tuple[int, int]
    control: Callable[[int], Any]

    def begin(self, seed: int) -> Any:
        """A session that has made its first chunk."""
        import jax

        import fdjax

        session = fdjax.Session(
            self.pipeline,
            self.params,
            conditions=self.conditions,
            pixel_height=self.size[0],
            pixel_width=self.size[1],
            key=jax.random.key(seed),
            undo_on_device=0,
            undo_on_host=0,
        )
        session.tick(self.control(0))
        return session


def setting(spec: dict[str, Any]) -> Setting:
    """The method with random weights, or maze-world with its own."""
    import jax

    from fdjax_models.methods.maze_world.encoder import MazeEncoderConfig

    config = methods.runner_config(spec["method"]).pipeline
    if isinstance(config.encoder, MazeEncoderConfig):
        return _maze(config)
    config = methods.pipeline_config(
        spec["method"],
        decoder=spec["decoder"],
        dtype=spec["dtype"],
        overrides=spec["overrides"],
    )
    pipeline = config.setup()
    size = spec["pixel_height"], spec["pixel_width"]
    return Setting(
        pipeline,
        pipeline.init_params(jax.random.key(0)),
        methods.random_conditions(config, jax.random.key(1), size),
        size,
        lambda index: methods.chunk_input(config, index, size),
    )


def _maze(config: Any) -> Setting:
    """A walk by random keys, at the size that the network is made for."""
    from fdjax_models.methods.maze_world import sizes

    pipeline = config.setup()
    params = pipeline.load_params()
    keys = np.random.default_rng(0).integers(-1, 2, (64, 1, 4, 2)).astype(np.float32)
    return Setting(
        pipeline,
        params,
        pipeline.encode_conditions(params, text=["clear red brick maze at day"]),
        (sizes.PIXEL_HEIGHT, sizes.PIXEL_WIDTH),
        lambda index: keys[index % len(keys)],
    )


def main(spec: dict[str, Any], report: measure.Report) -> None:
    run = setting(spec)
    for count in spec["sessions"]:
        report.append("sessions", measure_count(run, count, spec["steady_chunks"]))
    for count in spec["futures"]:
        report.append("futures", measure_futures(run, count, spec["steady_chunks"]))


def measure_count(run: Setting, count: int, chunks: int) -> dict[str, Any]:
    """All figures of one number of sessions, in milliseconds."""
    import jax

    import fdjax
    from fdjax.testing import count_compilations

    batch = fdjax.SessionBatch(
        run.begin(0),
        capacity=count,
        control=run.control(1),
        undo_on_device=_UNDO_TICKS,
        undo_on_host=0,
    )
    window = methods.first_steady_chunk(run.pipeline.config)
    begun, joined = [], []
    for seed in range(count):
        start = time.perf_counter()
        session = run.begin(seed)
        jax.block_until_ready(session.cache)
        begun.append(1e3 * (time.perf_counter() - start))
        join = functools.partial(batch.join, session)
        joined.append(_timed(join, lambda: batch._cache)[1])
    row: dict[str, Any] = {"count": count, "begin_ms": measure.spread(begun)}
    row["join_ms"] = measure.spread(joined)
    with count_compilations() as compilations:
        for _ in range(window):
            _tick(batch, batch.sessions, run)
        row["equal_ms"], frames = _ticks(batch, batch.sessions, run, chunks)
        row["to_host_ms"] = measure.spread(
            [_on_host(_tick(batch, batch.sessions, run)) for _ in range(chunks)]
        )
        _spread_ages(batch, run, 2 * window)
        row["ages"] = sorted({each.committed_step_id for each in batch.sessions})
        row["different_ms"], _ = _ticks(batch, batch.sessions, run, chunks)
        half = batch.sessions[::2]
        row["half_ms"], _ = _ticks(batch, half, run, chunks)
        leaving = batch.sessions[0]
        leave = functools.partial(batch.leave, leaving)
        row["leave_ms"] = round(_timed(leave, lambda: leaving.cache)[1], 3)
        leaving.close()
        row["compilations"] = compilations()
    row["raw_ms"] = _raw(batch, run, chunks)
    row["frames_per_s"] = round(count * frames / row["different_ms"]["median"] * 1e3, 1)
    row["frames_per_s_each"] = round(row["frames_per_s"] / count, 1)
    return row


def measure_futures(run: Setting, count: int, chunks: int) -> dict[str, Any]:
    """From a key to its frames on the host, with futures and without.

    The player of maze-world changes what is held after five chunks on average, to a
    key that is drawn, and looks at a chunk for longer than the futures take.
    """
    import jax

    import fdjax

    # Forward, back, left, right, nothing: (forward, turn left) of every frame.
    axes = [(1, 0), (-1, 0), (0, 1), (0, -1), (0, 0)]
    keys = [np.broadcast_to(np.float32(axis), (1, 4, 2)) for axis in axes]
    draw = np.random.default_rng(1)
    session = run.begin(0)
    futures, habits = None, fdjax.Habits(keys)
    if count > 1:
        futures = fdjax.Futures(session, count=count, control=keys[0])
    times: dict[str, list[float]] = {"hit": [], "miss": []}
    key = 0
    for step in range(10 * chunks + 4):
        key = int(draw.integers(len(keys))) if draw.random() < 1 / 5 else key
        if futures is not None:
            futures.ahead(habits.likeliest(count))
            jax.block_until_ready((futures._ahead[1], futures._cache))
        hits = 0 if futures is None else futures.hits
        start = time.perf_counter()
        np.asarray(session.tick(keys[key]))
        passed = 1e3 * (time.perf_counter() - start)
        habits.observe(keys[key])
        hit = futures is not None and futures.hits > hits
        if step >= 4:  # compiles
            times["hit" if hit else "miss"].append(passed)
    rate = len(times["hit"]) / sum(map(len, times.values()))
    latency = {f"{name}_ms": measure.spread(values) for name, values in times.items()}
    everything = measure.spread([*times["hit"], *times["miss"]])
    return {"count": count, "hit_rate": rate, "all_ms": everything} | latency


def _timed(call: Callable[[], Any], wait: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result, and milliseconds until what it left behind is there."""
    import jax

    start = time.perf_counter()
    result = call()
    jax.block_until_ready(wait())
    return result, 1e3 * (time.perf_counter() - start)


def _tick(batch: Any, sessions: Any, run: Setting) -> Any:
    return batch.tick({each: run.control(each.committed_step_id) for each in sessions})


def _ticks(
    batch: Any, sessions: Any, run: Setting, chunks: int
) -> tuple[dict[str, float], int]:
    """Milliseconds per chunk, and its frames."""
    tick = functools.partial(_tick, batch, sessions, run)
    made = tick()
    times = [_timed(tick, lambda: batch._cache) for _ in range(chunks)]
    return measure.spread([passed for _, passed in times]), made.whole.shape[1]


def _on_host(made: Any) -> float:
    """Milliseconds from a dispatched chunk to everybody's frames on the host."""
    start = time.perf_counter()
    made.on_host()
    return 1e3 * (time.perf_counter() - start)


def _spread_ages(batch: Any, run: Setting, most: int) -> None:
    """Lets some sessions sit out, so that ages differ by up to `most` chunks."""
    sessions, steps = batch.sessions, max(min(most, len(batch.sessions)) - 1, 0)
    for step in range(steps):
        _tick(batch, sessions[: len(sessions) * (step + 1) // (steps + 1)], run)


def _raw(batch: Any, run: Setting, chunks: int) -> dict[str, float]:
    """The pipeline alone on the batch's own cache, which is of no use afterwards."""
    pipeline, params = run.pipeline, run.params
    cache = batch._cache
    control = batch._controls.together({})

    def chunk() -> None:
        nonlocal cache
        pending, _ = pipeline.generate(params, cache, control, donate=True)
        cache = pipeline.finalize(params, pending, donate=True)

    chunk()
    return measure.spread([_timed(chunk, lambda: cache)[1] for _ in range(chunks)])


if __name__ == "__main__":
    measure.worker(main)
