"""A live session as a replay file, which `fdjax-run --replay` makes again and compares.

What a player did is written as the controls of a run: keys and prompts, each from a
frame on. The page plays such a file, too.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

from fdjax.config import strict_json
from fdjax.run import plugins, replay
from fdjax.run.controls import Controls, read_controls
from fdjax.run.keys import read_runs
from fdjax.serve.model import Model
from fdjax.serve.timeline import Timeline

_MOST_SEEDS = 2**31
_MOST_TEXT = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """What a replay file has the page play.

    Attributes:
        prompt: To begin with.
        seed: Of the noise.
        controls: Keys and prompts by frame.
        num_chunks: How many there are.
    """

    prompt: str
    seed: int
    controls: Controls
    num_chunks: int

    def keys(self, chunk: int, before: Callable[[int], int]) -> str:
        """Keys that are held for a chunk; `before` counts the frames before one."""
        frame = max(before(chunk) - 1, 0)
        return self.controls.keys_at(frame) if before(chunk + 1) > 1 else ""

    def said(self, chunk: int, before: Callable[[int], int]) -> str | None:
        """A prompt from this chunk on."""
        return self.controls.prompt_in(before(chunk), before(chunk + 1))


def to_bytes(timeline: Timeline) -> bytes:
    """A timeline as a replay file.

    Raises:
        ValueError: It has no chunk, or one that no run can make.
    """
    model, chunks = timeline.model, timeline.chunks
    if not chunks:
        raise ValueError("There is no chunk to replay yet.")
    if timeline.is_blended:
        raise ValueError(
            "A prompt was blended in over several chunks, which no replay file can "
            "say; undo it, or save the session."
        )
    config = dataclasses.replace(
        model.runner.config,
        prompt=chunks[0].prompt,
        controls=json.dumps(_events(timeline)),
        seed=timeline.seed,
        total_blocks=len(chunks),
    )
    made = replay.of_run(config, [chunk.hash for chunk in chunks], model.weights())
    return made.text(plugins.known_classes()).encode()


def _events(timeline: Timeline) -> list[dict[str, Any]]:
    """What was held and said, as `fdjax.run.controls` reads it."""
    before = timeline.model.runner.frames_before
    events: list[dict[str, Any]] = []
    keys, prompt = None, timeline.chunks[0].prompt
    for index, chunk in enumerate(timeline.chunks):
        # What is held in a frame moves the next one: none moves the very first.
        moves = before(index + 1) > 1 and timeline.model.steering.actions
        if moves and chunk.keys != keys:
            events.append({"frame": max(before(index) - 1, 0), "keys": chunk.keys})
            keys = chunk.keys
        if chunk.prompt != prompt:
            events.append({"frame": before(index), "prompt": chunk.prompt})
            prompt = chunk.prompt
    end = before(len(timeline.chunks)) - 1
    last = max((event["frame"] for event in events), default=0)
    return [*events, {"frame": max(end, last + 1), "end": True}] if events else []


def from_bytes(data: bytes, model: Model) -> Script:
    """What a replay file has to be played.

    Args:
        data: From anyone; no path in it is followed.
        model: That it must be of.

    Raises:
        ValueError: It is no such file, or of another method: says in what.
    """
    try:
        tree = strict_json.parse(data)
        config, chunks = tree["config"], tree["chunks"]
        name, prompt = config["runner_name"], config["prompt"]
        controls, seed = config["controls"], config["seed"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("The file is no replay file.") from None
    if name != model.name:
        raise ValueError(
            f"The file is a replay of {name!r:.60}, this server runs {model.name!r}."
        )
    is_text = isinstance(prompt, str) and len(prompt) <= _MOST_TEXT
    if not (is_text and isinstance(chunks, list)):
        raise ValueError("The file is damaged: its prompt or its chunks are wrong.")
    if type(seed) is not int or not 0 <= seed < _MOST_SEEDS:
        raise ValueError(f"The file's seed must be a whole number, got {seed!r:.40}.")
    return Script(
        prompt=prompt,
        seed=seed,
        controls=_controls(controls, model.steering.actions),
        num_chunks=len(chunks),
    )


def _controls(text: Any, actions: Mapping[str, str]) -> Controls:
    if text in ("", "[]"):
        return Controls()
    if not isinstance(text, str):
        raise ValueError(f"The file's controls must be text, got {text!r:.40}.")
    if text.startswith("["):
        return read_controls(text, actions)
    # Never `read_controls`, to which this might be the name of a file.
    runs = read_runs(text, actions)
    ends = itertools.accumulate(frames for _, frames in runs)
    return Controls(held=tuple(keys for keys, _ in runs), ends=tuple(ends))
