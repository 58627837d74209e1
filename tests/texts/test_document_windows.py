"""Rows are documents: which tokens each window holds, that none crosses a document, and that no more is read
than is needed.

The judge is the tokenizers library on each document for itself, and plain Python over its ids.
"""

from __future__ import annotations

import math
import os
import random
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer

from pipeline.driving.provenance import describe_run
from pipeline.planning.plan import make_plan
from pipeline.planning.spec import load_spec
from pipeline.planning.unit_inputs import work_unit
from pipeline.store.run_store import RunStore
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.command import run_inline
from tests.support.datasets_made import as_json_lines, as_parquet, words, write
from tests.support.rows import one, ratio_interval
from tests.support.tokenizers_made import TRAINING, byte_style, llama2_style, metaspace_style, saved
from workers.corpora import (
    Corpus,
    CorpusError,
    DatasetEntry,
    parquet_rows,
    read,
    read_corpus,
    read_text,
    tokens_of,
)
from workers.corpora.passages import passages, slot_bytes
from workers.corpora.prose import FileBytes, HeldBytes, LongText
from workers.models.model_files import find_model
from workers.texts.text_tokens import open_tokenizer

LENGTHS = [40, 3, 12, 90, 0, 33, 7, 60, 5, 25]
TEXTS = [words(i, n) if n else None for i, n in enumerate(LENGTHS)]
STYLES = {"bytes": byte_style, "llama 2": llama2_style, "metaspace": metaspace_style}


@pytest.fixture
def tokenizer(tmp_path):
    """Byte by byte, so that a window's ids are its letters."""
    return saved(byte_style(), tmp_path)


@pytest.fixture
def rows(tmp_path):
    """A name in a sweep file."""
    return f"text:{write(tmp_path, 'rows.jsonl', as_json_lines(TEXTS))}"


def test_windows_that_overlap_share_the_tokens_of_their_document(rows, tokenizer):
    tokens = tokens_of(read_corpus(rows), tokenizer)
    windows = tokens.windows(64, 1, 10_000, bos=False)
    held = defaultdict(list)
    for w in windows:
        held[w.document].append(tokens.held(w, 64))
    assert len(windows) > 100 and any(len(own) > 50 for own in held.values())
    for own in held.values():
        assert all(np.shares_memory(a, b) for a, b in pairwise(own)), "each a view of one array"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("sample", ["spread", "first", "random"])
@pytest.mark.parametrize(
    ("window", "stride", "limit"), [(64, 64, 3), (64, 64, 50), (48, 16, 9), (128, 128, 4)]
)
@pytest.mark.parametrize("bos", [False, True])
def test_every_window_is_a_stretch_of_one_document_tokenized_by_itself(
    tmp_path, rows, style, sample, window, stride, limit, bos
):
    made = STYLES[style]()
    tokens = tokens_of(read_corpus(DatasetEntry(rows, sample=sample), seed=3), saved(made, tmp_path))
    windows = tokens.windows(window, stride, limit, bos=bos)

    whole = {i: made.encode(text, add_special_tokens=False).ids for i, text in enumerate(TEXTS) if text}
    room = {i: max(0, (len(ids) + bos - window) // stride + 1) for i, ids in whole.items()}
    assert len(windows) == min(limit, sum(room.values())) > 0
    assert [w.index for w in windows] == list(range(len(windows)))
    assert [(w.document, w.start) for w in windows] == sorted({(w.document, w.start) for w in windows})
    for w in windows:
        assert tokens.document_of(w) == w.document
        assert w.start % stride == 0 and w.start + window - bos <= len(whole[w.document])
        assert tokens.held(w, window - bos).tolist() == whole[w.document][w.start : w.start + window - bos]
        assert w.first_scored == (1 if w.start == 0 else max(1, window - stride))

    shares = Counter(w.document for w in windows)
    for document in (i for i, n in room.items() if n):
        least = min(room[document], max(shares.values()) - 1)
        assert shares[document] >= least or len(shares) == limit, (
            "as many documents as can be, as many windows of each as can be"
        )


def test_which_documents_a_sample_takes(rows, tokenizer):
    """Those of 128 bytes and more are 0, 3, 5, 7 and 9. Spread: the middle of the second half; that of the
    first is too short."""

    def documents(sample: str, seed: int = 0) -> list[int]:
        tokens = tokens_of(read_corpus(DatasetEntry(rows, sample=sample), seed), tokenizer)
        return [w.document for w in tokens.windows(128, 128, 2, bos=False)]

    assert documents("first") == [0, 3]
    assert documents("spread") == [0, 7]
    assert len({tuple(documents("random", seed)) for seed in range(8)}) > 2


def test_documents_that_are_too_short_are_counted_and_refused_with_their_lengths(
    sweep_file, rows, tiny_model_dir
):
    plan = make_plan(
        load_spec(str(sweep_file(datasets=f'["{rows}"]', perplexity="{window: 128, windows: 50}")))
    )
    enough = sum(len(text.encode()) >= 128 for text in TEXTS if text)
    said = (
        f"{rows}: {enough} of 9 documents looked at hold 128 tokens under the tokenizer of {tiny_model_dir}"
    )
    assert said in plan.notes
    assert f"{rows}: 1 of 10 rows looked at hold no text and are skipped (1 null)" in plan.notes

    write(sweep_file().parent, "rows.jsonl", as_json_lines([text[:200] if text else text for text in TEXTS]))
    spec = load_spec(str(sweep_file(datasets=f'["{rows}"]', perplexity="{window: 256, windows: 2}")))
    with pytest.raises(
        SweepError, match=r"no document of 256 tokens .*longest of the 9 documents looked at has 200"
    ) as caught:
        make_plan(spec)
    assert "ask for shorter texts, or join them: documents: joined" in str(caught.value)


def test_prompts_and_haystacks(sweep_file, rows):
    """A prompt lies in one document, of as many as can be; text around needles is documents one after the
    other."""
    plan = make_plan(
        load_spec(
            str(
                sweep_file(
                    datasets=f'["{rows}"]',
                    perplexity=None,
                    generation="{prompt_tokens: [100], batch_sizes: [4], new_tokens: 4}",
                    retrieval="{kinds: [needle], context_tokens: [200], questions: 2}",
                )
            )
        )
    )
    works = {unit.task: work_unit(plan, unit).work for unit in plan.units}
    made = Tokenizer.from_file(plan.resolved.models[plan.grid.cells[0].model].tokenizer_file)
    prompts = [made.decode(list(prompt)) for prompt in works["generation"].prompts]
    holders = [[i for i, text in enumerate(TEXTS) if text and prompt in text] for prompt in prompts]
    assert len(prompts) == 4 and all(len(prompt) == 100 for prompt in prompts)
    assert sorted(holder for (holder,) in holders) == sorted({holder for (holder,) in holders})

    (tokens,) = plan.resolved.tokens.values()
    assert made.decode(tokens.filler(3200).tolist()) == "".join(f"{text}\n\n" for text in TEXTS if text)
    around = "".join(f"{text}\n\n" for text in TEXTS if text) * 2
    assert all(
        made.decode(list(question.prompt_ids))[:8] in around for question in works["retrieval"].questions
    )


def test_more_prompts_than_documents_can_give_are_refused(sweep_file, rows):
    generation = "{prompt_tokens: [128], batch_sizes: [64], new_tokens: 4}"
    with pytest.raises(SweepError, match=r"has room for \d+ texts of 128 tokens .* needs 8192"):
        make_plan(load_spec(str(sweep_file(datasets=f'["{rows}"]', perplexity=None, generation=generation))))


def test_run_json_says_how_a_dataset_was_read(sweep_file, rows):
    plan = make_plan(
        load_spec(str(sweep_file(datasets=f'[{{name: "{rows}", column: text, sample: first}}]')))
    )
    (described,) = describe_run(plan, None)["datasets"]
    assert described["name"] == f"{rows}[column=text,sample=first]" == plan.grid.cells[0].dataset
    wanted = {
        "documents": "separate",
        "column": "text",
        "sample": "first",
        "rows": 10,
        "looked_at": 10,
        "skipped": {"null": 1},
    }
    assert described.items() >= wanted.items() and described["tokens"] > 64


def test_a_cell_is_another_where_other_text_is_scored(sweep_file, rows):
    """More windows are another cell too, as of any text."""
    ways = ["", ", column: id2", ", sample: first", ", sample: random", ", documents: joined"]
    write(sweep_file().parent, "rows.jsonl", as_json_lines(TEXTS).replace(b'"id": ', b'"id2": "x", "id": '))
    plans = [
        make_plan(load_spec(str(sweep_file(datasets=f'[{{name: "{rows}"{way}}}]'))))
        for way in ways
        if "id2" not in way
    ]
    ids = [{cell.cell_id for cell in plan.grid.cells} for plan in plans]
    assert len(set.union(*ids)) == sum(map(len, ids))
    fingerprints = {corpus.fingerprint for plan in plans[:3] for corpus in plan.resolved.corpora.values()}
    assert len(fingerprints) == 1, "of the source, not of what was read"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            "{name: pydocs, sample: last}",
            r"sweep.yaml:3:27: datasets.0.sample: should be 'spread', 'first' or 'random' \(got",
        ),
        ("{name: pydocs, colum: a}", "datasets.0.colum: unknown key; did you mean column"),
        ("{column: a}", "datasets.0.name: is required"),
        ("{name: pydocs, documents: 3}", "datasets.0.documents: should be 'separate' or 'joined'"),
        ("[]", "datasets.0: "),
    ],
)
def test_a_wrong_entry_is_refused_with_its_place(sweep_file, entry, said):
    with pytest.raises(SweepError, match=said):
        load_spec(str(sweep_file(datasets=f"[{entry}]")))


def test_intervals_of_a_run_over_rows_are_those_of_documents(sweep_file, tmp_path, out):
    """Of a run from its sweep file to its table: what plain Python makes of sums over documents."""
    from analysis.load import load
    from analysis.tables import Tables

    name = f"text:{write(tmp_path, 'four.parquet', as_parquet([words(i, 40) for i in range(4)]))}"
    sweep = sweep_file(datasets=f'["{name}"]', perplexity="{window: 64, windows: 12}", keep_ratios="[0.5]")
    assert run_inline(sweep, out) == 0
    rows = RunStore(str(out)).scan("perplexity").collect()
    assert rows["document"].n_unique() == 4 and rows["window_index"].n_unique() == 12

    nll: dict[str, dict[int, list[float]]] = {"dense": defaultdict(list), "knorm": defaultdict(list)}
    for row in rows.sort("window_index").iter_rows(named=True):
        nll[row["policy"]][row["document"]].append(row["nll_sum"])
    differences = [math.fsum(nll["knorm"][d]) - math.fsum(nll["dense"][d]) for d in range(4)]
    low, high = ratio_interval(differences, [63 * len(nll["dense"][d]) for d in range(4)])

    table = Tables.of(load([str(out)])).perplexity
    row = one(table, policy="knorm")
    assert (row["unit_kind"], row["n_units"], row["n_windows"]) == ("documents", 4, 12)
    assert (math.log(row["ratio_low"]), math.log(row["ratio_high"])) == pytest.approx((low, high))


def test_the_random_policy_draws_anew_in_each_document(sweep_file, tmp_path, out):
    """Two documents of one text, so that only the draw can differ."""
    name = f"text:{write(tmp_path, 'same.jsonl', as_json_lines([words(1, 40)] * 2))}"
    sweep = sweep_file(
        datasets=f'["{name}"]',
        perplexity="{window: 64, windows: 2}",
        policies="[random]",
        keep_ratios="[0.5]",
    )
    assert run_inline(sweep, out) == 0
    by_policy = (
        RunStore(str(out)).scan("perplexity").collect().group_by("policy").agg(pl.col("nll_sum").n_unique())
    )
    assert dict(by_policy.iter_rows()) == {"dense": 1, "random": 2}


def test_only_the_shards_that_are_needed_are_read(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(read, "SMALL", 1000)
    for shard in range(40):
        write(
            tmp_path, f"shards/{shard:03}.parquet", as_parquet([words(shard * 10 + i, 40) for i in range(10)])
        )
    opened: list[str] = []
    plain = parquet_rows.ParquetBlock.rows
    monkeypatch.setattr(
        parquet_rows.ParquetBlock, "rows", lambda block: opened.append(block.path.name) or plain(block)
    )

    for sample in ("spread", "first", "random"):
        opened.clear()
        tokens = tokens_of(read_corpus(DatasetEntry(f"text:{tmp_path}/shards", sample=sample)), tokenizer)
        windows = tokens.windows(64, 64, 4, bos=False)
        assert len(windows) == 4 and len({w.document for w in windows}) == 4
        assert len(opened) <= 4 and tokens.tokens < 4 * 400
        if sample == "spread":
            assert [w.document // 100 for w in windows] == [0, 1, 2, 3], "one in each quarter"


def test_no_more_is_looked_at_where_many_documents_are_too_short(tmp_path, monkeypatch):
    """Each has 300 bytes, and only a tokenizer tells that these are no 290 tokens."""
    monkeypatch.setattr("workers.corpora.document_search.SHORT_CHARACTERS", 5000)
    monkeypatch.setattr(read, "SMALL", 0)
    file = write(tmp_path, "x.jsonl", as_json_lines(["the rain fell " * 22] * 1000))
    tokens = tokens_of(read_corpus(f"text:{file}"), saved(llama2_style(), tmp_path))
    lack = tokens.lacking(290, 4, apart=False)
    assert (
        lack is not None
        and "no document of 290 tokens (the longest of the 17 of 1,000 documents looked at" in lack.has
    )
    assert lack.has.endswith("; no more were looked at after 5,000 characters)")
    assert "; no more were looked at" in tokens.notes("x", "y")[0]


def test_rows_are_counted_once_however_many_models_look_at_them(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(read, "SMALL", 0)
    corpus = read_corpus(f"text:{write(tmp_path, 'x.jsonl', as_json_lines(TEXTS))}")
    for _ in range(2):
        assert tokens_of(corpus, tokenizer).windows(64, 64, 50, bos=False)
    assert (corpus.census.looked_at, corpus.census.skipped) == (10, {"null": 1})


def test_a_document_of_a_set_that_is_not_counted_fits_its_column():
    from pipeline.store.schema import to_arrow
    from tests.support.rows import perplexity_row

    assert to_arrow("perplexity", [perplexity_row(0, document=(3 << 40) + 7)])["document"].to_pylist() == [
        (3 << 40) + 7
    ]


LONG = "".join(f"Line {i} says {' '.join(f'w{i * j % 977}' for j in range(1, 9))}.\n" for i in range(4000))


@pytest.fixture
def long_file(tmp_path, monkeypatch):
    """A file that is longer than is read whole."""
    monkeypatch.setattr(read, "WHOLE_TEXT", 50_000)
    return write(tmp_path, "long.txt", LONG)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("sample", ["spread", "first", "random"])
def test_windows_of_a_long_text_are_stretches_of_its_tokens(tmp_path, long_file, style, sample):
    """The judge is the library on the whole text, and the byte at which each token begins."""
    made = STYLES[style]()
    tokens = tokens_of(read_corpus(DatasetEntry(f"text:{long_file}", sample=sample)), saved(made, tmp_path))
    windows = tokens.windows(64, 64, 6, bos=False)
    whole = made.encode(LONG, add_special_tokens=False)
    first_token = {start: i for i, (start, _) in reversed(list(enumerate(whole.offsets)))}
    assert len(windows) == 6 and tokens.tokens < 3000
    for w in windows:
        assert tokens.document_of(w) is None
        at = first_token[w.start]
        assert tokens.held(w, 64).tolist() == whole.ids[at : at + 64]
    places = [w.start / len(LONG) for w in windows]
    if sample == "spread":
        assert places == pytest.approx([(i + 0.5) / 6 for i in range(6)], abs=0.02)
    assert (max(places) < 0.1) == (sample == "first")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SMOLLM2", "GEMMA3", "reference-neox"])
def test_passages_of_real_documentation_have_the_ids_of_the_whole(model):
    """The path of a model's folder comes from the environment variable of this name."""
    if model.isupper() and model not in os.environ:
        pytest.skip(f"needs {model}=FOLDER, a model with its tokenizer.json")
    file = find_model(os.environ.get(model, model)).tokenizer_file
    text = read_text("pydocs").text
    whole = Tokenizer.from_file(file).encode(text, add_special_tokens=False)
    first_byte = np.cumsum([0, *(len(character.encode()) for character in text)])
    first_token = {int(first_byte[start]): i for i, (start, _) in reversed(list(enumerate(whole.offsets)))}
    found = list(
        passages(LongText(HeldBytes(text.encode()), "x"), open_tokenizer(file), 256, 40, "spread", 0)
    )
    assert len(found) == 40
    for passage, _ in found:
        at = first_token[passage.first_byte]
        assert passage.ids.tolist() == whole.ids[at : at + 256]


@pytest.mark.parametrize("style", ["llama 2", "metaspace"])
def test_the_end_of_a_passage_that_is_cut_off_is_not_used(tmp_path, monkeypatch, style):
    """Slots of hardly more bytes than their tokens take, so that many a window would reach to where its slot
    cuts a word."""
    monkeypatch.setattr("workers.corpora.passages.MARGIN", 90)
    monkeypatch.setattr("workers.corpora.passages.LEAST_BYTES", 1)
    monkeypatch.setattr("workers.corpora.passages.MOST_BYTES", 1)
    rng = random.Random(0)
    text = "".join(" ".join(rng.choices(TRAINING.split(), k=8)) + "\n" for _ in range(1000))
    made = STYLES[style]()
    whole = made.encode(text, add_special_tokens=False)
    first_token = {start: i for i, (start, _) in reversed(list(enumerate(whole.offsets)))}

    tokenizer = open_tokenizer(saved(made, tmp_path))
    held = 0
    for length in range(10, 40):
        for passage, _ in passages(
            LongText(HeldBytes(text.encode()), "x"), tokenizer, length, 40, "spread", 0
        ):
            at = first_token[passage.first_byte]
            assert passage.ids.tolist() == whole.ids[at : at + length]
            held += 1
    assert held > 100


def test_as_many_windows_as_a_long_text_can_give(long_file, tokenizer):
    tokens = tokens_of(read_corpus(f"text:{long_file}"), tokenizer)
    windows = tokens.windows(64, 64, 100, bos=False)
    assert len(windows) == 100
    assert all(b.start - a.start >= 64 for a, b in pairwise(windows)), "none lies over another"


def test_a_passage_begins_at_a_line_a_space_or_a_character_and_never_inside_one(tmp_path):
    for text in (LONG, LONG.replace("\n", " "), "ä€😀" * 40_000, "a" * 300_000):
        source = HeldBytes(text.encode())
        tokenizer = open_tokenizer(saved(byte_style(), tmp_path))
        found = list(passages(LongText(source, "x"), tokenizer, 40, 5, "spread", 0))
        assert len(found) == 5
        for passage, said in found:
            behind = source.data[: passage.first_byte].decode()
            assert source.data[passage.first_byte :].decode().startswith(said)
            assert "\n" not in text or behind.endswith("\n")
            assert " " not in text or "\n" in text or said.startswith(" ")


def test_a_fault_in_a_passage_names_the_byte_of_the_file(tmp_path):
    data = LONG.encode()
    at = data.index(b"Line 2000")
    file = write(tmp_path, "x.txt", data[:at] + b"\xff" * 2000 + data[at:])
    tokenizer = open_tokenizer(saved(byte_style(), tmp_path))
    text = LongText(FileBytes(file, file.stat().st_size), "x.txt")
    with pytest.raises(CorpusError, match=rf"x.txt is not UTF-8 text \(byte {at}\)|byte {at + 1}\d\d\d"):
        list(passages(text, tokenizer, 200, 300, "first", 0))


def test_a_folder_of_prose_is_a_document_per_file(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr("workers.corpora.prose.WHOLE_DOCUMENT", 20_000)
    for i in range(3):
        write(tmp_path, f"books/{i}.txt", words(i, 100))
    write(tmp_path, "books/3.md", LONG)
    tokens = tokens_of(read_corpus(f"text:{tmp_path}/books"), tokenizer)
    windows = tokens.windows(64, 64, 8, bos=False)
    assert [tokens.document_of(w) for w in windows] == [0, 0, 1, 1, 2, 2, 3, 3]
    texts = [words(0, 100), words(1, 100), words(2, 100), LONG]
    made = byte_style()
    for w in windows:
        assert made.decode(tokens.held(w, 64).tolist()) == texts[w.document or 0][w.start : w.start + 64]


def test_joined_files_are_one_text_and_long_ones_of_a_large_set_are_not_lost(
    tmp_path, tokenizer, monkeypatch
):
    for i in range(2):
        write(tmp_path, f"books/{i}.txt", LONG)
    monkeypatch.setattr("workers.corpora.read.WHOLE_DOCUMENT", 50_000)
    entry = DatasetEntry(f"text:{tmp_path}/books", documents="joined")
    corpus = read_corpus(entry)
    assert isinstance(corpus, Corpus) and corpus.text == f"{LONG}\n\n{LONG}"

    monkeypatch.setattr(read, "SMALL", 1000)
    monkeypatch.setattr(read, "WHOLE_TEXT", 50_000)
    tokens = tokens_of(read_corpus(entry), tokenizer)
    windows = tokens.windows(64, 64, 4, bos=False)
    assert [w.document for w in windows] == [0, 0, 1, 1] and {tokens.document_of(w) for w in windows} == {
        None
    }
    assert all(byte_style().decode(tokens.held(w, 64).tolist()) in LONG for w in windows)


def test_joined_rows_of_a_large_set_are_joined_block_by_block(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(read, "SMALL", 1000)
    texts = [words(i, 5) for i in range(200)]
    file = write(tmp_path, "x.parquet", as_parquet(texts, rows_per_group=50))
    tokens = tokens_of(read_corpus(DatasetEntry(f"text:{file}", documents="joined")), tokenizer)
    windows = tokens.windows(256, 256, 4, bos=False)
    joined = "\n\n".join(texts)
    for w in windows:
        assert tokens.document_of(w) is None
        assert byte_style().decode(tokens.held(w, 256).tolist()) in joined
    assert len({w.document for w in windows}) == 4


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([0, 1, 2], None),
        ([0, 1, 0], "x: 1 of these 3 documents has the text of another: it is no independent unit"),
        ([0] * 10, "x: 9 of these 10 documents have the text of another: they are no independent units"),
    ],
)
def test_documents_of_equal_text_are_counted_in_the_plan(tmp_path, tokenizer, numbers, said):
    file = write(tmp_path, "equal.jsonl", as_json_lines([words(i) for i in numbers]))
    tokens = tokens_of(read_corpus(f"text:{file}"), tokenizer)
    tokens.windows(64, 64, len(numbers), bos=False)
    assert tokens.notes("x", "y")[1:] == ([said] if said else [])


def test_slots_are_as_long_as_the_documentation_says_and_first_takes_the_first(tmp_path, tokenizer):
    assert slot_bytes(10**7, 64, 8) == 16 * 64 + 1024 == 2048
    assert slot_bytes(10**4, 64, 8) == 6 * 64 + 1024, "no room"

    text = LongText(HeldBytes(b"the rain fell\n" * 10**5), "x")
    starts = [
        passage.first_byte for passage, _ in passages(text, open_tokenizer(tokenizer), 64, 4, "first", 0)
    ]
    assert [start // 2048 for start in starts] == [0, 1, 2, 3]
