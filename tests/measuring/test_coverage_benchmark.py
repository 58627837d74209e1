"""``benchmarks/coverage.py`` counts errors on made-up rows, and tells where what is said does not hold."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from analysis.load import load
from analysis.statistics import uncertainty
from analysis.statistics.pairs import with_dense
from benchmarks.perplexity_errors import moved, of_costly_cells, of_equal_cells, of_intervals
from benchmarks.timing_errors import of_times
from tests.support.rows import synthetic_run


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    run = synthetic_run(str(tmp_path_factory.mktemp("run")), windows=30)
    return with_dense(load([run]).rows("perplexity"))


def found_of(part, *arguments):
    return {statement: rest for statement, *rest in part(*arguments, np.random.default_rng(1))}


@pytest.mark.parametrize("part", [of_intervals, of_equal_cells, of_costly_cells])
def test_every_part_counts_what_it_states(measured, part):
    for said, wrong, worst, made in found_of(part, measured, 3, 8).values():
        assert 0 < said < 0.051 and 0 <= wrong <= worst <= 1 and made >= 3


def test_an_interval_that_is_too_narrow_is_told(measured, monkeypatch):
    """With a third of Student's quantiles most intervals miss the truth."""
    stock = uncertainty.t_quantile
    monkeypatch.setattr(uncertainty, "t_quantile", lambda probability, n: stock(probability, n) / 3)
    _, wrong, *_ = found_of(of_intervals, measured, 5, 8)["95 % interval of the PPL ratio"]
    assert wrong > 0.2


def test_rows_are_moved_to_the_ratio_that_was_asked_for(measured):
    whole = moved(measured, 1.01, "tokens_scored_pruned")
    pruned = whole.filter(pl.col("policy") != "dense", pl.col("prune_events") > 0)
    change = (pl.col("nll_sum") - pl.col("dense_nll")).sum() / pl.col("tokens_scored_pruned").sum()
    ratios = pruned.group_by("pool_id").agg(ratio=change.exp())["ratio"]
    assert ratios.to_list() == pytest.approx([1.01] * len(ratios))


def test_timings_that_stop_when_they_are_narrow_are_counted():
    for said, wrong, _, made in found_of(of_times, 40).values():
        assert 0.049 < said < 0.051 and wrong < 0.25 and made == 40
