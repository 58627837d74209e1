"""Datasets by name, and what is said when one cannot be had."""

import hashlib

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from workers.corpora import Corpus, CorpusError, DatasetEntry, read_corpus, tokenize, tokens_of
from workers.models.model_files import find_model


@pytest.fixture
def tokenizer_file(tmp_path):
    """One token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


def test_pydocs_are_the_topics_in_sorted_order():
    from pydoc_data.topics import topics

    corpus = read_corpus("pydocs")
    first, last = min(topics), max(topics)
    assert corpus.text.startswith(topics[first].strip())
    assert corpus.text.endswith(topics[last].strip() + "\n")
    assert corpus.fingerprint == hashlib.sha256(corpus.text.encode()).hexdigest()[:16]


def test_text_file_is_read_whole_with_its_newlines(tmp_path):
    path = tmp_path / "a b.txt"
    path.write_bytes("één\n\n\ttwo\n".encode())
    assert read_corpus(f"text:{path}").text == "één\n\n\ttwo\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pydoc", ["unknown", "pydocs", "text:PATH"]),
        ("text:nowhere.txt", ["no file", "nowhere.txt"]),
        ("hf:", ["names nothing", "hf:NAME"]),
        ("hf:a/b/c/d", ["hf:NAME"]),
        ("", ["unknown"]),
    ],
)
def test_a_dataset_that_cannot_be_had_is_refused_with_what_is_allowed(name, words):
    with pytest.raises(CorpusError) as caught:
        read_corpus(name)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "no text"), (b" \n\t", "no text"), (b"ab\xff\xfe", "UTF-8")]
)
def test_empty_and_undecodable_files_are_refused(tmp_path, content, word):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=word):
        read_corpus(f"text:{tmp_path / 'x.txt'}")


def test_tokens_are_the_whole_text_without_special_ones(tokenizer_file):
    tokens = tokenize(Corpus("x", "hello world"), tokenizer_file)
    assert tokens.ids.dtype == np.int32
    assert len(tokens.ids) == 11


@pytest.mark.parametrize("how", [{"column": "text"}, {"documents": "joined"}])
@pytest.mark.parametrize("name", ["pydocs", "wikitext-2"])
def test_a_dataset_of_one_text_has_no_columns_or_documents(name, how):
    with pytest.raises(CorpusError, match="is one text"):
        read_corpus(DatasetEntry(name, **how))


def test_the_name_in_rows_says_what_is_not_as_it_is_by_default():
    assert DatasetEntry("pydocs").label == "pydocs"
    entry = DatasetEntry("text:x.csv", column="article", sample="first", documents="joined")
    assert entry.label == "text:x.csv[column=article,sample=first,documents=joined]"


@pytest.mark.parametrize(("sample", "starts"), [("spread", [8, 28]), ("first", [0, 4])])
def test_windows_of_one_text_are_those_of_a_plain_slice(tokenizer_file, sample, starts):
    text = "The tokens of this text are its very letters."[:40]
    tokens = tokenize(Corpus("x", text, sample), tokenizer_file)
    windows = tokens.windows(4, 4, 2, bos=False)
    assert [w.start for w in windows] == starts
    assert ["".join(map(chr, _bytes(tokens.held(w, 4)))) for w in windows] == [
        text[w.start : w.start + 4] for w in windows
    ]
    assert [w.document for w in windows] == [tokens.document_of(w) for w in windows] == [None, None]


def _bytes(ids) -> list[int]:
    from tests.support.tokenizers_made import byte_style

    return list(byte_style().decode(ids.tolist()).encode())


def test_drawn_windows_are_the_same_for_a_seed_and_others_for_another(tokenizer_file):
    def starts(seed: int) -> list[int]:
        tokens = tokenize(Corpus("x", "abcd" * 200, "random", seed), tokenizer_file)
        return [w.start for w in tokens.windows(8, 8, 5, bos=False)]

    assert starts(1) == starts(1) == sorted(set(starts(1)))
    assert len({tuple(starts(seed)) for seed in range(5)}) == 5


def test_windows_of_pydocs_are_what_they_always_were():
    """The default dataset: spread evenly over the whole text's ids, to the bit."""
    file = find_model("reference-neox").tokenizer_file
    corpus = read_corpus("pydocs")
    tokens = tokens_of(corpus, file)
    ids = Tokenizer.from_file(file).encode(corpus.text, add_special_tokens=False).ids
    windows = tokens.windows(1024, 1024, 8, bos=False)
    whole = (len(ids) - 1024) // 1024 + 1
    assert [w.index for w in windows] == [(2 * part + 1) * whole // 16 for part in range(8)]
    for w in windows:
        assert (w.start, w.document, w.text_id) == (w.index * 1024, None, w.index * 1024)
        assert tokens.held(w, 1024).tolist() == ids[w.start : w.start + 1024]
    length = len(ids) // 300
    assert [prompt.tolist() for prompt in tokens.prompts(300, 2)] == [
        ids[number * 300 : number * 300 + 300] for number in (length // 4, 3 * length // 4)
    ]
    assert tokens.filler(100).tolist() == ids
