"""What each chunk cost: milliseconds per stage, frames, device memory."""

import json
import pathlib
import time
from typing import Any

import jax

from fdjax.axes import PyTree
from fdjax.checkpoint import files

STAGES = ("encode", "diffuse", "decode", "finalize")
"""Stages of a chunk in the order of the pipeline."""

_MEMORY = {
    "mem_alloc_gib": ("bytes_in_use",),
    "mem_reserved_gib": ("pool_bytes", "bytes_reserved"),
    "mem_peak_gib": ("peak_bytes_in_use",),
}


class Profiler:
    """Measures the stages of one chunk at a time; waits for the device to do so.

    Give it to `generate` and `finalize` of a pipeline. It costs the overlap of host and
    device: without one nothing is synchronised.
    """

    def __init__(self) -> None:
        self._milliseconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def start(self) -> None:
        """Begins a chunk and forgets the one before."""
        self._milliseconds = {}
        self._since = time.perf_counter()

    def skip(self) -> None:
        """Leaves out the time since the last stage: the caller's own."""
        self._since = time.perf_counter()

    def record(self, stage: str, value: PyTree) -> None:
        """Waits for the result of `stage` and notes the time since the last one.

        Raises:
            ValueError: The stage was recorded for this chunk already.
        """
        if stage in self._milliseconds:
            raise ValueError(
                f"Stage {stage!r} was recorded twice in one chunk; call start() first."
            )
        jax.block_until_ready(value)
        now = time.perf_counter()
        self._milliseconds[stage] = 1e3 * (now - self._since)
        self._since = now

    def stats(self) -> dict[str, float]:
        """`<stage>_ms` of every stage, `total_ms` and `total_ms_wo_finalize`."""
        stats = {f"{stage}_ms": self._milliseconds.get(stage, 0.0) for stage in STAGES}
        total = sum(stats.values())
        stats["total_ms"] = total
        stats["total_ms_wo_finalize"] = total - stats["finalize_ms"]
        return stats


def memory_stats(device: jax.Device | None = None) -> dict[str, float]:
    """Device memory in GiB (2**30 bytes); empty where the backend does not report it.

    Keys are those of NVIDIA/flashdreams: `mem_alloc_gib`, `mem_reserved_gib`,
    `mem_peak_gib` (since the process started).
    """
    reported = (device or jax.local_devices()[0]).memory_stats() or {}
    stats = {}
    for name, keys in _MEMORY.items():
        for key in keys:
            if key in reported:
                stats[name] = reported[key] / 2**30
                break
    return stats


def summary(stats: list[dict[str, Any]], *, skip: int = 2) -> str:
    """One line for people: frames, and frames per second once warm.

    Args:
        stats: Per chunk; `frames` and `wall_ms` of each are read.
        skip: Chunks to leave out of the rate, since compilation falls into them: the
            first two, with their two executables. Kept where there are no others.
    """
    frames = sum(chunk["frames"] for chunk in stats)
    warm = stats[skip:]
    if not warm:
        return f"{frames} frames"
    seconds = sum(chunk["wall_ms"] for chunk in warm) / 1e3
    rate = sum(chunk["frames"] for chunk in warm) / max(seconds, 1e-9)
    return f"{frames} frames, {rate:.1f} frames/s after warm-up"


def write_stats(path: pathlib.Path, stats: list[dict[str, Any]]) -> None:
    """Writes the chunks' stats as a JSON list, one object per chunk."""
    files.write_text(path, json.dumps(stats, indent=2) + "\n")
