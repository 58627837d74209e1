"""Datasets by name, and what is said when one cannot be had."""

import hashlib

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from workers import corpora
from workers.corpora import Corpus, CorpusError, read_corpus, tokenize


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
        ("pydoc", ["unknown", "pydocs", "text:PATH"]), ("text:nowhere.txt", ["no file", "nowhere.txt"]),
        ("hf:", ["hf:NAME"]), ("hf:a/b/c/d", ["hf:NAME"]), ("", ["unknown"]),
    ],
)  # fmt: skip
def test_a_dataset_that_cannot_be_had_is_refused_with_what_is_allowed(name, words):
    with pytest.raises(CorpusError) as caught:
        read_corpus(name)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(("content", "word"), [(b"", "no text"), (b" \n\t", "no text"), (b"ab\xff\xfe", "UTF-8")])
def test_empty_and_undecodable_files_are_refused(tmp_path, content, word):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=word):
        read_corpus(f"text:{tmp_path / 'x.txt'}")


def test_tokens_are_the_whole_text_without_special_ones(tokenizer_file):
    tokens = tokenize(Corpus("x", "hello world"), tokenizer_file)
    assert tokens.ids.dtype == np.int32
    assert len(tokens.ids) == 11
    assert tokens.document_at(5) is None


def test_a_token_knows_its_document(tokenizer_file):
    corpus = Corpus("x", "aaa\n\nbbbb\n\ncc", (0, 5, 11))
    tokens = tokenize(corpus, tokenizer_file)
    assert [tokens.document_at(i) for i in (0, 4, 5, 10, 11, 12)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.slow
def test_a_local_dataset_folder_loads_like_a_hub_name(tmp_path, monkeypatch):
    """The real loader of the datasets library, offline."""
    import polars as pl

    folder = tmp_path / "wiki"
    (folder / "data").mkdir(parents=True)
    pl.DataFrame({"text": ["first", "second"]}).write_parquet(folder / "data" / "test.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test.parquet\n---\n"
    )
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    assert read_corpus(f"hf:{folder}:test").text == "first\n\nsecond"
    with pytest.raises(CorpusError, match="cannot be loaded"):
        read_corpus(f"hf:{folder}:nosuchsplit")
    books = corpora._from_hub("pg19", str(folder), None, "test", books=1)  # the streaming way of pg19
    assert (books.text, books.document_starts) == ("first", (0,))
    other = tmp_path / "other"
    other.mkdir()
    pl.DataFrame({"label": [1]}).write_parquet(other / "test.parquet")
    with pytest.raises(CorpusError, match=r"no text column among \['label'\]"):
        corpora._from_hub("x", str(other), None, "test", books=1)
