"""What the workers share: their spec, clocks, statistics and the result file."""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_COMPILE_EVENTS = {
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower_s",
    "/jax/core/compile/backend_compile_duration": "compile_s",
}


class Report:
    """The results of one worker: printed as they come, and written at once.

    A worker that is stopped at its time limit leaves what it had measured.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}

    def add(self, name: str, value: Any) -> None:
        """Prints one result and writes all of them."""
        self.values[name] = value
        self._show(name, value)

    def append(self, name: str, row: Any) -> None:
        """Adds one row to a list of results."""
        self.values.setdefault(name, []).append(row)
        self._show(name, row)

    def _show(self, name: str, value: Any) -> None:
        self.path.write_text(json.dumps(self.values, indent=2) + "\n")
        print(f"[{self.path.stem}] {name}: {json.dumps(value)}", flush=True)


class Startup:
    """Seconds since the process was asked for, and between named marks."""

    def __init__(self, spawned: float) -> None:
        self._spawned = self._last = spawned
        self.seconds: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Ends the phase `name`, which began at the mark before."""
        now = time.time()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now

    def total(self) -> float:
        """Seconds from the start of the process to the last mark."""
        return round(self._last - self._spawned, 3)


class CompileClock:
    """Seconds that jax has spent lowering and compiling since it was made."""

    def __init__(self) -> None:
        import jax

        self._seconds = dict.fromkeys(_COMPILE_EVENTS.values(), 0.0)
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, name: str, seconds: float, **_: Any) -> None:
        if name in _COMPILE_EVENTS:
            self._seconds[_COMPILE_EVENTS[name]] += seconds

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap."""
        seconds = {name: round(value, 3) for name, value in self._seconds.items()}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return seconds


def worker(body: Callable[[dict[str, Any], Report], None]) -> None:
    """Runs a worker: `python -m benchmarking.NAME SPEC RESULT`, both JSON files."""
    spec_path, result_path = map(Path, sys.argv[1:])
    report = Report(result_path)
    body(json.loads(spec_path.read_text()), report)
    report.add("finished", True)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 90th percentile (nearest rank), minimum and number of the values."""
    if not values:
        return {}
    ordered = sorted(values)
    rank = max(math.ceil(0.9 * len(ordered)) - 1, 0)
    return {
        "median": round(statistics.median(ordered), 3),
        "p90": round(ordered[rank], 3),
        "min": round(ordered[0], 3),
        "count": len(ordered),
    }


def spread_stages(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """`spread` of every millisecond column of per-chunk rows."""
    names = [name for name in (rows[0] if rows else {}) if name.endswith("_ms")]
    return {name: spread([row[name] for row in rows]) for name in names}
