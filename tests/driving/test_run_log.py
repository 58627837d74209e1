"""log.jsonl: one JSON object per line, complete after every unit, kept over turns; objects of lines in an
object store."""

import json
from pathlib import Path

import pytest

from pipeline.store import run_log
from pipeline.store.run_log import RunLog
from pipeline.store.run_store import RunStore
from tests.support.command import run_inline


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_run_logs_its_start_each_unit_and_its_end_and_goes_on_when_resumed(sweep_file, out):
    sweep = sweep_file(policies="[knorm, random]")
    assert run_inline(sweep, out) == 0
    logged = lines(out / "log.jsonl")
    assert [line["event"] for line in logged] == ["start", "unit", "end"]
    start, unit, end = logged
    assert (start["cells"], start["units"]) == (5, 1)
    assert unit["task"] == "perplexity" and unit["rows"] == 15 and unit["failed"] == 0 and unit["seconds"] > 0
    assert (end["done"], end["failed"], end["reason"]) == (5, 0, "all units ended")
    assert {line["run_id"] for line in logged} == {json.loads((out / "run.json").read_text())["run_id"]}
    (next((out / "perplexity").glob("*.parquet"))).unlink()
    run_inline(sweep, out)
    assert [line["event"] for line in lines(out / "log.jsonl")] == ["start", "unit", "end"] * 2


def test_failures_and_warnings_are_logged_with_their_reason(sweep_file, out, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("workers.worker.run_unit", broken)
    assert run_inline(sweep_file(), out) == 1
    failed = next(line for line in lines(out / "log.jsonl") if line["event"] == "failed")
    assert (failed["error_type"], failed["message"], failed["cells"]) == (
        "RuntimeError",
        "broken on purpose",
        3,
    )


def test_an_interrupted_run_says_so(sweep_file, out, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("workers.worker.Worker.run", interrupted)
    assert run_inline(sweep_file(), out) == 130
    assert lines(out / "log.jsonl")[-1]["reason"].startswith("KeyboardInterrupt")


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    with RunLog(RunStore(str(tmp_path)), "r") as log:
        log.write("one", value=1)
        assert lines(tmp_path / "log.jsonl")[0]["value"] == 1


def test_numbers_that_json_does_not_have_are_refused(tmp_path):
    with RunLog(RunStore(str(tmp_path)), "r") as log, pytest.raises(ValueError, match="JSON"):
        log.write("x", value=float("nan"))


class Puts:
    """The part of a store that the log uses, as an object store has it."""

    directory = "s3://bucket/run"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, name: str, content: bytes, *, overwrite: bool = False) -> bool:
        assert name not in self.objects
        self.objects[name] = content
        return True


def test_in_an_object_store_lines_are_gathered_into_objects(monkeypatch):
    monkeypatch.setattr(run_log, "FLUSH_LINES", 3)
    store = Puts()
    with RunLog(store, "r") as log:  # type: ignore[arg-type]
        for number in range(7):
            log.write("x", number=number)
    assert [len(content.splitlines()) for content in store.objects.values()] == [3, 3, 1]
    assert sorted(store.objects) == list(store.objects), "names sort in order"
