"""A cell that fails when some of its texts are done has no figure, whatever was stored of it before."""

from __future__ import annotations

import pytest

from analysis.load import load
from analysis.report import write_report
from tests.support.rows import failure_row, perplexity_row, retrieval_row, write_run

FAILED = {"policy": "knorm", "keep_ratio": 0.5}


def rows(windows: int, **settings):
    return [perplexity_row(i, **settings) for i in range(windows)]


@pytest.mark.parametrize(("given", "left"), [(2, 0), (4, 4)])
def test_rows_of_a_cell_that_failed_halfway_are_left_out_and_those_of_one_that_was_done_again_are_not(
    tmp_path, given, left
):
    tables = {
        "perplexity": rows(4, policy="dense") + rows(given, **FAILED) + rows(3, policy="random"),
        "retrieval": [retrieval_row(i, policy="dense") for i in range(4)]
        + [retrieval_row(i, **FAILED) for i in range(given)],
        "failures": [failure_row(**FAILED)],
    }
    results = load([write_run(str(tmp_path / "run"), tables)])
    for task in ("perplexity", "retrieval"):
        found = results.rows(task).collect()
        assert found.filter(policy="knorm").height == left
        assert found.filter(policy="dense").height == 4
    assert results.rows("perplexity").collect().filter(policy="random").height == 3, (
        "what only lacks rows is still running"
    )


def test_its_verdict_is_failed_and_says_why(tmp_path):
    tables = {"perplexity": rows(4, policy="dense") + rows(2, **FAILED), "failures": [failure_row(**FAILED)]}
    run = write_run(str(tmp_path / "run"), tables)
    write_report([run], folders={"csv": str(tmp_path / "csv")})
    (line,) = [
        line for line in (tmp_path / "csv" / "cells.csv").read_text().splitlines() if ",knorm," in line
    ]
    assert ",FAILED," in line and "OutOfMemoryError: tried to allocate 2 GiB" in line


def test_rows_keep_the_order_in_which_they_are_stored(tmp_path):
    """Whatever is made of the first of several rows is the same in each report, and sums end in the same
    bits."""
    rows = [perplexity_row(i, policy=policy) for policy in ("dense", "knorm") for i in range(2000)]
    results = load([write_run(str(tmp_path / "run"), {"perplexity": rows})])
    found = results.rows("perplexity").select("policy", "window_index").collect()
    assert found.rows() == [(row["policy"], row["window_index"]) for row in rows]
