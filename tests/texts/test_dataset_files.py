"""Every form of a local dataset, and what is said of one that cannot be read."""

import contextlib
import csv
import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.planning.resolve import resolve
from pipeline.planning.spec import load_spec
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.datasets_made import FORMS, as_csv, as_json, as_json_lines, as_parquet, words, write
from workers.corpora import (
    Collection,
    Corpus,
    CorpusError,
    DatasetEntry,
    line_rows,
    parquet_rows,
    read_corpus,
    row_files,
)
from workers.corpora import compressed as compressed_files
from workers.corpora.line_rows import LineBlock
from workers.corpora.prose import FileBytes

TEXTS = [words(i) for i in range(12)]


def texts_of(collection) -> dict[int, str]:
    """All documents by number."""
    return dict(pair for block in range(len(collection.blocks)) for pair in collection.texts(block))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("scheme", ["text:{}", "hf:{}", "hf:{}:train"])
def test_every_form_holds_the_same_documents(tmp_path, name, scheme):
    corpus = read_corpus(scheme.format(write(tmp_path, name, FORMS[name](TEXTS))))
    assert isinstance(corpus, Collection)
    assert texts_of(corpus) == dict(enumerate(TEXTS))
    assert (corpus.column, corpus.count, corpus.has_documents) == ("text", 12, True)


def test_a_folder_of_shards_is_one_dataset_in_the_order_of_names(tmp_path):
    for shard in (2, 0, 1):
        write(
            tmp_path, f"data/train-{shard:05d}-of-00003.parquet", as_parquet(TEXTS[shard * 4 : shard * 4 + 4])
        )
    for name in ("README.md", ".gitattributes", "dataset_infos.json", "data/picture.png"):
        write(tmp_path, name, "{}")
    for name in (
        f"text:{tmp_path}",
        f"text:{tmp_path}/data/*.parquet",
        f"text:{tmp_path}/**/train-*",
        f"hf:{tmp_path}:train",
    ):
        assert texts_of(read_corpus(name)) == dict(enumerate(TEXTS)), name


@pytest.mark.parametrize("block", [150, 1000, 10**6])
def test_lines_are_found_wherever_a_block_begins(tmp_path, monkeypatch, block):
    """Blank lines keep their numbers."""
    monkeypatch.setattr(line_rows, "BLOCK", block)
    lines = as_json_lines(TEXTS).splitlines()
    for content in (b"\n".join(lines), b"\n".join([*lines, b"", b""]), b"\n\n".join(lines)):
        step = 2 if b"\n\n{" in content else 1
        corpus = read_corpus(f"text:{write(tmp_path, 'x.jsonl', content)}")
        assert texts_of(corpus) == {i * step: text for i, text in enumerate(TEXTS)}
        assert len(corpus.blocks) == -(-len(content) // block)


def test_a_row_group_of_long_texts_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "BLOCK", 1500)
    monkeypatch.setattr(parquet_rows, "BATCH", 3)
    texts = [words(i, 200) for i in range(40)]
    corpus = read_corpus(f"text:{write(tmp_path, 'x.parquet', as_parquet(texts, rows_per_group=20))}")
    assert len(corpus.blocks) > 10 and texts_of(corpus) == dict(enumerate(texts))
    assert texts_of(Collection("x", "", corpus.blocks[7:8], "rows")).keys() == set(
        texts_of_block(corpus.blocks[7])
    )


def texts_of_block(block) -> range:
    return range(block.first_number, block.first_number + block.count)


def test_rows_of_a_set_too_large_to_be_counted_are_known_by_file_and_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(line_rows, "HASHED", 10)
    for part in range(2):
        write(tmp_path, f"{part}.jsonl", as_json_lines(TEXTS[part * 6 : part * 6 + 6]))
    found = texts_of(read_corpus(f"text:{tmp_path}"))
    assert list(found.values()) == TEXTS and len(found) == 12
    second = (tmp_path / "1.jsonl").read_bytes()
    assert [number - (1 << 40) for number in list(found)[6:8]] == [0, second.index(b"\n") + 1]


@pytest.mark.parametrize(
    ("columns", "asked", "chosen"),
    [
        (["id", "text", "content"], None, "text"),
        (["content", "document"], None, "content"),
        (["id", "article"], None, "article"),
        (["text", "article"], "article", "article"),
    ],
)
def test_the_column_is_the_one_asked_for_else_text_else_the_only_one_of_texts(
    tmp_path, columns, asked, chosen
):
    row = {name: 7 if name == "id" else f"the {name}" for name in columns}
    file = write(tmp_path, "x.jsonl", json.dumps(row) + "\n")
    corpus = read_corpus(DatasetEntry(f"text:{file}", column=asked))
    assert corpus.column == chosen == corpus.facts()["column"]
    assert texts_of(corpus) == {0: f"the {chosen}"}


@pytest.mark.parametrize(
    ("row", "asked", "said"),
    [
        (
            {"a": "x", "b": "y"},
            None,
            r"several columns of text .*: a \(text\), b \(text\); name one: \{name: .*, column: NAME\}",
        ),
        (
            {"id": 1},
            None,
            r"x.\w+': no column holds text; it has id \(numbers\); write the text as strings .*own$",
        ),
        (
            {"id": 1, "n": [1]},
            "n",
            r"its column 'n' holds lists, and no column holds text; it has id \(numbers\), n \(lists\)",
        ),
        (
            {"text": "x"},
            "body",
            r"no column 'body' in the first rows of x\.(jsonl|parquet); it has text \(text\)",
        ),
        (
            {"text": ["x"], "a": "x"},
            None,
            r"column 'text' holds lists, no text; it has text \(lists\), a \(text\); name one",
        ),
        ({"text": {"t": "x"}}, None, "column 'text' holds objects, and no column holds text"),
        ({"text": 1}, None, "column 'text' holds numbers, and no column holds text"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_column_that_cannot_be_told_or_holds_no_text_is_refused_with_those_there_are(
    tmp_path, form, row, asked, said
):
    import polars as pl

    file = tmp_path / f"x.{form}"
    frame = pl.DataFrame([row])
    frame.write_ndjson(file) if form == "jsonl" else frame.write_parquet(file)
    with pytest.raises(CorpusError, match=said):
        read_corpus(DatasetEntry(f"text:{file}", column=asked))


def test_rows_without_text_are_skipped_and_counted_by_kind(tmp_path):
    rows = [None, TEXTS[0], "", " \n", ["x"], {"a": 1}, 3, True, TEXTS[1]]
    corpus = read_corpus(f"text:{write(tmp_path, 'x.jsonl', as_json_lines(rows))}")
    assert texts_of(corpus) == {1: TEXTS[0], 8: TEXTS[1]}
    assert corpus.facts()["skipped"] == {
        "null": 1,
        "empty": 2,
        "list": 1,
        "object": 1,
        "number": 1,
        "boolean": 1,
    }
    said = (
        "7 of 9 rows looked at hold no text and are skipped (1 null, 2 empty, 1 a list, 1 an object, 1 a"
        " number, 1 true or false)"
    )
    assert any(note.endswith(said) for note in corpus.notes())


@pytest.mark.parametrize("rows", [[None, None], ["", None], [None, " "]])
def test_a_column_of_nothing_is_refused(tmp_path, rows):
    with pytest.raises(
        CorpusError, match=r"holds no text: its column 'text' is .* in the 2 rows that were looked at"
    ):
        read_corpus(f"text:{write(tmp_path, 'x.jsonl', as_json_lines(rows))}")


RULE = "one\ntwo\nthree\n\nfour " * 5


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_breaks_and_a_byte_order_mark_make_no_difference(tmp_path, break_, mark):
    text = RULE.replace("\n", break_)
    corpus = read_corpus(f"text:{write(tmp_path, 'x.txt', mark + text.encode())}")
    assert isinstance(corpus, Corpus) and corpus.text == RULE
    for name, content in (
        ("x.jsonl", as_json_lines([text])),
        ("x.csv", as_csv([text])),
        ("x.parquet", as_parquet([text])),
    ):
        content = content if name == "x.parquet" else mark + content
        assert texts_of(read_corpus(f"text:{write(tmp_path, name, content)}")) == {0: RULE}


def test_halves_of_surrogate_pairs_are_replaced_and_counted_and_whole_pairs_are_characters(tmp_path):
    file = write(tmp_path, "x.jsonl", '{"text": "a\\ud800b\\udc00 \\ud83d\\ude00"}\n{"text": "c"}\n')
    corpus = read_corpus(f"text:{file}")
    assert texts_of(corpus)[0] == "a\ufffdb\ufffd 😀"
    assert corpus.facts()["surrogates_replaced"] == 2
    assert any("2 halves of surrogate pairs" in note for note in corpus.notes())


def test_only_the_beginning_of_a_compressed_file_is_expanded(tmp_path, monkeypatch):
    """What a bomb would expand to is never held."""
    monkeypatch.setattr(compressed_files, "PIECE", 1000)
    monkeypatch.setattr(compressed_files.expanded, "__defaults__", (10_000,))
    file = write(tmp_path, "x.jsonl.gz", gzip.compress(as_json_lines([words(i) for i in range(10_000)])))
    corpus = read_corpus(f"text:{file}")
    assert 10 < len(texts_of(corpus)) < 40
    assert any("at most the first" in note for note in corpus.notes())
    with pytest.raises(CorpusError, match="a line is longer than"):
        read_corpus(f"text:{write(tmp_path, 'b.jsonl.gz', gzip.compress(b'a' * 10**6))}")


def test_no_more_of_a_compressed_file_is_expanded_than_is_read(monkeypatch):
    class Endless:
        given = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, size):
            self.given += size
            return b"a" * size

    endless = Endless()
    monkeypatch.setitem(compressed_files.OPENERS, ".gz", lambda path: endless)
    data, whole = compressed_files.expanded(Path("x.gz"), 2_500_000)
    assert (len(data), whole, endless.given) == (2_500_000, False, 2_500_001)


REFUSED = {
    "broken.jsonl": (
        b'{"text": "a"}\n{"text": \n',
        r"broken.jsonl, line 2: is no JSON \(.*\); each line is one object",
    ),
    "list.jsonl": (b"[1]\n", "list.jsonl, line 1: is no object but a list"),
    "deep.jsonl": (b"[" * 100_000, "deep.jsonl, line 1: is no JSON"),
    "bad.json": (b'[{"text": "a"', "bad.json: is no JSON"),
    "items.json": (b"[1]", "items.json: item 0 of its list is no object"),
    "empty.jsonl": (b"", "holds no rows"),
    "empty.csv": (b"", "holds no rows"),
    "header.csv": (b"id,text\n", "holds no rows"),
    "empty.json": (b"[]", "holds no rows"),
    "none.parquet": (as_parquet([]), "no column holds text"),
    "double.csv": (b"text,text\na,b\n", "header names 'text' more than once"),
    "semicolon.csv": (b"id;text\n1;a\n", "separated by semicolons, and only commas are read"),
    "ragged.csv": (b"id,text\n1,a\n2,a,b\n", 'line 3: has 3 fields and the header has 2; .* in "quotes"'),
    "quote.csv": (b'id,text\n1,"a\n', "line 3: is no CSV|line 2: is no CSV"),
    "no.parquet": (b"hello", "cannot be read as Parquet"),
    "cut.parquet": (as_parquet(TEXTS)[:-9], "cannot be read as Parquet"),
    "utf16.txt": (words(1).encode("utf-16"), "is UTF-16, and only UTF-8 is read; convert it: iconv"),
    "unmarked.txt": (
        words(1).encode("utf-16-le"),
        r"holds a NUL \(byte 1\): it is UTF-16 without a mark, or no text",
    ),
    "latin.txt": (b"caf\xe9 au lait", r"latin.txt is not UTF-8 text \(byte 3\)"),
    "latin.jsonl": (
        b'{"text": "a"}\n{"text": "caf\xe9"}\n',
        r"latin.jsonl, line 2 is not UTF-8 text \(byte 27\)",
    ),
    "latin.csv": (b"text\ncaf\xe9\n", r"latin.csv is not UTF-8 text \(byte 8\)"),
    "damaged.jsonl.gz": (
        gzip.compress(as_json_lines(TEXTS))[:-9],
        "cannot be expanded .*: damaged, or no .gz file",
    ),
    "no.txt.zst": (b"hello", "cannot be expanded .*: damaged, or no .zst file"),
    "x.tsv": (b"id\ttext\n", "x.tsv is separated by tabs, and only commas are read; write it with commas"),
    "x.jsonl.1": (as_json_lines(TEXTS), r"x.jsonl.1 would be read as prose; let its name end in .jsonl$"),
    "x.jsonl-20260101.gz": (
        gzip.compress(as_json_lines(TEXTS)),
        r"would be read as prose; let its name end in .jsonl$",
    ),
    "x.parq": (as_parquet(TEXTS), "is Parquet by another name; name it .parquet"),
    "x.pq": (as_parquet(TEXTS), "is Parquet by another name"),
    "x.data": (as_parquet(TEXTS), "is Parquet by another name"),
    "x.zip": (b"PK", "is an archive, .* unpack it"),
    "x.tar.gz": (gzip.compress(b"a"), "is an archive"),
    "zipped.txt": (b"PK\x03\x04", "is a ZIP archive or an office document"),
    "x.xlsx": (b"PK", "is an office document"),
    "x.arrow": (b"a", "is an Arrow file, .* write it as Parquet"),
    "arrow": (b"ARROW1\0\0", "is an Arrow file"),
    "gzipped.jsonl": (gzip.compress(as_json_lines(TEXTS)), "is compressed by gzip; let its name end in .gz"),
    "data.parquet.gz": (gzip.compress(as_parquet(TEXTS)), "compressed inside"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_not_what_its_name_says_is_refused_in_one_line(tmp_path, name):
    content, said = REFUSED[name]
    with pytest.raises(CorpusError, match=said) as caught:
        read_corpus(f"text:{write(tmp_path, name, content)}")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").mkdir()
    write(tmp_path, "mixed/a.jsonl", "{}")
    write(tmp_path, "mixed/b.csv", "text\n")
    wanted = {
        "fifo.txt": "no regular file but a device, pipe or socket",
        "zero.txt": "no regular file",
        "loop": "links lead in a circle",
        "empty": "holds no file of .txt, .md",
        "*.nothing": "no file matches",
        "nowhere": "there is no file",
        "a\0b": "null",
        "mixed": r"several kinds \(1 of json lines, 1 of csv\); name those of one",
    }
    for name, said in wanted.items():
        with pytest.raises(CorpusError, match=said) as caught:
            read_corpus(f"text:{tmp_path}/{name}")
        assert "\n" not in str(caught.value)


def test_a_huge_file_of_nothing_is_refused_at_once(tmp_path):
    """Ten gigabytes that take no place."""
    wanted = {
        "txt": "holds a NUL",
        "jsonl": "a line is longer than",
        "csv": "holds more than 64 MB",
        "parquet": "as Parquet",
    }
    for ending, said in wanted.items():
        with (tmp_path / f"x.{ending}").open("wb") as file:
            file.truncate(10**10)
        with pytest.raises(CorpusError, match=said):
            read_text_of(read_corpus(f"text:{file.name}"))


def read_text_of(corpus) -> str:
    from workers.corpora.passages import _said

    (text,) = texts_of(corpus).values()
    return _said(text, 5 * 10**9, 1000)[1]


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_what_may_not_be_read_is_refused():
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    write(folder, "closed/a.txt", "a").parent.chmod(0)
    write(folder, "b.txt", "a").chmod(0)
    code = (
        "import os, sys; from workers.corpora import *\nos.setuid(65534)\nfor name in sys.argv[1:]:\n  try:"
        " print(read_corpus('text:' + name))\n  except CorpusError as error: print(error)"
    )
    names = [str(folder / name) for name in ("closed", "b.txt")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    shutil.rmtree(folder)
    assert [line.endswith("Permission denied") for line in done.stdout.splitlines()] == [
        True,
        True,
    ], done.stdout


SPLITS = [
    "train-00000-of-00002.jsonl",
    "train-00001-of-00002.jsonl",
    "val.jsonl",
    "test/a.jsonl",
    "shard_extra.jsonl",
]


@pytest.mark.parametrize(
    ("split", "wanted"),
    [(":train", [0, 1]), (":validation", [2]), (":test", [3]), ("", [3]), (":extra", [4])],
)
def test_a_split_is_found_by_names_of_files_and_folders(tmp_path, split, wanted):
    for i, name in enumerate(SPLITS):
        write(tmp_path, name, as_json_lines([words(i)]))
    assert set(texts_of(read_corpus(f"hf:{tmp_path}{split}")).values()) == {words(i) for i in wanted}


@pytest.mark.parametrize(
    ("files", "split", "said"),
    [
        (["train.jsonl"], ":test", "no split 'test': its files say train"),
        (["a.jsonl"], ":test", "no split 'test': no file or folder says a split, so that all are 'train'"),
        (
            ["train.jsonl"],
            ":train[:1%]",
            r"'train\[:1%\]' is no split's name; .* only as much is read as windows need",
        ),
    ],
)
def test_a_split_that_is_not_there_is_refused(tmp_path, files, split, said):
    for name in files:
        write(tmp_path, name, as_json_lines(TEXTS))
    with pytest.raises(CorpusError, match=said):
        read_corpus(f"hf:{tmp_path}{split}")


def test_joined_rows_are_one_text_with_blank_lines_between_them(tmp_path):
    file = write(tmp_path, "x.jsonl", as_json_lines([TEXTS[0], None, TEXTS[1]]))
    corpus = read_corpus(DatasetEntry(f"text:{file}", documents="joined"))
    assert isinstance(corpus, Corpus) and corpus.text == f"{TEXTS[0]}\n\n{TEXTS[1]}"
    assert corpus.facts()["documents"] == "joined" and corpus.facts()["skipped"] == {"null": 1}
    assert corpus.name == f"text:{file}[documents=joined]"


def test_the_fingerprint_is_of_what_the_files_hold(tmp_path, monkeypatch):
    def fingerprints() -> list[str]:
        return [read_corpus(f"text:{tmp_path}/{name}").fingerprint for name in ("a", "b", "a/*.jsonl")]

    for folder in "ab":
        for shard in range(3):
            write(tmp_path, f"{folder}/{shard}.jsonl", as_json_lines(TEXTS[shard : shard + 3]))
    assert len(set(fingerprints())) == 1, "the same bytes elsewhere"
    write(tmp_path, "b/1.jsonl", as_json_lines(TEXTS[2:5]))
    assert fingerprints()[0] != fingerprints()[1]

    monkeypatch.setattr("workers.corpora.files.HASHED", 10)
    monkeypatch.setattr("workers.corpora.files.EDGE", 10)
    before = fingerprints()[0]
    write(tmp_path, "a/2.jsonl", as_json_lines([TEXTS[2], TEXTS[2], TEXTS[4]]))
    assert fingerprints()[0] == before, "of a large set both ends of each file"
    write(tmp_path, "a/2.jsonl", as_json_lines(TEXTS[2:5]) + b"\n")
    assert fingerprints()[0] != before


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(FORMS)), st.data())
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(tmp_path, name, data):
    """Bytes of a good file changed, taken out or put in, and bytes at random."""
    good = FORMS[name](TEXTS[:3])
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(good)))
        content = good[:at] + data.draw(st.binary(max_size=9)) + good[at + data.draw(st.integers(0, 20)) :]
    else:
        content = data.draw(st.binary(max_size=60))
    said, corpus = "", None
    try:
        corpus = read_corpus(f"text:{write(tmp_path, name, content)}")
    except CorpusError as error:
        said = str(error)
    assert bool(said) != bool(corpus and texts_of(corpus)) and "\n" not in said


@pytest.mark.parametrize(
    "text", ["text\n" + "a" * 200_000 + "\n", "text,b\nc\n"], ids=["long field", "refused"]
)
def test_reading_a_table_leaves_the_process_s_limit_of_fields_as_it_was(tmp_path, text):
    usual = csv.field_size_limit()
    (tmp_path / "x.csv").write_text(text)
    with contextlib.suppress(CorpusError):
        read_corpus(f"text:{tmp_path / 'x.csv'}")
    assert csv.field_size_limit() == usual


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("pattern", ["", "/*.jsonl"])
def test_a_file_of_two_names_is_read_once_and_the_other_name_is_noted(tmp_path, link, pattern):
    file = write(tmp_path, "a.jsonl", as_json_lines(TEXTS))
    link(file, tmp_path / "b.jsonl")
    corpus = read_corpus(f"text:{tmp_path}{pattern}")
    assert texts_of(corpus) == dict(enumerate(TEXTS))
    (said,) = [note for note in corpus.notes() if "read once" in note]
    assert "b.jsonl is the same file as " in said and said.endswith("a.jsonl)")


def test_a_link_may_stand_in_another_split(tmp_path):
    file = write(tmp_path, "train/a.jsonl", as_json_lines(TEXTS))
    (tmp_path / "test").mkdir()
    (tmp_path / "test/b.jsonl").symlink_to(file)
    for split in ("train", "test"):
        assert texts_of(read_corpus(f"hf:{tmp_path}:{split}")) == dict(enumerate(TEXTS))


def test_a_file_of_any_other_ending_is_prose(tmp_path):
    for name in ("x", "x.log", "x.rst", "x.v1.2", "x.json.txt"):
        corpus = read_corpus(f"text:{write(tmp_path, name, TEXTS[0])}")
        assert isinstance(corpus, Corpus) and corpus.text == TEXTS[0], name


def test_rows_that_lack_the_column_are_no_nulls(tmp_path):
    write(tmp_path, "a.jsonl", as_json_lines([TEXTS[0], None]))
    write(tmp_path, "b.jsonl", as_json_lines(TEXTS[1:4], column="body"))
    corpus = read_corpus(f"text:{tmp_path}")
    assert corpus.facts()["skipped"] == {"missing": 3, "null": 1}
    assert any(
        "4 of 5 rows looked at hold no text and are skipped (3 without the column, 1 null)" in n
        for n in corpus.notes()
    )


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "parquet"])
def test_a_column_that_the_first_file_lacks_is_looked_for_in_the_others(tmp_path, monkeypatch, form):
    made = FORMS[f"data.{form}"]
    for name, column in (("a", "text"), ("b", "body"), ("c", "text")):
        write(tmp_path, f"{name}.{form}", made(TEXTS, column))
    if form != "jsonl":
        with pytest.raises(CorpusError, match=rf"a.{form} has no column 'body', which other files have"):
            read_corpus(DatasetEntry(f"text:{tmp_path}", column="body"))
    else:
        assert list(texts_of(read_corpus(DatasetEntry(f"text:{tmp_path}", column="body"))).values()) == TEXTS

    with pytest.raises(
        CorpusError, match=rf"no column 'no' in the first rows of a.{form} and of 2 other files; it has id"
    ):
        read_corpus(DatasetEntry(f"text:{tmp_path}", column="no"))
    monkeypatch.setattr(row_files, "LOOKED_FILES", 2)
    with pytest.raises(CorpusError, match=r"and of 1 of 2 other files; it has id"):
        read_corpus(DatasetEntry(f"text:{tmp_path}", column="no"))


@pytest.mark.parametrize(
    "address", ["s3://b/x.jsonl", "https://h/x.txt", "gs://b/*.jsonl", "file://host/x.txt", "S3://b"]
)
@pytest.mark.parametrize("scheme", ["text", "hf"])
def test_files_elsewhere_are_not_read(scheme, address):
    with pytest.raises(
        CorpusError, match="only local files are read; fetch it, and name its path: text:PATH"
    ):
        read_corpus(f"{scheme}:{address}")


@pytest.mark.parametrize("scheme", ["text:file://{}", "text:file://localhost{}", "hf:file://{}:train"])
def test_an_address_of_a_local_file_is_its_path(tmp_path, scheme):
    """Letters that addresses cannot hold are written in percent; a folder of one file is one of documents."""
    write(tmp_path, "a b/x.txt", TEXTS[0])
    corpus = read_corpus(scheme.format(str(tmp_path / "a b").replace(" ", "%20")))
    assert texts_of(corpus) == {0: TEXTS[0]}


def test_a_binary_column_is_no_text_and_none_is_to_be_named(tmp_path):
    file = write(tmp_path, "x.parquet", as_parquet([b"a", b"b"]))
    with pytest.raises(
        CorpusError, match=r"its column 'text' holds binary, and no column holds text; it has id \(numbers\)"
    ) as said:
        read_corpus(f"text:{file}")
    assert "column: NAME" not in str(said.value)


NAMES_OF_SPLITS = [
    "dev2.jsonl",
    "train1.jsonl",
    "a-val_3.jsonl",
    "testament.jsonl",
    "x.evaluation.jsonl",
    "trains.jsonl",
    "my test.jsonl",
    "test(1).jsonl",
    "valid/a.jsonl",
    "2training2/a.jsonl",
    "latest.jsonl",
]


@pytest.mark.parametrize("name", NAMES_OF_SPLITS)
def test_splits_are_found_as_the_datasets_library_finds_them(tmp_path, name):
    from datasets.data_files import get_data_patterns

    write(tmp_path, name, as_json_lines(TEXTS))
    theirs = {str(split) for split in get_data_patterns(str(tmp_path))}
    ours = set()
    for split in ("train", "validation", "test"):
        with contextlib.suppress(CorpusError):
            assert read_corpus(f"hf:{tmp_path}:{split}").count == len(TEXTS)
            ours.add(split)
    assert ours == theirs


@pytest.mark.parametrize("form", ["jsonl", "txt"])
def test_files_that_say_no_split_are_noted_where_others_do(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    for name in ("train-1", "val", "a", "b", "c", "d"):
        write(tmp_path, f"{name}.{form}", as_json_lines(TEXTS[:1]))
    for pattern in ("", f"*.{form}"):
        corpus = read_corpus(f"hf:./{pattern}:train")
        (said,) = [note for note in corpus.notes() if "say no split" in note]
        assert "4 of 6 files say no split and are not read: " in said and said.endswith(" and 1 more")
    assert not any("no split" in note for note in read_corpus(f"text:{tmp_path}").notes())


@pytest.mark.parametrize("size", [100, 5_000_000])
def test_the_note_on_links_is_given_of_one_text_too(tmp_path, size):
    write(tmp_path, "a.txt", "word " * (size // 5))
    os.link(tmp_path / "a.txt", tmp_path / "b.txt")
    assert any("b.txt is the same file as" in note for note in read_corpus(f"text:{tmp_path}/*.txt").notes())


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_shard_without_the_column_is_refused(tmp_path, kind):
    """Its rows were skipped as null."""
    made = {"csv": as_csv, "json": as_json, "parquet": as_parquet}[kind]
    write(tmp_path, f"data/a.{kind}", made(TEXTS[:6]))
    write(tmp_path, f"data/b.{kind}", made(TEXTS[6:], column="txt"))
    with pytest.raises(CorpusError, match=rf"b\.{kind} has no column 'text', which other files have"):
        read_corpus(f"text:{tmp_path}/data")


def test_an_object_that_lacks_the_column_among_others_is_skipped_as_missing(tmp_path):
    rows = [{"text": TEXTS[0]}, {"other": 1}, {"text": TEXTS[1]}]
    corpus = read_corpus(f"text:{write(tmp_path, 'x.json', json.dumps(rows))}")
    assert texts_of(corpus) == {0: TEXTS[0], 2: TEXTS[1]} and corpus.census.skipped == {"missing": 1}


@pytest.mark.parametrize("long", [False, True])
def test_a_disk_that_fails_in_a_later_block_is_a_fault_of_the_dataset(
    tmp_path, sweep_file, monkeypatch, long
):
    """It was told as one of the model's tokenizer."""
    content = b"".join(b'{"text": "some words of row %d"}\n' % i for i in range(50_000))
    name = write(tmp_path, "text.txt" if long else "rows.jsonl", content * (4 if long else 8))
    file = load_spec(str(sweep_file(datasets=f'["text:{name}"]')))
    corpora = {name: read_corpus(f"text:{name}")}
    monkeypatch.setattr("pipeline.planning.resolve.read_corpus", lambda entry, seed: corpora[name])
    assert isinstance(corpora[name], Collection)

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(name))

    monkeypatch.setattr(*((FileBytes, "read") if long else (LineBlock, "rows")), fails)
    with pytest.raises(SweepError) as caught:
        resolve(file, "cpu")
    (told,) = caught.value.faults
    assert told.startswith("datasets: dataset ") and "cannot read" in told and "Input/output error" in told
