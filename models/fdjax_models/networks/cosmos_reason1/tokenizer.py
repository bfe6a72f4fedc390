"""From prompts to the chat that Cosmos-Reason1 reads, as token ids."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from fdjax_models.networks import prompts

_START, _END, _PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
_SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."


class Tokenizer(NamedTuple):
    """How prompts become ids.

    Attributes:
        to_ids: From a prompt to the ids of the chat around it.
        pad_id: What follows.
    """

    to_ids: Callable[[str], list[int]]
    pad_id: int


def chat(prompt: str) -> str:
    """The conversation that holds a prompt, in the ChatML form of Qwen2.5-VL.

    The system's line is that of NVIDIA/flashdreams,
    infra/encoder/text/cosmos_reason1.py; the assistant's turn is not begun. The prompt
    is taken as it is: nothing is cleaned, and marks in it count as marks.
    """
    turns = ("system", _SYSTEM), ("user", prompt)
    return "".join(f"{_START}{role}\n{text}{_END}\n" for role, text in turns)


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """Reads the `tokenizer.json` of a Qwen2.5 model.

    Args:
        path: The file, its folder or an address; see `prompts.read_tokenizer`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or has no marks of a chat.
    """
    file, tokenizer = prompts.read_tokenizer(path, missing=_missing)
    marks = (_START, _END, _PAD)
    absent = [mark for mark in marks if tokenizer.token_to_id(mark) is None]
    pad_id = tokenizer.token_to_id(_PAD)
    if absent or pad_id is None:
        raise ValueError(
            f"{file} must hold a tokenizer of Qwen2.5, which marks turns and padding "
            f"by {', '.join(marks)}; it lacks {', '.join(absent)}."
        )

    def to_ids(prompt: str) -> list[int]:
        return tokenizer.encode(chat(prompt), add_special_tokens=False).ids

    return Tokenizer(to_ids, pad_id)


def _missing(file: pathlib.Path) -> str:
    return (
        f"There is no tokenizer at {file}. It is tokenizer.json of "
        "nvidia/Cosmos-Reason1-7B on Hugging Face."
    )


def byte_tokenizer(vocab_size: int) -> Tokenizer:
    """UTF-8 bytes in place of a vocabulary, for weights that never saw one.

    Args:
        vocab_size: Ids wrap around below it; the first is padding.

    Raises:
        ValueError: There is no room for two ids.
    """
    if vocab_size < 2:
        raise ValueError(f"vocab_size must be at least 2, got {vocab_size}.")
    room = vocab_size - 1

    def to_ids(prompt: str) -> list[int]:
        return [1 + byte % room for byte in chat(prompt).encode()]

    return Tokenizer(to_ids, 0)
