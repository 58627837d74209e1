"""What a code to which ``rescale`` was added knows of it, for tests/test_one_more_setting.py; run with that
code in the path."""

from __future__ import annotations

import json
import sys
from typing import Any

import polars as pl

from analysis import labels
from analysis.audit.claim_evidence import plain
from analysis.load import load
from analysis.page.page import contents
from analysis.tracking.export_runs import records
from pipeline.cells.cell import Cell
from pipeline.commands.plan_table import _mode
from pipeline.driving.unit_parts import cell_columns
from pipeline.planning.grid import Target, make_grid
from pipeline.planning.unit_inputs import prune_settings
from pipeline.store.schema import SCHEMA_VERSION, schema
from pipeline.sweepfile.sweep_keys import SweepSpec
from tests.support.rows import one, perplexity_row, retrieval_row, write_run

SWEEP = {"name": "x", "models": ["m"], "datasets": ["d"], "keep_ratios": [0.5], "rescales": [0, 1, 2]}
RATIOS = (0.9, 0.7, 0.5)
MORE = {0: 0.1, 1: 0.3}
"""rescale -> nats per token above dense."""


def cells_of(**keys: Any) -> list[Cell]:
    small = {"window": 64, "stride": 64, "windows": 3}
    spec = SweepSpec.model_validate_json(json.dumps({**SWEEP, "perplexity": small, **keys}))
    return make_grid(spec, [Target("m", "r", 3, "d", "f", "cpu", "float32")]).cells


def rescaled(cells: list[Cell]) -> list[int]:
    return [cell.rescale for cell in cells]  # pyright: ignore[reportAttributeAccessIssue]


def planned() -> None:
    """Ids, dense twin, exclusions, filters of a task, words of the plan, columns of a row, what a worker is
    told."""
    dense, *cells = cells_of()
    assert rescaled([dense, *cells]) == [0, 0, 1, 2] and len({cell.cell_id for cell in cells}) == 3
    assert all(cell.dense == dense for cell in cells)
    assert rescaled(cells_of(exclude=[{"rescales": [1], "keep_ratios": [0.5]}])) == [0, 0, 2]
    only = {"window": 64, "stride": 64, "windows": 3, "rescales": [2]}
    assert rescaled(cells_of(perplexity=only)) == [0, 2]
    assert [_mode(cell) for cell in cells] == ["", "rescale 1", "rescale 2"]
    assert cell_columns(cells[1], dense.cell_id, "run", "cpu")["rescale"] == 1
    assert vars(prune_settings(cells[2]))["rescale"] == 2


def rows(make: Any, name: str, count: int = 8, **own: Any) -> list[dict[str, Any]]:
    """Rows of a cell that differs from others in ``rescale`` alone, beside those of its id."""
    given = own.pop("rescale", None)
    told = {} if given is None else {"rescale": given}
    return [make(i, **({"cell_id": name} if name else {}), **own) | told for i in range(count)]


def reported(directory: str) -> None:
    """The tables of a report, findings' words, claims about plain knorm, an experiment tracker's records."""
    scored, asked = (
        rows(perplexity_row, "", policy="dense", rescale=0),
        rows(retrieval_row, "", 40, policy="dense", rescale=0),
    )
    for rescale, more in MORE.items():
        for ratio in RATIOS:
            own: dict[str, Any] = {"keep_ratio": ratio, "rescale": rescale}
            scored += rows(perplexity_row, f"scored {rescale} {ratio}", nll_sum=200.0 + 100 * more, **own)
        asked += rows(
            retrieval_row, f"asked {rescale}", 40, keep_ratio=0.5, rescale=rescale, correct=rescale == 0
        )
    results = load([write_run(directory, {"perplexity": scored, "retrieval": asked})])
    shown = contents(results, 0.5)

    cells, columns = shown.tables["cells"]
    assert "rescale" in [column.key for column in columns if column.setting]
    found = cells.filter(pl.col("policy") == "knorm", pl.col("keep_ratio") == 0.5)
    assert dict(found.select("rescale", pl.col("ratio").log().round(6)).iter_rows()) == MORE
    assert [labels.variant(row) for row in found.iter_rows(named=True)] == [
        "no layer skipped",
        "no layer skipped, rescale 1",
    ]
    assert dict(shown.tables["shapes"][0].select("rescale", "cells").iter_rows()) == {0: 3, 1: 3}
    assert plain(cells)["rescale"].unique().to_list() == [0]

    advised = one(shown.tables["recommended"][0])
    assert advised["rescale"] == 0 and "retrieval is kept" in advised["advice"], (
        "the other one's retrieval is lost"
    )
    answers = shown.tables["retrieval"][0].filter(pl.col("policy") == "knorm")
    assert dict(answers.select("rescale", "accuracy").iter_rows()) == {0: 1.0, 1: 0.0}
    told = [record.params["rescale"] for record in records(results) if record.params["policy"] == "knorm"]
    assert sorted(told) == [0, 0, 0, 1, 1, 1]  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    assert SCHEMA_VERSION and "rescale" in schema("failures")
    planned()
    reported(sys.argv[1])
    print("cell, filters, rows, worker, tables, words, claims and records know rescale")
