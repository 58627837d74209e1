"""Text to ids: whatever was saved with a tokenizer, the ids are those of the whole text, also where a long
one is cut."""

import itertools
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from tests.support.tokenizers_made import (
    TRAINING,
    byte_style,
    gemma_style,
    llama2_style,
    metaspace_style,
    saved,
    unigram_style,
)
from workers.corpora import Corpus, CorpusError, read_corpus, tokenize
from workers.texts.text_cuts import TextCuts
from workers.texts.text_tokens import TextTokens, open_tokenizer

STYLES = {"llama 2": llama2_style, "gemma": gemma_style, "metaspace": metaspace_style}
TEXT = (TRAINING + "naïve café ☂ 東京 \t\n\n two  spaces <table> <tab\n") * 3


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.enable_truncation(16),
        lambda tokenizer: tokenizer.enable_truncation(64, stride=8),
        lambda tokenizer: tokenizer.enable_padding(length=4096),
        lambda tokenizer: tokenizer.enable_padding(pad_to_multiple_of=64),
    ],
    ids=["truncation", "stride", "padding", "multiple"],
)
def test_saved_truncation_and_padding_change_nothing(tmp_path, change):
    plain, changed = byte_style(), byte_style()
    change(changed)
    file = saved(changed, tmp_path)
    expected = plain.encode(TEXT).ids
    assert tokenize(Corpus("x", TEXT), file).ids.tolist() == open_tokenizer(file).ids(TEXT) == expected
    assert len(expected) == len(TEXT.encode())


FLAGS = ("lstrip", "rstrip", "normalized", "single_word")


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=4)), ids=str)
@pytest.mark.parametrize("style", [byte_style, llama2_style, gemma_style])
def test_special_tokens_in_a_text_are_letters_unless_they_are_to_be_parsed(tmp_path, style, flags):
    """The judge of letters: the same tokenizer without the special token."""
    spelling = "a <sp> b, a<sp>b,<SP> <sp> \n"
    without, tokenizer = style(), style()
    for each in (without, tokenizer):
        each.add_tokens([AddedToken("b,", special=False)])
    tokenizer.add_special_tokens([AddedToken("<sp>", **dict(zip(FLAGS, flags, strict=True)))])
    file, special = saved(tokenizer, tmp_path), tokenizer.token_to_id("<sp>")

    assert open_tokenizer(file).ids(spelling) == without.encode(spelling, add_special_tokens=False).ids
    parsed = tokenizer.encode(spelling, add_special_tokens=False).ids
    assert open_tokenizer(file, "parse").ids(spelling) == parsed
    for how in ("literal", "parse"):
        assert open_tokenizer(file, how).spelled_special(spelling) == parsed.count(special) > 0
    assert not open_tokenizer(file).misread(np.array(without.encode(spelling).ids[1:]))


def test_a_vocabulary_that_lists_its_special_tokens_is_found_to_misread_a_text(tmp_path):
    file = saved(unigram_style(), tmp_path)
    with pytest.raises(
        CorpusError, match=r"'x' spells </s>, which this tokenizer reads as control tokens .* parse"
    ):
        tokenize(Corpus("x", "The tag </s> ends a text."), file)
    assert tokenize(Corpus("x", "The tag </s> ends a text."), file, "parse").special_spelled == 1
    assert tokenize(Corpus("x", "é is <unk> here"), file).special_spelled == 1, (
        "the token for unknown letters may come from them"
    )


def test_a_tokenizer_that_changes_is_opened_again(tmp_path):
    file = saved(byte_style(), tmp_path)
    assert open_tokenizer(file) is open_tokenizer(file)
    before = open_tokenizer(file).ids("dark")
    saved(llama2_style(), tmp_path)
    assert (
        open_tokenizer(file).ids("dark")
        == llama2_style().encode("dark", add_special_tokens=False).ids
        != before
    )


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("every", [1, 2, 7, 40])
def test_a_text_in_parts_has_the_ids_and_offsets_of_the_whole(tmp_path, style, every):
    """The judge is the library on the whole text."""
    tokenizer = STYLES[style]()
    whole = tokenizer.encode(TEXT, add_special_tokens=False)
    tokens = TextTokens(saved(tokenizer, tmp_path))
    parts = tokens.encode(TEXT, with_offsets=True, cut_every=every)
    assert len(list(TextCuts(tokenizer).places(TEXT, every))) > len(TEXT) / (every + 20), "it is really cut"
    assert parts.ids.tolist() == whole.ids
    assert parts.first_characters is not None
    assert parts.first_characters.tolist() == [start for start, _ in whole.offsets]


@st.composite
def merging(draw):
    """A tokenizer of a few letters with merges drawn at random, and a text of them and of letters that it
    does not know."""
    vocab: dict[str, int] = {"?": 0, "▁": 1, "a": 2, "b": 3, "c": 4}
    merges: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 6))):
        left, right = draw(st.sampled_from(sorted(vocab)[1:])), draw(st.sampled_from(sorted(vocab)[1:]))
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="?", fuse_unk=draw(st.booleans())))
    replace = normalizers.Replace(" ", "▁")
    steps = draw(
        st.sampled_from(
            [[replace], [normalizers.Prepend("▁"), replace], [normalizers.Replace("z", " "), replace]]
        )
    )
    tokenizer.normalizer = normalizers.Sequence(steps)
    for content in draw(
        st.lists(st.sampled_from(["b ", "cc", "▁a", "▁▁", "d", "<a>"]), unique=True, max_size=3)
    ):
        tokenizer.add_tokens(
            [AddedToken(content, normalized=draw(st.booleans()), special=draw(st.booleans()))]
        )
    return tokenizer, draw(st.text("abcd <>z▁", min_size=1, max_size=60))


@settings(max_examples=400)
@given(merging(), st.integers(1, 9))
def test_no_cut_changes_an_id_whatever_the_merges_and_added_tokens(tmp_path_factory, made, every):
    tokenizer, text = made
    tokens = TextTokens(saved(tokenizer, tmp_path_factory.mktemp("merging")))
    whole = tokens.encode(text, with_offsets=True)
    parts = tokens.encode(text, with_offsets=True, cut_every=every)
    assert (parts.ids.tolist(), np.ravel(parts.first_characters).tolist()) == (
        whole.ids.tolist(),
        np.ravel(whole.first_characters).tolist(),
    )


def test_tokenizers_that_split_texts_and_those_of_unknown_kinds_are_never_cut():
    unknown = llama2_style()
    unknown.normalizer = normalizers.NFKC()
    stripping = gemma_style()
    stripping.add_tokens([AddedToken("<x>", lstrip=True)])
    words = llama2_style()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for tokenizer in (byte_style(), unknown, stripping, words):
        assert list(TextCuts(tokenizer).places(TEXT, 10)) == []


def test_no_cut_is_in_an_added_token_that_is_matched_behind_the_normalizer():
    tokenizer = llama2_style()
    tokenizer.add_tokens([AddedToken("▁▁▁", normalized=True)])
    assert [i for i in TextCuts(tokenizer).places("pass   key", 1) if i in (5, 6)] == []
    assert {5, 6} <= set(TextCuts(gemma_style()).places("pass ☂☂ key", 1))


def test_parts_of_a_long_text_are_of_the_length_asked_for():
    places = list(TextCuts(llama2_style()).places(TEXT * 20, 1000))
    assert max(b - a for a, b in pairwise([0, *places])) < 1050


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SMOLLM2", "GEMMA3"])
def test_parts_of_real_documentation_have_the_ids_of_the_whole(model):
    """The path of a model's folder comes from the environment variable of this name."""
    if model not in os.environ:
        pytest.skip(f"needs {model}=FOLDER, a model with its tokenizer.json")
    file, text = str(Path(os.environ[model]) / "tokenizer.json"), read_corpus("pydocs").text
    for version in (text, text.replace("\n", " ")):
        whole = Tokenizer.from_file(file).encode(version, add_special_tokens=False).ids
        assert TextTokens(file).encode(version, cut_every=500).ids.tolist() == whole
