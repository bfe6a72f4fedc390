"""The clock of a training run, its journal, and the schedule that follows the clock."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np


class Clock:
    """Time since the run began, and whether it must stop."""

    def __init__(self, max_minutes: float):
        self._start = time.monotonic()
        self._limit = 60 * max_minutes

    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start

    def is_over(self, reserve: float = 0.0) -> bool:
        """Whether fewer than `reserve` seconds are left."""
        return self.seconds() + reserve > self._limit


class Journal:
    """Prints records, and appends them to a file of JSON lines."""

    def __init__(self, path: Path, clock: Clock):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._clock = path, clock

    def write(self, **record: Any) -> None:
        """Writes one record; arrays become numbers."""
        record = {
            key: np.asarray(value, np.float64).round(5).tolist()
            if not isinstance(value, str)
            else value
            for key, value in record.items()
        }
        record["at"] = round(self._clock.seconds(), 1)
        line = json.dumps(record)
        print(line, flush=True)
        with self._path.open("a") as file:
            file.write(line + "\n")


def learning_rate(peak: float, share: float, steps_since_start: int) -> float:
    """Returns warm-up over 150 steps, a plateau, and a linear descent from 55 % on.

    Args:
        peak: The plateau.
        share: Share of the stage's time that is spent, over all runs.
        steps_since_start: Steps since the optimiser was made anew.
    """
    warm = min(1.0, (steps_since_start + 1) / 150)
    # The descent takes the last 45 % of the time.
    fall = min(1.0, max(0.01, (1 - share) / 0.45))
    return peak * warm * fall
