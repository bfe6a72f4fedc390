"""What text encoders share: tokenizer files, and prompts as padded token ids."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fdjax.checkpoint import address, fetch

if TYPE_CHECKING:
    import tokenizers

_NAME = "tokenizer.json"


class TokenizedPrompts(NamedTuple):
    """A padded batch of prompts.

    Attributes:
        token_ids: Ids of each prompt, then padding.  int32[B, P].
        lengths: Number of tokens of each prompt, end marks included.  int32[B].
    """

    token_ids: np.ndarray
    lengths: np.ndarray


def read_tokenizer(
    path: str | pathlib.Path, *, missing: Callable[[pathlib.Path], str]
) -> tuple[pathlib.Path, "tokenizers.Tokenizer"]:
    """Reads a `tokenizer.json`; what it says of truncation and padding is left out.

    Args:
        path: The file, the folder it is in, or an address such as
            `hf://owner/repo/…/tokenizer.json`: see `fdjax.checkpoint.address`.
        missing: Says of a local file that is not there where to get it.

    Returns:
        The file on this machine, and the tokenizer.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
    """
    import tokenizers

    local = address.local_path(path)
    if local is None:
        file = fetch.fetch_file(_in_folder(os.fspath(path)), what="tokenizer")
    else:
        file = local / _NAME if os.path.isdir(local) else local
        if not os.path.isfile(file):
            raise FileNotFoundError(missing(file))
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises bare Exceptions
        raise ValueError(f"{file} is not a readable tokenizer.json: {error}") from error
    # The file may ask for a truncation of its own, which would hide the true length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return file, tokenizer


def _in_folder(source: str) -> str:
    """The address of the file, given a remote folder's."""
    named = address.parse(source)
    if (
        not isinstance(named, address.HubAddress)
        or "." in pathlib.Path(named.path).name
    ):
        return source
    return dataclasses.replace(named, path=f"{named.path}/{_NAME}".lstrip("/")).text


def pad_prompts(
    texts: Sequence[str],
    *,
    to_ids: Callable[[str], list[int]],
    max_length: int,
    pad_id: int,
    keep_end: bool,
) -> TokenizedPrompts:
    """Tokenizes, truncates and pads.

    Of a prompt that is too long, a warning names the number of tokens and how many are
    left out.

    Args:
        texts: One prompt per batch element; may be empty strings.
        to_ids: From a prompt to its token ids.
        max_length: P.
        pad_id: What follows the last token.
        keep_end: Whether a prompt that is too long keeps its last token, an end mark,
            and loses the ones before it.

    Raises:
        ValueError: `texts` is empty, is itself a string, or holds something else.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"text must be a sequence of strings, got {texts!r}.")
    if not texts:
        raise ValueError("text must hold at least one prompt, got none.")
    # [B, P]
    token_ids = np.full((len(texts), max_length), pad_id, np.int32)
    lengths = np.zeros(len(texts), np.int32)
    for row, text in enumerate(texts):
        ids = to_ids(text)
        if len(ids) > max_length:
            warnings.warn(
                f"The prompt {text[:40]!r}… has {len(ids)} tokens; the text encoder "
                f"reads {max_length}, so the last {len(ids) - max_length} are ignored.",
                stacklevel=3,
            )
            kept = max_length - keep_end
            ids = [*ids[:kept], *ids[len(ids) - keep_end :]]
        token_ids[row, : len(ids)] = ids
        lengths[row] = len(ids)
    return TokenizedPrompts(token_ids, lengths)


def check_vocabulary(
    tokens: TokenizedPrompts, vocab_size: int, source: str | None
) -> None:
    """Raises a `ValueError` if the tokenizer is of another model than the encoder.

    Args:
        tokens: From `pad_prompts`.
        vocab_size: Rows of the encoder's embedding.
        source: Where the tokenizer is from.
    """
    if (highest := int(tokens.token_ids.max())) >= vocab_size:
        raise ValueError(
            f"{source} gives token id {highest}; the encoder's vocabulary has "
            f"{vocab_size} rows. They belong to different models."
        )
