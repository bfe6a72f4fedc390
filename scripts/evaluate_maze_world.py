"""Measures maze-world against its simulator, on mazes that it was not trained on.

    JAX_PLATFORMS=cpu python scripts/evaluate_maze_world.py --out outputs/evaluation

writes `evaluation.json` and contact sheets (the simulator above, maze-world below) and
prints, part by part, what is asked for, what the simulator itself reaches and what
maze-world reaches. `--only motion,memory` runs a part; the whole takes about a quarter
of an hour on two CPU cores, most of it the 500 chunks.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags

from fdjax_models.methods.maze_world.evaluation import report

_OUT = flags.DEFINE_string("out", "outputs/evaluation", "Folder for the results.")
_ONLY = flags.DEFINE_list("only", list(report.PARTS), "Parts to run.")
_WALKS = flags.DEFINE_integer("walks", 8, "Walks per part.", lower_bound=1)
_CHUNKS = flags.DEFINE_integer("chunks", 500, "Chunks of the long walks.", 32)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if unknown := sorted(set(_ONLY.value) - set(report.PARTS)):
        raise app.UsageError(
            f"--only takes {', '.join(report.PARTS)}; got {', '.join(unknown)}"
        )
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for name in _ONLY.value:
        part: Callable[..., dict[str, Any]] = report.PARTS[name]
        started = time.monotonic()
        results[name] = part(out=out, num_walks=_WALKS.value, num_chunks=_CHUNKS.value)
        results[name]["seconds"] = round(time.monotonic() - started)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    path = out / "evaluation.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"Wrote {path}.")


if __name__ == "__main__":
    if {"-h", "-help", "--help"} & set(sys.argv[1:]):
        app.usage(writeto_stdout=True, exitcode=0)  # absl's own exits with 1
    app.run(main)
