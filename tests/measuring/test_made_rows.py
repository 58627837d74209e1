"""Made-up rows follow the schema: another column of a table or of all tables fails nobody who makes them."""

from __future__ import annotations

import polars as pl
import pytest

from pipeline.store import schema
from pipeline.store.schema import to_arrow
from tools.made_rows import (
    as_given,
    failure_row,
    generation_row,
    perplexity_row,
    retrieval_row,
    tasks_rows,
)

MADE = {
    "perplexity": lambda: [perplexity_row(), perplexity_row(policy="dense")],
    "generation": lambda: [generation_row(), generation_row(policy="dense")],
    "retrieval": lambda: [retrieval_row(question_pruned=False), retrieval_row(policy="dense")],
    "tasks": lambda: tasks_rows([1.0, 0.0]),
    "failures": lambda: [failure_row()],
}


def test_every_table_has_a_maker():
    assert MADE.keys() == schema.TASK_COLUMNS.keys()


@pytest.mark.parametrize("task", MADE)
@pytest.mark.parametrize("columns", ["CELL_COLUMNS", "TASK_COLUMNS"])
def test_another_column_is_null_and_the_rows_are_stored(monkeypatch, task, columns):
    own = schema.CELL_COLUMNS if columns == "CELL_COLUMNS" else schema.TASK_COLUMNS[task]
    monkeypatch.setitem(own, "of_tomorrow", pl.Float64)
    rows = MADE[task]()
    table = to_arrow(task, rows)
    assert table.num_rows == len(rows) and table["of_tomorrow"].null_count == len(rows)


def test_a_row_as_a_worker_gives_it_has_the_columns_of_its_task_and_its_cell():
    given = as_given("perplexity", perplexity_row(cell_id="c"))
    assert given.keys() == {"cell_id", *schema.TASK_COLUMNS["perplexity"]} and given["cell_id"] == "c"


@pytest.mark.parametrize("make", [perplexity_row, retrieval_row, failure_row])
def test_a_column_that_there_is_not_is_refused(make):
    with pytest.raises(ValueError, match=r"no such columns in .*: \['keep_rate'\]"):
        make(keep_rate=0.5)
