"""Prompt cleaning, tokenization, padding, truncation and their errors."""

import hashlib

import numpy as np
import pytest

from fdjax_models.networks import prompts
from fdjax_models.networks.umt5 import tokenizer as lib
from tests.networks.umt5 import tiny


@pytest.fixture
def file(tmp_path):
    tiny.tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def _tokenize(texts, path, max_length=8):
    to_ids = lib.load_tokenizer(path)
    return lib.tokenize_prompts(texts, to_ids=to_ids, max_length=max_length)


def test_clean_prompt():
    raw = "  a &amp;amp; b\n\tc ﬁ “x” …"
    assert lib.clean_prompt(raw) == 'a & b c fi "x" …'


def test_clean_prompt_changes_full_width_commas():
    negative = (
        "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，"
        "最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，"
        "画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
        "杂乱的背景，三条腿，背景人很多，倒着走"
    )
    raw = hashlib.sha256(negative.encode()).hexdigest()
    assert raw.startswith("ce96e0324e4b54ce4b6e867f669ca520")
    clean = hashlib.sha256(lib.clean_prompt(negative).encode()).hexdigest()
    assert clean == "42811917cca5c2c7e47e55003083c67a4f9122f03b95a1cfe8a4001ea6a2e5d3"


def test_pads_and_marks_the_end(file):
    ids, lengths = _tokenize(["a cat", "", "red   sea"], file)
    word = {name: 4 + i for i, name in enumerate(tiny.WORDS)}
    a, cat, red, sea = (word[w] for w in ("▁a", "▁cat", "▁red", "▁sea"))
    expected = [[a, cat, 1], [1], [red, sea, 1]]
    np.testing.assert_array_equal(lengths, [3, 1, 3])
    for row, want in zip(ids, expected, strict=True):
        np.testing.assert_array_equal(row, want + [0] * (8 - len(want)))
    assert ids.dtype == lengths.dtype == np.int32


def test_folder_is_as_good_as_file(file):
    for one, other in zip(
        _tokenize(["a cat"], file), _tokenize(["a cat"], file.parent), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_file_on_the_hub(file, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(file))
    assert lib.load_tokenizer("hf://owner/repo/tokenizer.json")("a cat") == [4, 5, 1]


def test_long_prompt_is_cut_with_a_warning(file):
    with pytest.warns(UserWarning, match="has 11 tokens; .* reads 8, so the last 3"):
        ids, lengths = _tokenize(["a cat " * 5], file)
    assert lengths[0] == 8
    assert ids[0, -1] == 1
    np.testing.assert_array_equal(ids[0, :7], [4, 5] * 3 + [4])


def test_prompt_that_just_fits(file):
    _, lengths = _tokenize(["cat " * 7], file)
    assert lengths[0] == 8


@pytest.mark.parametrize("text", ["a cat", [b"a"], [None], []])
def test_refuses_what_is_no_list_of_prompts(file, text):
    with pytest.raises(ValueError, match="text must"):
        _tokenize(text, file)


def test_missing_file_names_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json.*Wan-AI/Wan2\.1"):
        lib.load_tokenizer(tmp_path)


def test_sentencepiece_only_names_the_remedy(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"spiece\.model.*save_pretrained"):
        lib.load_tokenizer(tmp_path)


def test_damaged_file_is_named(file):
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a readable"):
        lib.load_tokenizer(file)


def test_other_family_is_refused(tmp_path):
    import tokenizers

    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0}, "[PAD]"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="must hold a T5 tokenizer"):
        lib.load_tokenizer(tmp_path)


def test_bytes_stay_inside_the_vocabulary():
    ids = lib.byte_tokenizer(16)("aé\U0001f600")
    assert len(ids) == 1 + 2 + 4 + 1
    assert ids[-1] == 1
    assert all(4 <= i < 16 for i in ids[:-1])
    assert lib.byte_tokenizer(300)("a") == [4 + ord("a"), 1]
    with pytest.raises(ValueError, match="must exceed 4, got 4"):
        lib.byte_tokenizer(4)


@pytest.mark.parametrize("revision", [None, "v1", "refs/pr/3"])
def test_a_folder_of_the_hub_is_its_tokenizer(monkeypatch, revision):
    asked = []
    monkeypatch.setattr(
        prompts.fetch, "fetch_file", lambda source, what: asked.append(source)
    )
    start = "hf://owner/repo" + (f"@{revision}" if revision else "")
    for path in ("/tokenizer", "", "/tokenizer/tokenizer.json"):
        with pytest.raises(ValueError, match="readable"):
            lib.load_tokenizer(start + path)
    quoted = start.replace("refs/pr/3", "refs%2Fpr%2F3")
    assert asked == [
        f"{quoted}/tokenizer/tokenizer.json",
        f"{quoted}/tokenizer.json",
        f"{start}/tokenizer/tokenizer.json",
    ]
