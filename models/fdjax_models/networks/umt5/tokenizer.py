"""From prompts to padded token ids, as the Wan models were trained to read them."""

import dataclasses
import html
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fdjax.checkpoint import address, fetch

_NAME = "tokenizer.json"
_PAD = "<pad>"
_END = "</s>"
_FIRST_BYTE_ID = 4  # after <pad> </s> <s> <unk>


class TokenizedPrompts(NamedTuple):
    """A padded batch of prompts.

    Attributes:
        token_ids: Ids, the end mark after the last token, then padding.  int32[B, P].
        lengths: Number of tokens of each prompt, the end mark included.  int32[B].
    """

    token_ids: np.ndarray
    lengths: np.ndarray


def clean_prompt(text: str) -> str:
    """The prompt as the tokenizer should see it.

    Repairs mis-decoded text (ftfy, which also straightens curly quotes and turns
    full-width punctuation into ASCII), undoes HTML escapes twice, makes every run of
    white space one space and strips the ends; `prompt_clean` of diffusers'
    pipeline_wan.py and `basic_clean` of Wan 2.1's wan/modules/tokenizers.py.
    """
    import ftfy

    # Twice, so that `&amp;amp;` becomes `&`.
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def load_tokenizer(path: str | pathlib.Path) -> Callable[[str], list[int]]:
    """Reads a `tokenizer.json`.

    Args:
        path: The file, the folder it is in, or an address such as
            `hf://owner/repo/…/tokenizer.json`: see `fdjax.checkpoint.address`.

    Returns:
        A function from a cleaned prompt to its token ids, the end mark included.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, or is not a tokenizer of the T5 family.
    """
    import tokenizers

    local = address.local_path(path)
    if local is None:
        file = fetch.fetch_file(_in_folder(os.fspath(path)), what="tokenizer")
    else:
        file = local / _NAME if os.path.isdir(local) else local
        if not os.path.isfile(file):
            raise FileNotFoundError(_missing(file))
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exceptions
        raise ValueError(f"{file} is not a readable tokenizer.json: {error}") from error
    end = tokenizer.token_to_id(_END)
    if end is None or tokenizer.token_to_id(_PAD) != 0:
        raise ValueError(
            f"{file} must hold a T5 tokenizer, with {_PAD} as id 0 and an end mark "
            f"{_END}; it has {tokenizer.token_to_id(_PAD)} and {end}."
        )
    # The file may ask for a truncation of its own, which would hide the true length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: [*tokenizer.encode(text, add_special_tokens=False).ids, end]


def _in_folder(source: str) -> str:
    """The address of the file, given a remote folder's."""
    named = address.parse(source)
    if (
        not isinstance(named, address.HubAddress)
        or "." in pathlib.Path(named.path).name
    ):
        return source
    return dataclasses.replace(named, path=f"{named.path}/{_NAME}".lstrip("/")).text


def _missing(file: pathlib.Path) -> str:
    remedy = (
        "It is in the sub-folder `tokenizer` of Wan-AI/Wan2.1-T2V-1.3B-Diffusers and "
        "in google/umt5-xxl of the official Wan-AI repositories on Hugging Face."
    )
    sentencepiece = file.with_name("spiece.model")
    if sentencepiece.is_file():
        return (
            f"{sentencepiece} is a sentencepiece model; fdjax reads tokenizer.json, "
            f'which is not beside it. {remedy} Or convert it: python -c "from '
            "transformers import AutoTokenizer as A; "
            f"A.from_pretrained('{file.parent}').save_pretrained('{file.parent}')\""
        )
    return f"There is no tokenizer at {file}. {remedy}"


def byte_tokenizer(vocab_size: int) -> Callable[[str], list[int]]:
    """UTF-8 bytes in place of a vocabulary, for weights that never saw one.

    Args:
        vocab_size: Ids wrap around below it.

    Returns:
        A function from a prompt to token ids in [0, vocab_size), end mark included.
    """
    room = vocab_size - _FIRST_BYTE_ID
    if room < 1:
        raise ValueError(f"vocab_size must exceed {_FIRST_BYTE_ID}, got {vocab_size}.")
    # Id 1 is the end mark, as in T5's vocabulary.
    return lambda text: [_FIRST_BYTE_ID + b % room for b in text.encode()] + [1]


def tokenize_prompts(
    texts: Sequence[str], *, to_ids: Callable[[str], list[int]], max_length: int
) -> TokenizedPrompts:
    """Cleans, tokenizes, truncates and pads.

    A prompt that is too long keeps its first `max_length - 1` tokens and the end mark;
    a warning names the number of tokens and where the text was cut.

    Args:
        texts: One prompt per batch element; may be empty strings.
        to_ids: From `load_tokenizer` or `byte_tokenizer`.
        max_length: P.

    Raises:
        ValueError: `texts` is empty, is itself a string, or holds something else.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"text must be a sequence of strings, got {texts!r}.")
    if not texts:
        raise ValueError("text must hold at least one prompt, got none.")
    # [B, P]; zero is padding: `load_tokenizer` refuses a file where it is not.
    token_ids = np.zeros((len(texts), max_length), np.int32)
    lengths = np.zeros(len(texts), np.int32)
    for row, text in enumerate(texts):
        ids = to_ids(clean_prompt(text))
        if len(ids) > max_length:
            warnings.warn(
                f"The prompt {text[:40]!r}… has {len(ids)} tokens; the text encoder "
                f"reads {max_length}, so the last {len(ids) - max_length} are ignored.",
                stacklevel=2,
            )
            # The end mark stays, as in transformers' truncation.
            ids = [*ids[: max_length - 1], ids[-1]]
        token_ids[row, : len(ids)] = ids
        lengths[row] = len(ids)
    return TokenizedPrompts(token_ids, lengths)
