"""What a run in an object store has to do, whatever the server: classes of tests for the servers that we
have."""

import io
import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import obstore
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.store.lease import Lease
from pipeline.store.run_store import RunStore
from pipeline.store.schema import to_arrow
from pipeline.sweepfile.sweep_error import SweepError
from tests.support.command import run_inline
from tests.support.rows import perplexity_row


def ask(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)))


def stored() -> dict[str, bytes]:
    store = RunStore("s3://bucket/run")
    names = [name for task in ("perplexity", "retrieval", "failures") for name in store.parts(task)]
    return {name: store.get(name) or b"" for name in names}


def table(number: int) -> pa.Table:
    return to_arrow(
        "perplexity", [perplexity_row(number, nll=np.random.default_rng(number).random(20_000, np.float32))]
    )


def measured(directory: str, task: str) -> pl.DataFrame:
    """The rows of a run but for what differs from one run to the next."""
    rows = RunStore(directory).scan(task).drop("run_id", "seconds", strict=False).collect()
    return rows.sort(
        [name for name in ("cell_id", "window_index", "depth", "question_index") if name in rows.columns]
    )


COMMANDS = {"run": "run {sweep} --inline --out {run}", "status": "status {run}", "report": "report {run}"}


def refused(command: str, sweep, run: str = "s3://bucket/run") -> str:
    """The one line that the command says, within seconds."""
    started = time.monotonic()
    done = ask(*COMMANDS[command].format(sweep=sweep, run=run).split())
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    assert time.monotonic() - started < 30
    (line,) = done.stderr.splitlines()
    assert done.stdout == "" and run in line and "secret-of-the-test" not in line
    return line


@pytest.fixture(scope="module")
def finished(server, tmp_path_factory, tiny_model_dir, text_file):
    """A whole run: its sweep file, and what was printed."""
    folder = tmp_path_factory.mktemp("remote")
    sweep = folder / "sweep.yaml"
    sweep.write_text(
        f"name: tiny\nmodels: [{tiny_model_dir}]\ndatasets: ['text:{text_file}']\ndevices:"
        " [cpu]\nkeep_ratios: [0.9, 0.5]\nprune_after: [16]\nperplexity: {window: 64, stride: 64, windows:"
        " 3}\nretrieval: {kinds: [passkey], context_tokens: [240], depths: [0.5], questions: 2}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.items():
            patch.setenv(name, value)
        done = ask("run", sweep, "--inline", "--threads", "1", "--out", "s3://bucket/run")
    return sweep, done


class StoreRuns:
    """A subclass's module has ``finished`` and the fixture ``server``: the environment of a server with the
    bucket ``bucket``."""

    @pytest.fixture(autouse=True)
    def environment(self, server, monkeypatch):
        for name, value in server.items():
            monkeypatch.setenv(name, value)

    def test_a_run_goes_to_the_bucket_and_ends_with_the_address_of_its_report(self, finished):
        _, done = finished
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[-1] == "s3://bucket/run/report.html"
        store = RunStore("s3://bucket/run")
        assert (store.get("report.html") or b"").startswith(b"<!")
        assert store.scan("failures").collect().is_empty()
        numbers = store.scan("perplexity").collect()["window_index"]
        assert sorted(Counter(numbers).values()) == [3, 3, 3] and numbers.min() > 0
        assert store.scan("retrieval").collect().height == 6

    def test_its_rows_are_those_of_a_run_on_disk(self, finished, tmp_path):
        sweep, _ = finished
        assert run_inline(sweep, tmp_path / "local") == 0
        for task in ("perplexity", "retrieval"):
            here, there = measured(str(tmp_path / "local"), task), measured("s3://bucket/run", task)
            assert here.height >= 6 and here.equals(there), task

    @pytest.mark.slow
    def test_a_run_on_disk_is_taken_up_in_the_bucket_and_one_in_the_bucket_on_disk(self, finished, tmp_path):
        sweep, _ = finished
        assert run_inline(sweep, tmp_path / "local") == 0
        lost = next((tmp_path / "local" / "perplexity").glob("*.parquet"))
        lost.unlink()
        moved = RunStore("s3://bucket/moved")
        for file in (tmp_path / "local").rglob("*.*"):
            moved.put(str(file.relative_to(tmp_path / "local")), file.read_bytes(), overwrite=True)
        done = ask("run", sweep, "--inline", "--threads", "1", "--out", "s3://bucket/moved")
        assert done.exit_code == 0 and " to do in 1 units" in done.stderr, done.output
        for task in ("perplexity", "retrieval"):
            assert measured("s3://bucket/moved", task).equals(measured("s3://bucket/run", task)), task
            for name in moved.parts(task):
                (tmp_path / "back" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "back" / name).write_bytes(moved.get(name) or b"")
        (tmp_path / "back" / "run.json").write_bytes(moved.get("run.json") or b"")
        done = ask("run", sweep, "--inline", "--out", tmp_path / "back")
        assert done.exit_code == 0 and "0 to do in 0 units" in done.stderr, done.output

    def test_a_run_compacted_in_the_bucket_has_the_same_rows_and_nothing_left_to_do(self, finished):
        sweep, _ = finished
        source, store = RunStore("s3://bucket/run"), RunStore("s3://bucket/compacted")
        for task in ("perplexity", "retrieval"):
            for name in source.parts(task):
                store.put(name, source.get(name) or b"")
            frame = source.scan(task).collect()
            store.add_part(task, "again", frame.to_arrow())
        store.put("run.json", source.get("run.json") or b"")
        before = measured("s3://bucket/compacted", "perplexity")
        done = ask("compact", "s3://bucket/compacted")
        assert done.exit_code == 0 and "files put together" in done.output, done.output
        assert len(store.parts("perplexity")) == 1 and measured("s3://bucket/compacted", "perplexity").equals(
            before
        )
        done = ask("run", sweep, "--inline", "--out", "s3://bucket/compacted")
        assert done.exit_code == 0 and "0 to do" in done.stderr, done.output

    def test_what_a_run_leaves_behind_holds_no_credentials_of_the_environment(self, finished, server):
        _, done = finished
        everything = [done.stdout.encode(), done.stderr.encode(), *stored().values()]
        store = RunStore("s3://bucket/run")
        everything += [store.get("run.json") or b"", store.get("report.html") or b""]
        assert len(everything) > 5 and all(everything[-2:])
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert not [content for content in everything if server[name].encode() in content], name

    def test_the_same_command_again_does_nothing(self, finished):
        sweep, _ = finished
        before, times = (
            stored(),
            len(json.loads(RunStore("s3://bucket/run").get("run.json") or b"").get("resumed_at", [])),
        )
        done = ask("run", sweep, "--inline", "--out", "s3://bucket/run/")
        assert done.exit_code == 0, done.output
        assert "0 to do" in done.stderr and done.stdout.splitlines()[-1] == "s3://bucket/run/report.html"
        assert stored() == before
        assert len(json.loads(RunStore("s3://bucket/run").get("run.json") or b"")["resumed_at"]) == times + 1

    def test_status_reads_the_bucket(self, finished):
        done = ask("status", "s3://bucket/run")
        assert done.exit_code == 0, done.output
        assert re.search(
            r"^perplexity: 3 cells planned, 3 .*, 0 failed, 0 missing$", done.stdout, re.MULTILINE
        )

    def test_what_is_lost_is_measured_again_and_nothing_else(self, finished):
        sweep, _ = finished
        before, rows = stored(), measured("s3://bucket/run", "retrieval")
        store = RunStore("s3://bucket/run")
        lost = store.parts("retrieval")
        for name in lost:
            store.delete(name)
        done = ask("run", sweep, "--inline", "--threads", "1", "--out", "s3://bucket/run")
        assert done.exit_code == 0, done.output
        after = stored()
        assert {name: content for name, content in after.items() if name not in lost} == {
            name: content for name, content in before.items() if name not in lost
        }
        assert measured("s3://bucket/run", "retrieval").equals(rows)

    @pytest.mark.slow
    def test_one_report_of_two_runs_wherever_they_lie(self, finished, sweep_file, tmp_path):
        other = sweep_file(keep_ratios="[0.7]")
        assert ask("run", other, "--inline", "--out", "s3://bucket/other").exit_code == 0
        assert run_inline(other, tmp_path / "local") == 0
        for number, second in enumerate(("s3://bucket/other", tmp_path / "local")):
            page = tmp_path / f"{number}.html"
            done = ask("report", "s3://bucket/run", second, "-o", page)
            assert done.exit_code == 0, done.output
            assert done.stdout.splitlines()[-1] == str(page)
            text = page.read_text()
            assert "s3://bucket/run" in text and str(second) in text

    def test_an_export_reads_the_bucket(self, finished, tmp_path):
        done = ask("export", "s3://bucket/run", "--to", "mlflow", "--store", tmp_path / "runs")
        assert done.exit_code == 0, done.output
        assert "3 tracked runs written, 0 skipped" in done.stdout

    def test_of_many_writers_of_a_name_one_wins_and_knows_it(self):
        contents = [bytes([number]) * 100_000 for number in range(4)]
        for unit in range(10):
            won: list[int] = []
            gate = threading.Barrier(len(contents))

            def write(
                number: int, unit: int = unit, gate: threading.Barrier = gate, won: list[int] = won
            ) -> None:
                store = RunStore("s3://bucket/race")
                gate.wait()
                if store.put(f"u{unit}", contents[number]):
                    won.append(number)

            threads = [threading.Thread(target=write, args=(number,)) for number in range(len(contents))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (winner,) = won
            assert RunStore("s3://bucket/race").get(f"u{unit}") == contents[winner]

    def test_many_writers_of_one_unit_lose_no_row(self):
        tables = [table(number) for number in range(4)]
        with ThreadPoolExecutor(4) as pool:
            names = list(
                pool.map(lambda rows: RunStore("s3://bucket/many").add_part("perplexity", "u", rows), tables)
            )
        store = RunStore("s3://bucket/many")
        assert store.parts("perplexity") == sorted(names)
        assert sorted(store.scan("perplexity").collect()["window_index"]) == [0, 1, 2, 3]

    def test_a_reader_beside_a_writer_never_sees_half_a_part(self):
        store, reader = RunStore("s3://bucket/half"), RunStore("s3://bucket/half")
        content = to_arrow(
            "perplexity", [perplexity_row(nll=np.random.default_rng(0).random(2_000_000, np.float32))]
        )
        writer = threading.Thread(
            target=lambda: [store.add_part("perplexity", f"u{n}", content) for n in range(4)]
        )
        writer.start()
        seen = looks = 0
        while writer.is_alive() or not looks:
            names = reader.parts("perplexity")
            for name in names[seen:]:
                assert pq.read_metadata(io.BytesIO(reader.get(name) or b"")).num_rows == 1
            seen, looks = len(names), looks + 1
        assert looks > 5 and len(reader.parts("perplexity")) == 4

    def test_a_second_driver_is_refused_and_stores_nothing(self, sweep_file):
        with Lease(RunStore("s3://bucket/driven")):
            line = refused("run", sweep_file(), "s3://bucket/driven")
            assert "another driver is running this sweep" in line
            listed = obstore.list(RunStore("s3://bucket/driven").store)
            assert [meta["path"] for batch in listed for meta in batch] == ["driver.json"]
        assert ask("run", sweep_file(), "--inline", "--out", "s3://bucket/driven").exit_code == 0

    def test_of_drivers_that_start_together_one_drives(self):
        gate, said = threading.Barrier(5), []

        def drive() -> None:
            gate.wait()
            try:
                with Lease(RunStore("s3://bucket/together")):
                    said.append("driving")
                    deadline = time.monotonic() + 30
                    while len(said) < 5 and time.monotonic() < deadline:
                        time.sleep(0.02)
            except SweepError:
                said.append("refused")

        threads = [threading.Thread(target=drive) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(said) == ["driving"] + ["refused"] * 4
        assert RunStore("s3://bucket/together").get("driver.json") is None

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_bucket_that_is_not_there_is_refused(self, command, sweep_file):
        line = refused(command, sweep_file(), "s3://nobucket/run")
        assert "there is no such bucket; create it or correct the address" in line
