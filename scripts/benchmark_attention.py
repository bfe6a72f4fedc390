"""Times every attention back end of this machine over the shapes of the methods.

    python scripts/benchmark_attention.py --output_dir outputs/benchmark_attention

Each line: milliseconds (median), TFLOP/s of the two products over the valid keys, and
the error against float32 relative to the largest output.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT)]

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "outputs/benchmark_attention", "Where attention.json goes."
)
_REPEATS = flags.DEFINE_integer("repeats", 20, "Timed calls.", lower_bound=3)
_SCALE = flags.DEFINE_integer(
    "divide", 1, "Divide queries and keys by this, to try the script.", lower_bound=1
)
_BACKENDS = flags.DEFINE_list("backends", [], "Back ends to time; empty: all.")

SHAPES = {
    # name: queries, slots, valid keys, heads, width of a head
    "Wan 1.3B, full window": (4680, 32768, 32760, 12, 128),
    "Wan 1.3B, half full": (4680, 32768, 18720, 12, 128),
    "Wan 1.3B, one chunk": (4680, 32768, 4680, 12, 128),
    "Wan 1.3B, text": (4680, 512, 512, 12, 128),
    "Wan 14B, 81 frames": (32760, 32760, 32760, 40, 128),
    "LingBot 14B, window 15, sink 3": (4524, 27144, 27144, 40, 128),
    "OmniDreams 2B, window 6": (3520, 21120, 21120, 16, 128),
}
"""From the published configs at 480x832, LingBot 464x832, OmniDreams 704x1280."""


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    import jax

    from fdjax.attention import BACKENDS

    names = _BACKENDS.value or list(BACKENDS)
    if unknown := set(names) - set(BACKENDS):
        raise app.UsageError(f"--backends: unknown {sorted(unknown)}")
    rows = []
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for title, shape in SHAPES.items():
        queries, slots, valid, heads, width = shape
        smaller = [max(n // _SCALE.value, 1) for n in (queries, slots, valid)]
        for backend in names:
            row = {"shape": title, "backend": backend}
            row |= measure(backend, *smaller, heads, width)
            rows.append(row)
            print(json.dumps(row), flush=True)
    folder = Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attention.json").write_text(json.dumps(rows, indent=2) + "\n")
    print(render(rows))


def measure(
    backend: str, queries: int, slots: int, valid: int, heads: int, width: int
) -> dict[str, Any]:
    """One back end at one shape, or why it cannot."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fdjax.attention import attend

    shapes = [(1, n, heads, width) for n in (queries, slots, slots)]
    arrays = [
        jax.random.normal(key, shape, jnp.bfloat16)
        for key, shape in zip(
            jax.random.split(jax.random.key(0), 3), shapes, strict=True
        )
    ]
    length = jnp.array([valid])

    @jax.jit
    def call(query: Any, key: Any, value: Any, length: Any) -> Any:
        return attend(query, key, value, length=length, backend=backend, nonempty=True)

    try:
        out = jax.block_until_ready(call(*arrays, length))
    except ValueError as error:
        return {"reason": str(error)}
    # [B, L, N, D]: some queries of every head, in float32
    query, *rest = (x.astype(jnp.float32) for x in arrays)
    picked = slice(None, None, max(queries // 64, 1))
    with jax.default_matmul_precision("highest"):
        expected = attend(query[:, picked], *rest, length=length, backend="xla")
    error = jnp.abs(out[:, picked].astype(jnp.float32) - expected).max()
    times = []
    for _ in range(_REPEATS.value):
        start = time.perf_counter()
        for _ in range(5):
            out = call(*arrays, length)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - start) / 5)
    seconds = float(np.median(times))
    return {
        "ms": round(1e3 * seconds, 4),
        "tflops": round(4 * queries * valid * heads * width / seconds / 1e12, 1),
        "error": float(f"{float(error / jnp.abs(expected).max()):.2e}"),
    }


def render(rows: list[dict[str, Any]]) -> str:
    """The table for the docs."""
    lines = ["| shape | back end | ms | TFLOP/s | error |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [row.get(name, "") for name in ("ms", "tflops", "error")]
        if "reason" in row:
            cells[-1] = row["reason"]
        names = [row["shape"], row["backend"]]
        lines.append("| " + " | ".join(str(cell) for cell in names + cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if {"-h", "-help", "--help"} & set(sys.argv[1:]):
        app.usage(writeto_stdout=True, exitcode=0)  # absl's own exits with 1
    app.run(main)
