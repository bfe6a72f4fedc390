"""From prompts to padded token ids, as the Wan models were trained to read them."""

import html
import pathlib
import re
from collections.abc import Callable, Sequence

from fdjax_models.networks import prompts
from fdjax_models.networks.prompts import TokenizedPrompts

_PAD = "<pad>"
_END = "</s>"
_FIRST_BYTE_ID = 4  # after <pad> </s> <s> <unk>


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
    file, tokenizer = prompts.read_tokenizer(path, missing=_missing)
    end = tokenizer.token_to_id(_END)
    if end is None or tokenizer.token_to_id(_PAD) != 0:
        raise ValueError(
            f"{file} must hold a T5 tokenizer, with {_PAD} as id 0 and an end mark "
            f"{_END}; it has {tokenizer.token_to_id(_PAD)} and {end}."
        )
    return lambda text: [*tokenizer.encode(text, add_special_tokens=False).ids, end]


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
    return prompts.pad_prompts(
        texts,
        to_ids=lambda text: to_ids(clean_prompt(text)),
        max_length=max_length,
        # Zero is padding: `load_tokenizer` refuses a file where it is not.
        pad_id=0,
        keep_end=True,  # as in transformers' truncation
    )
