"""The prompt language of maze-world: four attributes, a few words each.

Prompts are closed-vocabulary: a word is either understood or ignored with a warning
that lists what is understood. The words of one prompt are sorted into four slots
(colour, material, light, air), so that their order does not matter.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np

_log = logging.getLogger(__name__)

_AnyArray = TypeVar("_AnyArray", np.ndarray, jax.Array)

SLOTS: Mapping[str, tuple[str, ...]] = {
    "colour": ("red", "yellow", "green", "blue", "purple", "white"),
    "material": ("brick", "stone", "wood", "hedge", "metal"),
    "light": ("day", "dusk", "night"),
    "air": ("clear", "foggy"),
}
"""Words of each slot; the simulator's style indices count along these tuples."""

ALIASES: Mapping[str, str] = {
    "bricks": "brick",
    "stones": "stone",
    "rock": "stone",
    "wooden": "wood",
    "planks": "wood",
    "hedges": "hedge",
    "bush": "hedge",
    "leaves": "hedge",
    "steel": "metal",
    "iron": "metal",
    "violet": "purple",
    "daylight": "day",
    "noon": "day",
    "sunny": "day",
    "sunset": "dusk",
    "evening": "dusk",
    "dark": "night",
    "midnight": "night",
    "fog": "foggy",
    "mist": "foggy",
    "misty": "foggy",
}
"""Other words with the meaning of one of `SLOTS`."""

FILLERS = frozenset(
    (
        *("a", "an", "the", "in", "at", "of", "on", "and", "with"),
        *("maze", "labyrinth", "world", "wall", "walls", "corridor", "corridors"),
        *("light", "air", "weather", "time", "sky"),
    )
)
"""Words that carry no meaning here and are passed over without a warning."""

NUM_SLOTS = len(SLOTS)
VOCABULARY_SIZE = sum(len(words) + 1 for words in SLOTS.values())
"""One id per word, and one per slot for "not said"."""


def _ids() -> tuple[dict[str, tuple[int, int]], tuple[int, ...]]:
    """Returns {word: (slot, id)} and the "not said" id of each slot."""
    words: dict[str, tuple[int, int]] = {}
    unsaid = []
    next_id = 0
    for slot, names in enumerate(SLOTS.values()):
        # A slot's ids: not said, then its words in order.
        unsaid.append(next_id)
        for offset, name in enumerate(names, start=1):
            words[name] = (slot, next_id + offset)
        next_id += len(names) + 1
    return words, tuple(unsaid)


_WORDS, UNSAID_IDS = _ids()


def describe_vocabulary() -> str:
    """Returns one line that lists every slot with its words."""
    return "; ".join(f"{slot}: {', '.join(words)}" for slot, words in SLOTS.items())


def tokenize_prompt(prompt: str) -> np.ndarray:
    """Returns the token of each slot for one prompt.

    A slot that the prompt does not mention gets its "not said" token. If two words of
    one slot are given, the first counts. Words that are not understood are logged as a
    warning that lists those that are.

    Args:
        prompt: Free text, for example "red brick maze at dusk".

    Returns:
        Token ids.  int32[P], P = `NUM_SLOTS`.
    """
    tokens = np.array(UNSAID_IDS, np.int32)
    ignored = []
    for word in re.findall(r"[^\W\d_]+", prompt.lower()):
        word = ALIASES.get(word, word)
        if word in FILLERS:
            continue
        slot, token = _WORDS.get(word, (-1, -1))
        # The same word twice is no conflict; another word of its slot is ignored.
        if slot < 0 or tokens[slot] not in (UNSAID_IDS[slot], token):
            ignored.append(word)
        else:
            tokens[slot] = token
    if ignored:
        _log.warning(
            "prompt %r: ignored %s; maze-world understands one word of each of %s.",
            prompt,
            ", ".join(map(repr, ignored)),
            describe_vocabulary(),
        )
    return tokens


def tokens_of_style(style: _AnyArray) -> _AnyArray:
    """Returns the tokens that name a style in full.

    Args:
        style: Index of the word in each slot.  int[..., P].

    Returns:
        Token ids.  int32[..., P]; works on numpy and JAX arrays alike.
    """
    # Behind each slot's "not said".
    return style + np.array(UNSAID_IDS, np.int32) + 1


def prompt_of_style(style: Sequence[int]) -> str:
    """Returns a prompt that names a style, for example "red brick maze at dusk"."""
    colour, material, light, air = (
        words[int(index)] for words, index in zip(SLOTS.values(), style, strict=True)
    )
    return f"{air} {colour} {material} maze at {light}".removeprefix("clear ")
