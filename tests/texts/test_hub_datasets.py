"""Sets of the hub by the real datasets library over HTTP, from a hub of one set on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.datasets_made import as_parquet, words
from tests.support.hub_server import Hub, hub
from workers.corpora.hub import unreachable

pytestmark = pytest.mark.slow

FILES = {
    f"data/train-{shard:05d}-of-00004.parquet": as_parquet(
        [words(shard * 1000 + i, 100) for i in range(300)], rows_per_group=50
    )
    for shard in range(4)
} | {"data/test-00000-of-00001.parquet": as_parquet([None, *(words(9000 + i, 100) for i in range(30))])}

ROOT = Path(__file__).parents[2]
CODE = """
import sys
from workers.corpora import CorpusError, DatasetEntry, read_corpus, tokens_of
file, sample, *names = sys.argv[1:]
for name in names:
    try:
        corpus = read_corpus(DatasetEntry(name, sample=sample))
        tokens = tokens_of(corpus, file)
        windows = tokens.windows(64, 64, 4, bos=False)
        print(corpus.fingerprint, [w.document for w in windows], corpus.census.words(), sep="|")
    except CorpusError as error:
        print(error)
"""


@pytest.fixture
def ask(tmp_path, tiny_model_dir):
    """``ask(hub, sample, *names)``: what a fresh process makes of sets of the hub, a line each."""

    def asked(server: Hub, sample: str, *names: str, offline: bool = False, code: str = CODE) -> list[str]:
        own = {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": str(int(offline)),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-c", code, str(tiny_model_dir / "tokenizer.json"), sample, *names],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, **own},
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout.splitlines()

    return asked


def test_rows_of_a_streamed_set_are_documents_of_every_file(ask):
    with hub(FILES) as server:
        spread = ask(server, "spread", "hf:org/set:train", "hf:org/set")
        train, test = (line.split("|") for line in spread)
        first = ask(server, "first", "hf:org/set:train")[0].split("|")
        assert [int(number) >> 40 for number in train[1].strip("[]").split(", ")] == [0, 1, 2, 3]
        assert first[1] == "[0, 1, 2, 3]" and first[0] == train[0] != test[0]
        assert test[2] == "1 null"

        server.commit = "f" * 40
        assert ask(server, "spread", "hf:org/set")[0].split("|")[0] != test[0], (
            "another commit is another text"
        )


def test_offline_the_cache_is_read_whatever_the_split(ask):
    with hub(FILES) as server:
        (missing,) = ask(server, "spread", "hf:org/set", offline=True)
        assert "cannot be loaded" in missing and "Local files work as text:PATH" in missing
        ask(server, "spread", code="import datasets; datasets.load_dataset('org/set', split='test')")
        asked = len(server.requests)
        test, train, none = ask(
            server, "spread", "hf:org/set:test", "hf:org/set:train", "hf:org/set:nosuch", offline=True
        )
        assert len(server.requests) == asked
    assert len(set(test.split("|")[1].split(", "))) == len(set(train.split("|")[1].split(", "))) == 4
    assert "cannot be loaded" in none and "test" in none


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(ask):
    with hub(FILES) as server:
        server.busy = 2
        assert ask(server, "first", "hf:org/set:train")[0].split("|")[1] == "[0, 1, 2, 3]"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (429, "429: too many requests: wait, or log in"),
        (503, "503: it is out of order"),
        (401, "401: log in"),
    ],
)
def test_a_hub_that_answers_otherwise_is_named_with_its_answer(ask, status, said):
    with hub(FILES, status) as server:
        (line,) = ask(server, "first", "hf:org/set:train")
    assert f"dataset 'hf:org/set:train': cannot be loaded (the hub answered {said}" in line


def test_a_split_or_a_set_that_is_not_there_is_refused(ask):
    with hub(FILES) as server:
        split, name = ask(server, "first", "hf:org/set:nosuch", "hf:org/other")
    assert "nosuch" in split and "['train', 'test']" in split
    assert "hf:org/other" in name and "is the name right" in name


def test_any_other_error_is_one_line():
    assert str(unreachable("hf:a/b", ValueError("first\nsecond"))).startswith(
        "dataset 'hf:a/b': cannot be loaded (ValueError: first);"
    )
    assert "\n" not in str(unreachable("hf:a/b", KeyError()))
