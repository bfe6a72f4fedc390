"""Prompts that change in the midst of a run, each at the border of its chunk."""

import dataclasses
import logging
from collections.abc import Callable, Mapping

from fdjax.contract.conditioner import Conditions
from fdjax.run.controls import Controls
from fdjax.run.inputs import RunnerInputs

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class PromptPlan:
    """Which prompt comes into force with which chunk of a session.

    Attributes:
        script: What was asked for, by frame.
        frames_before: Video frames of the session before a chunk.
    """

    script: Controls
    frames_before: Callable[[int], int]

    def at(self, chunk: int) -> str | None:
        """The prompt that comes with a chunk; None: that of the chunk before it."""
        frames = self.frames_before(chunk), self.frames_before(chunk + 1)
        return self.script.prompt_in(*frames)

    def texts(self, first: int, num_chunks: int) -> list[str]:
        """Prompts that come with some chunks, each once; says which come too late.

        Without that of chunk 0, with which a session begins.

        Args:
            first: The first of the chunks.
            num_chunks: How many there are.
        """
        start, stop = map(self.frames_before, (max(1, first), first + num_chunks))
        again = self.script.end == "repeat"
        texts = []
        for frame, text in self.script.prompts:
            if frame >= stop:
                _log.warning(
                    "The prompt of frame %d is not reached, the video ends at %d: %s",
                    *(frame, stop, text),
                )
            elif frame >= start or again:
                texts.append(text)
        return list(dict.fromkeys(texts))


@dataclasses.dataclass(frozen=True)
class Switches:
    """The conditions that come into force in the midst of a run.

    Attributes:
        plan: None: the prompt stays.
        conditions: By prompt.
    """

    plan: PromptPlan | None = None
    conditions: Mapping[str, Conditions] = dataclasses.field(default_factory=dict)

    def at(self, chunk: int) -> Conditions | None:
        """What comes with a chunk of the session; None: nothing new.

        Of chunk 0 nothing is new: a session begins with it.
        """
        text = None if self.plan is None or not chunk else self.plan.at(chunk)
        return None if text is None else self.conditions.get(text)


def encode_prompts(
    encode: Callable[[RunnerInputs], Conditions],
    inputs: RunnerInputs,
    frames_before: Callable[[int], int],
    chunks: range,
) -> tuple[Conditions | None, Switches]:
    """What a session begins with, and what changes in the midst of it.

    Args:
        encode: Encodes a prompt and whatever else there is.
        inputs: Of the run.
        frames_before: Video frames of the session before a chunk.
        chunks: Those that the run makes, as the session counts them.

    Returns:
        The first conditions, None for a run that goes on; and the later ones.
    """

    def encode_text(text: str | None) -> Conditions:
        said = inputs.text if text is None else (text,)
        return encode(dataclasses.replace(inputs, text=said))

    plan = None
    if inputs.script is not None and inputs.script.prompts:
        plan = PromptPlan(inputs.script, frames_before)
    first = None
    if not chunks.start:
        first = encode_text(None if plan is None else plan.at(0))
    texts = [] if plan is None else plan.texts(chunks.start, len(chunks))
    return first, Switches(plan, {text: encode_text(text) for text in texts})
