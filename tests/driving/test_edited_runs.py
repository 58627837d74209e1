"""Run directories as somebody left them: every command says in one line what is wrong, and writes over
nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.driving.planned_cells import COLUMNS
from pipeline.store.run_store import RunStore
from pipeline.store.schema import PROTOCOL_VERSION, SCHEMA_VERSION, to_arrow
from pipeline.store.store_errors import RunUnreadableError
from tests.support.command import run_inline
from tests.support.rows import NASTY, failure_row, perplexity_row, write_run
from tests.support.thinned import thinned

RUN = {
    "run_id": "r",
    "name": "n",
    "started_at": "t",
    "schema_version": 1,
    "protocol_version": 0,
    "planned": {"perplexity": 2},
    "planned_rows": {"perplexity": 4},
}


def with_(**changes: object) -> bytes:
    return json.dumps(RUN | changes).encode()


BROKEN = {
    b"[]": "holds a list where a run's settings by name belong",
    b"null": "holds null where",
    b"3": "holds a number where",
    b"{}": "has no run_id, which every run has",
    b"": "is not JSON",
    b"{": "is not JSON",
    b"\xff\xfe{": "is not UTF-8 text",
    b"[" * 100_000: "is nested too deeply",
    b'{"run_id": ' + b"9" * 10_000 + b"}": "is not JSON",
    with_(run_id=""): "run_id: ",
    with_(seed=10**30): "is not JSON (10000000000000000000... is larger than any number of a run)",
    with_(run_id=7): "run_id: should be a valid string (got 7)",
    with_(planned=[]): "planned: should be a valid dictionary (got [])",
    with_(planned={"perplexity": -1}): "planned.perplexity: should be greater than or equal to 0",
    with_(planned={"perplexity": "2"}): "planned.perplexity: should be a valid integer",
    with_(planned={"perplexity": float("nan")}): "NaN is no number of JSON",
    with_(planned_rows=[]): "planned_rows.dict",
    with_(resumed_at="today"): "resumed_at: should be a valid list",
    with_(models={}): "models: should be a valid list",
    with_(models=[3]): "models.0: should be a valid dictionary",
    with_(git=3): "git: should be a valid dictionary",
    with_(name="\ud800"): "is not UTF-8 text",
    with_(
        schema_version=SCHEMA_VERSION + 1, kvsweep_version="9.9"
    ): "was written by a newer kvsweep (9.9; schema_version",
    with_(protocol_version=PROTOCOL_VERSION + 1): "was written by a newer kvsweep (None; protocol_version",
    with_(schema_version=True): "schema_version: should be a valid integer",
}


def ask(*words: object):
    return CliRunner().invoke(app, list(map(str, words)))


def refused(*words: object) -> str:
    done = ask(*words)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    (line,) = done.stderr.splitlines()
    assert done.stdout == ""
    return line


@pytest.mark.parametrize("content", BROKEN, ids=BROKEN.values())
def test_a_run_json_that_is_none_is_refused_by_every_command_and_left_as_it_is(content, tmp_path):
    directory = tmp_path / "run"
    write_run(str(directory), {"perplexity": [perplexity_row()]})
    (directory / "run.json").write_bytes(content)
    for words in (
        ["status"],
        ["compact"],
        ["report"],
        ["export", "--to", "mlflow", "--store", tmp_path / "new"],
    ):
        line = refused(*words, directory)
        assert f"{directory}/run.json: {BROKEN[content]}" in line or BROKEN[content] in line, line
    assert (directory / "run.json").read_bytes() == content and not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"[]", b"{}", with_(planned=[]), with_(schema_version=99)], ids=range(4))
def test_nor_does_a_run_take_it_over(content, sweep_file, out):
    out.mkdir()
    (out / "run.json").write_bytes(content)
    assert BROKEN.get(content, "newer kvsweep") in refused("run", sweep_file(), "--inline", "--out", out)
    assert [file.name for file in out.iterdir()] == ["run.json"] and (
        out / "run.json"
    ).read_bytes() == content


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["run.json", "cells.parquet", "driver.json"])
def test_what_has_a_stored_file_s_name_and_is_none_is_refused_at_once(name, kind, tmp_path):
    write_run(str(tmp_path), {"perplexity": [perplexity_row()]}, planned={"perplexity": 2})
    write_cells(tmp_path)
    place = tmp_path / name
    place.unlink(missing_ok=True)
    {
        "pipe": lambda: os.mkfifo(place),
        "device": lambda: place.symlink_to("/dev/zero"),
        "folder": place.mkdir,
    }[kind]()
    if name == "driver.json":
        assert "driver.json is unreadable" in ask("status", tmp_path).stdout
    else:
        assert f"{place}: is no file (a folder, a pipe or a device)" in refused("status", tmp_path)


@pytest.mark.parametrize("name", thinned(["perplexity", "failures", "answers"], 1))
def test_a_file_in_the_place_of_a_folder_refuses_a_run_at_its_start(name, sweep_file, out):
    assert ask("run", sweep_file(), "--inline", "--out", out).exit_code == 0
    shutil.rmtree(out / name, ignore_errors=True)
    (out / name).write_text("mine")
    assert f"{out / name}: is no folder; move it away" in refused(
        "run", sweep_file(), "--inline", "--out", out
    )
    assert (out / name).read_text() == "mine"


def test_a_run_json_of_a_gigabyte_is_not_read(tmp_path):
    write_run(str(tmp_path / "run"), {"perplexity": [perplexity_row()]})
    with (tmp_path / "run" / "run.json").open("wb") as file:
        file.truncate(2**31)
    assert "is larger than 256 MiB" in refused("status", tmp_path / "run")


def test_a_run_json_of_the_first_version_is_read(tmp_path):
    """It had one number of planned rows for all tasks."""
    write_run(str(tmp_path), {"perplexity": [perplexity_row()]})
    (tmp_path / "run.json").write_bytes(with_(planned_rows=4))
    write_cells(tmp_path)
    done = ask("status", tmp_path)
    assert done.exit_code == 0 and "of 4 rows" in done.stdout, done.output
    assert ask("report", tmp_path).exit_code == 0


def spoilt(file: Path, column: str) -> None:
    """The values of one column of a part overwritten, under a footer that says nothing of it."""
    place = next(
        pq.read_metadata(file).row_group(0).column(i)
        for i in range(pq.read_metadata(file).num_columns)
        if pq.read_metadata(file).row_group(0).column(i).path_in_schema == column
    )
    content = bytearray(file.read_bytes())
    start, size = place.data_page_offset, place.total_compressed_size
    start = min(start, place.dictionary_page_offset or start)
    content[start : start + size] = b"\xff" * size
    file.write_bytes(content)


def test_broken_values_under_a_sound_footer_are_found_at_the_report_and_mended_by_the_next_run(
    sweep_file, out
):
    sweep = sweep_file()
    assert run_inline(sweep, out) == 0
    named = ["cell_id", "window_index", "nll_sum"]
    whole = RunStore(str(out)).scan("perplexity").select(named).collect().sort(named)
    (file,) = (out / "perplexity").glob("*.parquet")
    spoilt(file, "nll_sum")
    RunStore(str(out)).add_part("perplexity", "other", to_arrow("perplexity", [perplexity_row()]))
    assert f"{out}/perplexity/{file.name}: is no readable Parquet file" in refused("compact", out)
    assert "cannot be read" in refused("report", out)

    done = ask("run", sweep, "--inline", "--out", out)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    assert (
        "error: no report: 1 parts could not be read and were set aside; the same command runs their cells"
        in done.stderr
    )
    assert run_inline(sweep, out) == 0
    found = RunStore(str(out)).scan("perplexity").filter(pl.col("model") != "toy").select(named)
    assert found.collect().sort(named).equals(whole)


def test_small_files_that_cannot_be_put_together_end_no_run(sweep_file, out, monkeypatch, capsys):
    def unreadable(*_: object) -> int:
        raise RunUnreadableError("run/perplexity/x.parquet: is no readable Parquet file")

    monkeypatch.setattr("pipeline.driving.drive.COMPACT_EVERY", 1)
    monkeypatch.setattr("pipeline.driving.drive.compact", unreadable)
    assert run_inline(sweep_file(), out) == 0
    assert "warning: small files were not put together: run/perplexity/x.parquet" in capsys.readouterr().err


CELLS = {
    "no file of that kind": b"PAR1xxxx",
    "cut off": b"",
}


@pytest.mark.parametrize("content", CELLS.values(), ids=CELLS)
def test_cells_parquet_that_cannot_be_read_is_named_with_what_writes_it_anew(content, tmp_path):
    write_run(str(tmp_path), {"perplexity": [perplexity_row()]})
    (tmp_path / "cells.parquet").write_bytes(content)
    line = refused("status", tmp_path)
    assert f"{tmp_path}/cells.parquet: is no readable Parquet file" in line and "writes it anew" in line


@pytest.mark.parametrize("name", COLUMNS)
def test_cells_parquet_with_other_columns_is_refused(name, tmp_path):
    write_run(str(tmp_path), {"perplexity": [perplexity_row()]})
    frame = pl.DataFrame(schema=COLUMNS)
    for changed in (frame.drop(name), frame.with_columns(pl.lit([1]).alias(name))):
        changed.write_parquet(tmp_path / "cells.parquet")
        assert f"has no column {name} of type {COLUMNS[name]}" in refused("status", tmp_path)


def write_cells(directory: Path) -> None:
    pl.DataFrame(
        {"task": ["perplexity"] * 2, "cell_id": ["a", "b"], "rows": [2, 2], "never_prunes": [False] * 2},
        schema=COLUMNS,
    ).write_parquet(directory / "cells.parquet")


@pytest.mark.parametrize("message", [None, "", "\n", NASTY, "\x1b[2Jgone"])
def test_failures_with_any_message_are_shown_in_one_plain_line(message, tmp_path):
    write_run(
        str(tmp_path), {"failures": [failure_row(cell_id="a", message=message)]}, planned={"perplexity": 2}
    )
    write_cells(tmp_path)
    done = ask("status", tmp_path)
    assert done.exit_code == 0, done.output
    assert all(line.isprintable() for line in done.stdout.splitlines()) and "1 failed" in done.stdout
    assert ask("report", tmp_path).exit_code == 0


@pytest.mark.parametrize("index", [None, -1, 2**31 - 1])
def test_a_row_with_a_window_that_cannot_be_is_nobody_s(index, sweep_file, out):
    sweep = sweep_file()
    assert run_inline(sweep, out) == 0
    cell = RunStore(str(out)).scan("perplexity").select("cell_id").first().collect().item()
    row = perplexity_row(0, cell_id=cell) | {"window_index": index}
    RunStore(str(out)).add_part("perplexity", "odd", to_arrow("perplexity", [row]))
    done = ask("run", sweep, "--inline", "--out", out)
    assert done.exit_code == 0 and "0 to do" in done.stderr, done.output
