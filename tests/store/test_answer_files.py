"""Answers that are kept until their rows are there: what is put is read again, what is broken is left aside,
nothing stays."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.driving.compaction import compact
from pipeline.store.answer_files import AnswerFiles
from pipeline.store.run_store import RunStore
from pipeline.store.schema import to_arrow
from pipeline.store.store_errors import RunUnreadableError
from tests.support.rows import tasks_rows
from tests.support.s3_server import s3_server, settings
from workers.messages.kept_answers import KeptAnswers
from workers.messages.telling import News, Telling

FIRST = KeptAnswers("a", "1" * 32, [[-0.1, True, [0, 2, 3, 1, 1 / 3]]])
SECOND = KeptAnswers("a", "2" * 32, [[[5, 7], [0, 2, 3, 1, 2.0]], [[9], [0, 0, 1, 0, 1e-300]]])
OTHER = KeptAnswers("b", "1" * 32, [])


@pytest.fixture(params=["local", "s3"])
def anywhere(request, tmp_path, monkeypatch) -> Iterator[RunStore]:
    """A run directory here and one in an object store."""
    if request.param == "local":
        yield RunStore(str(tmp_path / "run"), create=True)
        return
    with s3_server() as address:
        for name, value in settings(address).items():
            monkeypatch.setenv(name, value)
        yield RunStore("s3://bucket/run")


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(str(tmp_path / "run"), create=True)


def kept(store: RunStore) -> list[Path]:
    return sorted(Path(store.directory).glob("answers/*"))


def test_what_is_put_is_read_by_the_next_driver_with_all_bits_and_deleted_with_its_cell(anywhere):
    files = AnswerFiles(anywhere)
    assert files.of(["a"]) == () and files.cells == frozenset()
    files.add([FIRST, OTHER])
    files.add([SECOND])
    for each in (files, AnswerFiles(anywhere)):
        assert each.cells == {"a", "b"}
        assert sorted(each.of(["a"]), key=lambda answers: answers.asked) == [FIRST, SECOND]
        assert each.of(["b", "c"]) == (OTHER,)
    files.drop(["a", "c"])
    assert AnswerFiles(anywhere).of(["a", "b"]) == (OTHER,)
    files.drop(["b"])
    assert anywhere.names("answers", "") == []


def test_nothing_is_left_of_the_folder(store):
    files = AnswerFiles(store)
    files.add([FIRST])
    assert len(kept(store)) == 1
    files.drop(["a"])
    assert os.listdir(store.directory) == []


def broken(content: bytes) -> dict[str, bytes]:
    return {
        "cut off": content[:-9],
        "empty": b"",
        "bytes": b"\xff\x00",
        "no answers": json.dumps({"cell_id": "a"}).encode(),
        "a list": b"[1]",
        "brackets": b"[" * 100_000,
        "other types": json.dumps(vars(FIRST) | {"asked": 1}).encode(),
        "no list": json.dumps(vars(FIRST) | {"answers": 3}).encode(),
        "one key more": json.dumps(vars(FIRST) | {"more": 3}).encode(),
    }


@pytest.mark.parametrize("what", broken(b"{}"))
@pytest.mark.parametrize("named", ["as it was", "by its content"])
def test_a_broken_file_is_left_aside_and_deleted_with_the_others(what, named, store):
    files = AnswerFiles(store)
    files.add([FIRST])
    (file,) = kept(store)
    content = broken(file.read_bytes())[what]
    if named == "by its content":
        file.unlink()
        file = file.with_name(f"a-{hashlib.sha256(content).hexdigest()[:12]}.jsonl")
    file.write_bytes(content)
    files = AnswerFiles(store)
    files.add([SECOND])
    assert files.of(["a"]) == (SECOND,)
    files.drop(["a"])
    assert kept(store) == []


def test_a_digit_that_differs_is_seen(store):
    files = AnswerFiles(store)
    files.add([FIRST])
    (file,) = kept(store)
    file.write_bytes(file.read_bytes().replace(b"-0.1", b"-0.2"))
    assert files.of(["a"]) == ()


@pytest.mark.parametrize("name", ["a-0123456789ab.jsonl", "notes.txt", "notes.jsonl", "-.jsonl"])
def test_what_others_put_there_harms_nothing(name, store):
    """Folders of such names too."""
    folder = Path(store.directory) / "answers"
    for place in (folder / name, folder / f"{name}.d" / name):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("{}\n")
    (folder / "a-000000000000.jsonl").mkdir()
    files = AnswerFiles(store)
    files.add([FIRST])
    assert files.of(["a", "", "notes"]) == (FIRST,)
    files.drop(["a"])
    assert (folder / f"{name}.d" / name).exists()


def test_a_file_in_the_folders_place_is_refused(store):
    (Path(store.directory) / "answers").write_text("x")
    with pytest.raises(RunUnreadableError, match="answers: is no folder"):
        AnswerFiles(store)


def test_compaction_deletes_the_answers_whose_rows_are_stored_and_no_others(store):
    AnswerFiles(store).add([FIRST, OTHER])
    store.add_part("tasks", "unit", to_arrow("tasks", tasks_rows([1.0], cell_id="a")))
    assert compact(store, ("perplexity",)) == 0
    assert AnswerFiles(store).cells == {"a", "b"}
    compact(store)
    assert AnswerFiles(store).cells == {"b"} and AnswerFiles(store).of(["b"]) == (OTHER,)


def told(monkeypatch, seconds: float) -> tuple[Telling, list[News]]:
    monkeypatch.setattr("workers.messages.telling.ROWS_SECONDS", seconds)
    news: list[News] = []
    return Telling(news.append), news


def test_answers_are_told_once_at_intervals(monkeypatch):
    telling, news = told(monkeypatch, 3600.0)
    telling.answered(FIRST)
    assert news == []
    monkeypatch.setattr("workers.messages.telling.ROWS_SECONDS", 0.0)
    telling.answered(SECOND)
    telling.worked(1.0)
    assert [each.answers for each in news] == [[FIRST, SECOND]] and news[0].rows == []


def test_answers_of_a_cell_whose_rows_are_there_are_not_told(monkeypatch):
    telling, news = told(monkeypatch, 3600.0)
    telling.answered(FIRST)
    telling.answered(OTHER)
    monkeypatch.setattr("workers.messages.telling.ROWS_SECONDS", 0.0)
    telling.give([{"cell_id": "a"}])
    assert [(each.rows, each.answers) for each in news] == [([{"cell_id": "a"}], [OTHER])]
