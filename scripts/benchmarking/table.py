"""The results of a benchmark as text."""

from collections.abc import Sequence
from typing import Any

_SESSION_COLUMNS = (
    *("raw_ms", "equal_ms", "different_ms", "half_ms", "to_host_ms"),
    *("begin_ms", "join_ms"),
)
_STAGES = ("encode_ms", "diffuse_ms", "decode_ms", "finalize_ms", "total_ms")


def render(results: dict[str, Any]) -> str:
    """Environment, timings, ratios to the reference and errors."""
    lines = [
        "",
        f"command: {results['command']}",
        *(f"{key}: {value}" for key, value in results["environment"].items()),
        f"spec: {results['spec']}",
        "",
        *_cold("cold start", results.get("rollout", {})),
        *_cold("with a compilation cache", results.get("cached_start", {})),
        *_steady(results),
        *_sessions(results.get("sessions", {}).get("sessions", [])),
        *_errors(results.get("errors", [])),
    ]
    return "\n".join(lines)


def _cold(label: str, part: dict[str, Any]) -> list[str]:
    phases = part.get("cold_start", {})
    text = ", ".join(f"{key} {value}" for key, value in phases.items())
    return [f"{label}, process to first chunk: {text}"] if phases else []


def _steady(results: dict[str, Any]) -> list[str]:
    rollout = results.get("rollout", {})
    rows = {
        f"fdjax {name.removeprefix('steady_')}": stages
        for name, stages in rollout.items()
        if name.startswith("steady_")
    }
    for name in ("reference_eager", "reference_compiled"):
        if steady := results.get(name, {}).get("steady"):
            rows[name] = steady
    if not rows:
        return []
    lines = [_row("steady state, median (p90) ms", _STAGES)]
    for name, stages in rows.items():
        lines.append(_row(name, [_cell(stages.get(stage)) for stage in _STAGES]))
    first, *others = rows
    ours = rows[first]
    for name in others:
        stages = rows[name]
        if name.startswith("reference") and first.startswith("fdjax"):
            ratios = [_ratio(stages.get(stage), ours.get(stage)) for stage in _STAGES]
            lines.append(_row(f"{name} / fdjax", ratios))
    lines += [
        f"{name}: {value}"
        for name, value in rollout.items()
        if name.startswith(
            ("unsynchronised", "to_video", "compilations", "memory", "sent")
        )
    ]
    return lines


def _sessions(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of batches of sessions."""
    if not rows:
        return []
    last = ("frames_per_s_each", "frames_per_s", "compilations")
    cells = [
        [
            row["count"],
            *(_cell(row.get(name)) for name in _SESSION_COLUMNS),
            *(row[name] for name in last),
        ]
        for row in rows
    ]
    names = [name.removesuffix("_ms") for name in _SESSION_COLUMNS]
    head = ["sessions", *names, "frames/s each", "in all", "compiled"]
    rule = ["---"] * len(head)
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in [head, rule, *cells]]
    return ["", "chunks of batched sessions, median (p90) ms", *lines]


def _row(label: str, cells: Sequence[str]) -> str:
    return f"{label:32}" + "".join(f"{cell:>20}" for cell in cells)


def _cell(values: dict[str, float] | None) -> str:
    return f"{values['median']:.1f} ({values['p90']:.1f})" if values else "-"


def _ratio(theirs: dict[str, float] | None, ours: dict[str, float] | None) -> str:
    if not theirs or not ours or ours["median"] < 1:  # ms: nothing ran
        return "-"
    return f"{theirs['median'] / ours['median']:.2f} x"


def _errors(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{row['pair']:48} {row['kind']:7} chunk {row['chunk']:2d}: cosine "
        f"{row['cosine']:.6f}, relative error {row['relative_error']:.2e}"
        for row in rows
    ]
    return ["", *lines] if lines else []
