"""The autoregressive loop of a run, and the session that outlives it."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Sequence

import jax

from fdjax.axes import Params, PyTree
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.engine.programs import Programs
from fdjax.run import memory, signals, stats
from fdjax.run.devices import Devices
from fdjax.run.finite import FiniteWatch
from fdjax.run.prompts import Switches
from fdjax.run.report import RunReport
from fdjax.run.writer import ChunkWriter
from fdjax.session import store

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Session:
    """The session that a run streams; each chunk replaces its cache.

    Attributes:
        pipeline: What runs.
        cache: Ready, unless an interrupt came in the midst of a chunk.
        first: Index of the run's first chunk in the session: above 0 in a resumed one.
        switches: Prompts that change in the midst of it.
        compiling: Its programs.
    """

    pipeline: StreamInferencePipeline
    cache: PyTree
    first: int = 0
    switches: Switches = dataclasses.field(default_factory=Switches)
    compiling: Programs | None = None

    def save(self, path: pathlib.Path, params: Params, name: str) -> bool:
        """Writes it, unless an interrupt came in the midst of a chunk.

        Args:
            path: The file; see `fdjax.session.store.save_cache`.
            params: Weights.
            name: Of the method.

        Returns:
            Whether it was written; a warning tells if not.
        """
        if not self.is_whole:
            _log.warning(
                "The session is not saved: the interrupt came in the midst of a chunk."
            )
            return False
        chunks = int(jax.device_get(self.cache.autoregressive_index).max())
        with signals.held():
            store.save_cache(
                path,
                self.cache,
                pipeline=self.pipeline,
                params=params,
                notes={"config": name, "chunks": chunks},
                overwrite=True,
            )
        return True

    @property
    def is_whole(self) -> bool:
        """Whether the cache can be used again."""
        leaves = jax.tree.leaves(self.cache)
        return self.cache.final_state is None and not any(
            leaf.is_deleted() for leaf in leaves if isinstance(leaf, jax.Array)
        )


def resume(
    path: str | pathlib.Path, pipeline: StreamInferencePipeline, devices: Devices
) -> Session:
    """A session from a file that a run wrote.

    Raises:
        FileNotFoundError, ValueError: See `fdjax.session.store.load_cache`; or a chunk
            is pending, or its sessions are of different age.
    """
    # It goes to its devices when the weights are there: one may not hold it whole.
    with memory.on_host() if devices.several else contextlib.nullcontext():
        cache = store.load_cache(path, pipeline=pipeline)
    ages = sorted(set(jax.device_get(cache.autoregressive_index).tolist()))
    if len(ages) > 1 or cache.final_state is not None:
        raise ValueError(
            f"{path} cannot be extended by a run: its sessions must be ready and of "
            f"one age, they are at chunks {ages}; use fdjax.load_cache."
        )
    return Session(pipeline, cache, first=ages[0])


def stream(
    session: Session,
    params: Params,
    controls: Sequence[PyTree] | None,
    writer: ChunkWriter,
    report: RunReport,
    watch: FiniteWatch,
    *,
    keep_nonfinite: bool = False,
    keep_whole: bool = False,
) -> None:
    """Makes the chunks of a run. Nothing in it waits for the device unless asked.

    A chunk is handed over before its commit is begun: whoever watches waits for the
    video alone, and the commit runs while the next input is awaited.

    Args:
        session: Works in place on its cache.
        params: Weights.
        controls: Those of the whole session, or None.
        writer: Takes each chunk.
        report: Says how many; its stages are filled if there is a profiler.
        watch: Is told of each stage; its profiler measures.
        keep_nonfinite: Go on after a chunk that is not finite.
        keep_whole: Let no interrupt come between a chunk and its commit.
    """
    pipeline, profiler = session.pipeline, watch.profiler
    measured = profiler if isinstance(profiler, stats.Profiler) else None
    for index in range(report.num_chunks):
        control = None if controls is None else controls[session.first + index]
        conditions = session.switches.at(session.first + index)
        with signals.held() if keep_whole else contextlib.nullcontext():
            if conditions is not None:
                session.cache = pipeline.update_conditions(
                    params, session.cache, conditions, donate=True
                )
            if measured is not None:
                measured.start()
            cache, output = pipeline.generate(
                params, session.cache, control, donate=True, profiler=watch
            )
            chunk = watch.end_chunk(index)
            writer.write(output, None if keep_nonfinite else chunk.is_good)
            if index == 0:
                report.dispatched()
            if measured is not None:
                measured.skip()
            session.cache = cache
            if index == 0 and session.compiling is not None:
                session.compiling.wait()
            session.cache = pipeline.finalize(
                params, cache, donate=True, profiler=watch
            )
        # Not before the commit was begun: the device works while the host waits.
        writer.wait()
        if measured is not None:
            report.stages.append(measured.stats())
        watch.look()
        if watch.bad and not keep_nonfinite:
            return
