"""Worker: a method from the start of its process to the steady state.

Cold start first, with each phase apart; then rollouts that must not compile anything.
With `share` in the spec it leaves weights, noise and its latents for the comparison
with the PyTorch reference.
"""

import collections
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarking import kernels, measure, methods


def main(spec: dict[str, Any], report: measure.Report) -> None:
    startup = measure.Startup(spec["spawned"])
    import jax

    from fdjax.run.stats import Profiler

    configs = {
        name: methods.pipeline_config(
            spec["method"],
            decoder=name,
            dtype=spec["dtype"],
            overrides=spec["overrides"],
        )
        for name in spec["decoders"]
    }
    clock = measure.CompileClock()
    startup.mark("import_s")
    jax.block_until_ready(jax.numpy.zeros(1))
    startup.mark("device_s")

    first, *others = configs.values()
    runs = Runs(spec, first.setup(), Profiler(), report)
    runs.params = runs.random_weights()
    startup.mark("random_weights_s")
    runs.start_rollout()
    startup.mark("initialize_cache_s")
    before = clock.lap()
    first_row = runs.chunk(on_video=lambda: startup.mark("first_video_s")) | clock.lap()
    cold = {"total_s": startup.total(), **startup.seconds, "before_chunk_0": before}
    report.add("cold_start", cold)
    for row in [first_row] + [runs.chunk() | clock.lap() for _ in range(2)]:
        report.append("cold_chunks", row)
    if spec.get("cold_only"):
        return

    runs.measure_warm(spec["decoders"][0])
    report.add("memory", _memory())
    if spec["mesh"]:
        report.add("sent", runs.sent())
    runs.trace(spec["decoders"][0])
    for name, config in zip(spec["decoders"][1:], others, strict=True):
        runs.change_decoder(config)
        clock.lap()
        for _ in range(3):
            report.append(f"cold_chunks_{name}", runs.chunk() | clock.lap())
        runs.measure_warm(name)
        report.add(f"memory_{name}", _memory())
        runs.trace(name)
    runs.change_decoder(first)
    if spec.get("share"):
        from benchmarking import compare

        compare.share(first, runs.params, Path(spec["share"]), spec)
        report.add("shared", spec["share"])
    if spec["pure"]:
        runs.measure_pure()
        report.add("memory_pure", _memory())


def _memory() -> Any:
    """Memory of the device, or of each of several."""
    import jax

    from fdjax.run.stats import memory_stats

    each = [memory_stats(device) for device in jax.local_devices()]
    return each[0] if len(each) == 1 else each


class Runs:
    """A live session of one pipeline, measured chunk by chunk.

    Attributes:
        pipeline: What is run.
        params: Its weights.
        cache: The session, always ready.
    """

    def __init__(self, spec: dict[str, Any], pipeline: Any, profiler: Any, report: Any):
        self.spec, self.pipeline, self.report = spec, pipeline, report
        self.params: Any = None
        self.cache: Any = None
        self._profiler = profiler
        self._size = spec["pixel_height"], spec["pixel_width"]
        self._index = 0

    def _input(self) -> Any:
        """The input of the next chunk."""
        self._index += 1
        return methods.chunk_input(self.pipeline.config, self._index - 1, self._size)

    def random_weights(self, only: Any = None) -> Any:
        """Random weights on the devices that the flags name."""
        import jax

        from fdjax.run import devices, needs

        found = devices.find(self.spec["mesh"], self.spec["place"], self.pipeline)
        where = found.placement(needs.streaming(self.pipeline))
        if not found.several:
            where = methods.placement(self.pipeline, self.spec["offload_share"])
        return jax.block_until_ready(
            self.pipeline.init_params(
                jax.random.key(0),
                only=only,
                sharding=where,
            )
        )

    def sent(self) -> list[list[Any]]:
        """Operations between devices in the program of a chunk: kind, bytes, count.

        Those of the denoising loop, of any number of steps, are there once.
        """
        from fdjax.testing import collectives

        counts = collections.Counter(collectives(self._program()))
        return [[*each, count] for each, count in sorted(counts.items())]

    def _program(self) -> str:
        size = self._size
        own = methods.chunk_input(self.pipeline.config, self._index, size)
        return kernels.program(self.pipeline, self.params, self.cache, own)

    def change_decoder(self, config: Any) -> None:
        """Continues with another decoder, the weights of the rest kept."""

        self.cache = None
        self.pipeline = config.setup()
        if self.pipeline.decoder is not None:
            self.params = {**self.params, **self.random_weights(["decoder"])}
        self.start_rollout()

    def start_rollout(self) -> None:
        """A new rollout from random conditions; the old session is dropped."""
        import jax

        self.cache, self._index = None, 0
        config = self.pipeline.config
        self.cache = jax.block_until_ready(
            self.pipeline.initialize_cache(
                self.params,
                conditions=methods.random_conditions(
                    config, jax.random.key(1), self._size
                ),
                pixel_height=self.spec["pixel_height"],
                pixel_width=self.spec["pixel_width"],
                key=jax.random.key(2),
            )
        )

    def chunk(
        self, *, donate: bool = True, on_video: Callable[[], Any] | None = None
    ) -> dict[str, float]:
        """One chunk, waiting after each stage; milliseconds per stage."""
        self._profiler.start()
        self.cache, video = self.pipeline.generate(
            self.params,
            self.cache,
            self._input(),
            donate=donate,
            profiler=self._profiler,
        )
        del video
        if on_video is not None:
            on_video()
        self.cache = self.pipeline.finalize(
            self.params, self.cache, donate=donate, profiler=self._profiler
        )
        return {k: round(v, 3) for k, v in self._profiler.stats().items()}

    def measure_warm(self, name: str) -> None:
        """A donated rollout, the steady state with and without waiting."""
        from fdjax.testing import count_compilations

        steady = methods.first_steady_chunk(self.pipeline.config)
        with count_compilations() as compilations:
            self.start_rollout()
            for _ in range(self.spec["num_chunks"]):
                self.report.append(f"chunks_{name}", self.chunk())
            while int(np.asarray(self.cache.autoregressive_index)[0]) < steady:
                self.chunk()
            rows = [self.chunk() for _ in range(self.spec["steady_chunks"])]
            self.report.add(f"steady_{name}", measure.spread_stages(rows))
            self.report.add(f"unsynchronised_{name}", self._unsynchronised())
            self.report.add(f"to_video_{name}", self._to_video())
            compiled = compilations()
        self.report.add(f"compilations_after_warm_up_{name}", compiled)

    def _to_video(self, count: int = 6) -> dict[str, float]:
        """Median ms from a control to its video on the host, the commit in or out."""
        import jax

        medians = {}
        for waits in (False, True):
            times = []
            for _ in range(min(count, self.spec["steady_chunks"])):
                jax.block_until_ready(self.cache)
                start = time.perf_counter()
                self.cache, video = self.pipeline.generate(
                    self.params, self.cache, self._input(), donate=True
                )
                video.copy_to_host_async()
                self.cache = self.pipeline.finalize(
                    self.params, self.cache, donate=True
                )
                if waits:
                    jax.block_until_ready(self.cache)
                np.asarray(video)
                times.append(1e3 * (time.perf_counter() - start))
            name = "finalize_awaited_ms" if waits else "handed_over_ms"
            medians[name] = round(float(np.median(times)), 1)
        return medians

    def _unsynchronised(self) -> dict[str, float]:
        """Milliseconds per chunk where nothing waits, and of dispatch alone."""
        import jax

        count, host = self.spec["steady_chunks"], []
        jax.block_until_ready(self.cache)
        start = time.perf_counter()
        for _ in range(count):
            began = time.perf_counter()
            self.cache, video = self.pipeline.generate(
                self.params, self.cache, self._input(), donate=True
            )
            self.cache = self.pipeline.finalize(self.params, self.cache, donate=True)
            host.append(1e3 * (time.perf_counter() - began))
        jax.block_until_ready((self.cache, video))
        total = 1e3 * (time.perf_counter() - start) / count
        return {
            "ms_per_chunk": round(total, 3),
            "frames_per_chunk": video.shape[1],
            "dispatch_ms_min": round(min(host), 3),
            "count": count,
        }

    def trace(self, name: str) -> None:
        """Device time by kernel, and the program of the denoising loop."""
        count = self.spec.get("trace")
        if not count:
            return
        self.report.add(f"kernels_{name}", kernels.of_calls(self.chunk, count))
        path = Path(self.spec["folder"]) / "diffuse.hlo.gz"
        if not path.exists():
            kernels.save_program(self._program(), path)

    def measure_pure(self) -> None:
        """The steady state without donation: every call leaves its argument usable."""
        for _ in range(methods.first_steady_chunk(self.pipeline.config)):
            self.chunk()
        self.chunk(donate=False)
        count = max(self.spec["steady_chunks"] // 3, 2)
        rows = [self.chunk(donate=False) for _ in range(count)]
        self.report.add("steady_pure", measure.spread_stages(rows))


if __name__ == "__main__":
    measure.worker(main)
