"""What Prometheus reads: the text format, version 0.0.4."""

import pathlib
from typing import Any

import jax

from fdjax.serve.engine import Engine
from fdjax.serve.lobby import Lobby

_PAGE = 4096  # bytes; of Linux' /proc


def process_memory() -> int | None:
    """Bytes of memory that this process holds; None if the system does not tell."""
    try:
        pages = pathlib.Path("/proc/self/statm").read_text("ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * _PAGE


def device_memory() -> int | None:
    """Bytes in use on the first device; None if it does not tell."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_in_use")


def text(engine: Engine, lobby: Lobby) -> str:
    """All metrics."""
    outboxes = [guest.outbox for guest in (*lobby.playing, *lobby.waiting)]
    lives = [guest.live for guest in lobby.playing if guest.live is not None]
    slowest = max((live.chunk_seconds for live in lives), default=0.0)
    rows: list[tuple[str, str, str, Any]] = [
        ("ready", "gauge", "Whether sessions can begin.", int(engine.phase == "ready")),
        ("sessions", "gauge", "Sessions that are open.", len(lobby.playing)),
        ("waiting", "gauge", "Clients in the queue.", len(lobby.waiting)),
        ("sessions_total", "counter", "Sessions that began.", lobby.num_began),
        ("refused_total", "counter", "Clients sent away.", lobby.num_refused),
        ("chunks_total", "counter", "Chunks that were made.", engine.num_chunks),
        ("frames_total", "counter", "Frames that were made.", engine.num_frames),
        (
            "frames_sent",
            "gauge",
            "Frames sent to the clients that are here.",
            sum(outbox.num_sent for outbox in outboxes),
        ),
        (
            "frames_dropped",
            "gauge",
            "Frames that came too late for the clients that are here.",
            sum(outbox.num_dropped for outbox in outboxes),
        ),
        ("chunk_seconds", "gauge", "Of the slowest session, lately.", slowest),
        ("memory_bytes", "gauge", "Memory of the process.", process_memory()),
        ("device_memory_bytes", "gauge", "Memory on the device.", device_memory()),
    ]
    lines = []
    for name, kind, meaning, value in rows:
        if value is not None:
            name = f"fdjax_{name}"
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
            lines += [f"{name} {value}"]
    return "\n".join(lines) + "\n"
