"""Trains maze-world on its simulator: autoencoder, base model, few-step model.

    python scripts/train_maze_world.py --out outputs/maze --max_minutes 9
    python scripts/train_maze_world.py --out outputs/maze2 --resume outputs/maze \
        --max_minutes 9

A run uses all GPUs of the host, and leaves weights, `progress.json`, `journal.jsonl`
and a contact sheet for each finished stage in `--out`. `--export` then writes the
few-step model as it ships:

    python scripts/train_maze_world.py --resume outputs/maze2 \
        --export models/fdjax_models/maze_world/weights
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import app, flags

_OUT = flags.DEFINE_string("out", None, "Folder to write to.")
_RESUME = flags.DEFINE_string("resume", None, "Folder of an earlier run to carry on.")
_EXPORT = flags.DEFINE_string("export", None, "Write shippable weights here and stop.")
_MAX_MINUTES = flags.DEFINE_float(
    "max_minutes", 60.0, "Stop after this time, compilation included.", lower_bound=0
)
_SETTINGS = flags.DEFINE_string(
    "settings", "{}", "JSON object with fields of training.settings.Settings to change."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    resume = Path(_RESUME.value) if _RESUME.value else None
    if _EXPORT.value:
        if resume is None:
            raise app.UsageError("--export needs --resume, the folder of a run")
        export(resume, Path(_EXPORT.value))
        return
    if not _OUT.value:
        raise app.UsageError("--out is needed")

    from fdjax_models.methods.maze_world.training import loop
    from fdjax_models.methods.maze_world.training.settings import Settings

    changes = parse_settings(_SETTINGS.value)
    known = {field.name for field in dataclasses.fields(Settings)}
    if unknown := sorted(set(changes) - known):
        raise app.UsageError(
            f"--settings takes {', '.join(sorted(known))}; got {', '.join(unknown)}"
        )
    changes["network"] = tuple(changes.get("network", {}).items())
    settings = Settings(**changes)
    loop.train(settings, Path(_OUT.value), resume, _MAX_MINUTES.value)


def parse_settings(value: str) -> dict[str, Any]:
    try:
        changes = json.loads(value)
    except json.JSONDecodeError as error:
        raise app.UsageError(f"--settings must be JSON: {error}") from None
    if not isinstance(changes, dict):
        raise app.UsageError(f"--settings must be a JSON object, got {value}")
    return changes


def export(folder: Path, target: Path) -> None:
    from fdjax_models.methods.maze_world.training import state

    params = state.load(folder, "codec") | state.load(folder, "few_step")
    size = state.export(target, params)
    print(f"wrote {size / 1e6:.2f} MB to {target}")


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    if {"-h", "-help", "--help"} & set(sys.argv[1:]):
        app.usage(writeto_stdout=True, exitcode=0)  # absl's own exits with 1
    app.run(main)
