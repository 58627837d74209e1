"""What is measured, planned, reported and refused is what the kept golden run has; and a comparison finds
what is not."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from tests.support.command import ROOT
from tools.golden.__main__ import main
from tools.golden.page import CHARTS, text_of, write_packed

GOLDEN = Path(__file__).parent / "golden"

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_nothing_differs_from_the_golden_run():
    pytest.importorskip("lm_eval")
    command = [sys.executable, "-m", "tools.golden", "compare", str(GOLDEN)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def other(tmp_path):
    """A copy of the golden run, to be changed."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "other"))


def test_the_golden_run_has_every_policy_task_schedule_and_way_of_pruning():
    rows = pl.concat(
        [pl.read_parquet(file) for file in GOLDEN.glob("*/run/*/golden.parquet")],
        how="diagonal_relaxed",
    )
    refusals = json.loads((GOLDEN / "refusals.json").read_text())
    (message,) = refusals["unknown policy"]["err"]
    allowed = re.findall(r"must be one of (.*), or module:function", message)[0].split(", ")
    assert set(allowed) <= set(rows["policy"])
    assert {"every_step", "prefill_once", "constant"} == set(rows["schedule"])
    assert {"absolute", "cache_length"} == set(rows["position_mode"])
    assert {"interleaved", "report_2025"} == set(rows["timing_protocol"]) - {None}
    assert {False, True} == set(rows["question_pruned"]) - {None}
    assert {name for name in ("protect_sink", "protect_recent") if rows[name].max() > 0} == {
        "protect_sink",
        "protect_recent",
    }
    assert {file.parent.name for file in GOLDEN.glob("*/run/*/golden.parquet")} == {
        "perplexity",
        "generation",
        "retrieval",
        "tasks",
        "failures",
    }
    assert rows["skip_layers_rule"].drop_nulls().len() and (rows["skip_layers"].list.len() == 2).any()


def table(folder: Path) -> Path:
    return folder / "default" / "run" / "perplexity" / "golden.parquet"


def rewrite(file: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """A part with other rows and the same mark."""
    mark = pq.read_schema(file).metadata
    pq.write_table(change(pl.read_parquet(file)).to_arrow().replace_schema_metadata(mark), file)


def shifted(rows: pl.DataFrame, column: str, value: float) -> pl.DataFrame:
    """The fourth row with another value in a column."""
    values = rows[column].to_list()
    return rows.with_columns(pl.Series(column, [*values[:3], value, *values[4:]], dtype=rows.schema[column]))


def found(other: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The differences that are told, after the status was looked at."""
    status = main(["compare", str(GOLDEN), "--with", str(other)])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert status == (1 if lines else 0)
    return lines


def test_a_golden_run_equals_its_copy_and_every_part_is_counted(other, capsys):
    assert main(["compare", str(GOLDEN), "--with", str(other)]) == 0
    how, *parts = capsys.readouterr().out.splitlines()
    assert how.startswith("floats: bit by bit")
    assert all(part.endswith(", the same") for part in parts)
    assert not [part for part in parts if ": 0 " in part and "verdicts" not in part]


def test_the_last_bit_of_a_figure_is_found(other, capsys):
    rows = pl.read_parquet(table(other))
    cell, window, value = rows.row(3, named=True)["cell_id"], rows["window_index"][3], rows["nll_sum"][3]
    next_value = float(np.nextafter(value, np.inf))
    rewrite(table(other), lambda frame: shifted(frame, "nll_sum", next_value))
    assert found(other, capsys) == [
        f"default perplexity {cell} {window} nll_sum: kept {value!r}, now {next_value!r}"
    ]


def test_another_time_is_no_difference(other, capsys):
    rewrite(table(other), lambda frame: shifted(frame, "seconds", 99.0))
    assert found(other, capsys) == []


def test_another_id_is_a_cell_gone_and_a_new_one(other, capsys):
    file = other / "retrieval" / "run" / "cells.parquet"
    cells = pl.read_parquet(file)
    task, cell = cells.row(0)[:2]
    cells.with_columns(pl.col("cell_id").replace({cell: "0" * 16})).write_parquet(file)
    assert found(other, capsys) == [
        f"retrieval cells: {task} {cell} is gone",
        f"retrieval cells: {task} {'0' * 16} is new",
    ]


def test_a_changed_cell_of_a_reports_table_is_found(other, capsys):
    file = other / "seed_reports" / "report" / "tables" / "cells.csv"
    frame = pl.read_csv(file, infer_schema=False)
    value = frame["ppl"][1]
    frame.with_columns(ppl=pl.Series([frame["ppl"][0], f"{value}1", *frame["ppl"][2:]])).write_csv(file)
    assert found(other, capsys) == [
        f"seed_reports report cells.csv row 1 ppl: kept {value!r}, now {value + '1'!r}"
    ]


def test_another_encoding_of_a_chart_is_found(other, capsys):
    file = other / "default" / "report" / CHARTS
    charts = json.loads(text_of(file))
    name, spec = next(iter(charts["specs"].items()))
    height = spec["height"]
    spec["height"] = height + 1
    write_packed(file, json.dumps(charts))
    assert found(other, capsys) == [f"default charts specs.{name}.height: kept {height}, now {height + 1}"]


def test_another_word_of_a_plan_is_found(other, capsys):
    file = other / "tasks" / "plan.txt"
    last = file.read_text().splitlines()[-1]
    file.write_text(file.read_text().replace(last, f"{last}!"))
    assert found(other, capsys) == [f"tasks: plan: kept {last}", f"tasks: plan: now  {last}!"]


def test_another_refusal_is_found(other, capsys):
    file = other / "refusals.json"
    said = json.loads(file.read_text())
    said["unknown key"]["status"] = 1
    (words,) = said["no such sweep"]["err"]
    said["no such sweep"]["err"] = [words.upper()]
    file.write_text(json.dumps(said))
    told = found(other, capsys)
    assert told[0] == "refusal unknown key.status: kept 2, now 1"
    assert told[1].startswith("refusal no such sweep.err[0]: kept ") and len(told) == 2


def test_floats_of_another_processor_need_not_have_the_same_bits(other, capsys):
    file = other / "made.json"
    made = json.loads(file.read_text())
    file.write_text(json.dumps({**made, "processor": "another one"}))
    value = pl.read_parquet(table(other))["nll_sum"][3]
    rewrite(table(other), lambda frame: shifted(frame, "nll_sum", value * (1 + 5e-5)))
    assert main(["compare", str(GOLDEN), "--with", str(other)]) == 0
    how = capsys.readouterr().out.splitlines()[0]
    assert how.startswith("floats: within 0.0001 ") and "processor another one (kept: " in how

    rewrite(table(other), lambda frame: shifted(frame, "nll_sum", value * (1 + 2e-4)))
    (line,) = found(other, capsys)
    assert " nll_sum: kept " in line


def test_what_is_no_golden_run_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("x")
    for command in ("keep", "compare"):
        assert main([command, str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
