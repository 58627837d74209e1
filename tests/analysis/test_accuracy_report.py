"""KL and agreement, generated text and tasks of a harness in the report: tables and charts."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis import coverage
from analysis.load import load
from analysis.page.page import contents, render
from tests.support.rows import (
    asked,
    charts_of,
    generation_row,
    one,
    perplexity_row,
    ratio_interval,
    tasks_rows,
    write_run,
)


def scored(ratio, **settings):
    nll = 200.0 + 100 * float(np.log(ratio))
    return [perplexity_row(i, nll_sum=nll, **settings) for i in range(3)]


DENSE = [perplexity_row(i, policy="dense") for i in range(3)]


def test_kl_and_agreement_are_per_scored_token_with_intervals_over_windows(summarise):
    rng = np.random.default_rng(5)
    kl, agreed, tokens = rng.gamma(2, 3, 9), rng.integers(50, 80, 9), rng.integers(80, 120, 9)
    rows = [perplexity_row(i, policy="dense", tokens_scored=int(tokens[i])) for i in range(9)]
    rows += [
        perplexity_row(i, tokens_scored=int(tokens[i]), kl_sum=kl[i], tokens_agreed=int(agreed[i]))
        for i in range(9)
    ]
    row = one(summarise(rows), policy="knorm")
    for name, values in (("kl", kl), ("agreement", agreed)):
        assert row[name] == pytest.approx(values.sum() / tokens.sum())
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(
            ratio_interval(values, tokens), rel=1e-9
        )


def test_kl_that_was_not_recorded_counts_for_nothing(summarise):
    older = {"kl_sum": None, "tokens_agreed": None}
    rows = [perplexity_row(i, policy="dense") for i in range(4)] + [
        perplexity_row(i, **older) for i in (2, 3)
    ]
    names = ["kl", "kl_low", "agreement", "agreement_high"]
    assert [one(summarise(rows), policy="knorm")[name] for name in names] == [None] * 4


def test_of_a_cell_with_some_windows_of_an_older_schema_kl_has_no_interval(summarise):
    rows = [perplexity_row(i, policy="dense") for i in range(3)] + [
        perplexity_row(i, kl_sum=8.0) for i in (0, 1)
    ]
    row = one(summarise([*rows, perplexity_row(2, kl_sum=None, tokens_agreed=None)]), policy="knorm")
    assert (row["kl"], row["kl_low"], row["agreement"]) == (pytest.approx(0.08), None, pytest.approx(0.9))


def test_the_generated_text_stands_beside_the_dense_one(page_of):
    figures = {"text_length": 12.0, "text_ended": 0.5, "text_repetition": 0.25, "text_agreement": 3.0}
    rows = [generation_row(i, policy="dense") for i in range(2)] + [
        generation_row(i, **figures) for i in range(2)
    ]
    rows += [
        generation_row(i, prompt_tokens=64, **dict.fromkeys(figures)) for i in range(2)
    ]  # of an older schema
    table = page_of(generation=rows).tables["texts"][0]
    row = one(table, policy="knorm")
    assert {name: row[name] for name in figures} == figures
    assert [row[f"dense_{name}"] for name in figures] == [16.0, 0.0, 0.1, 16.0]


def test_kl_is_drawn_for_cells_that_have_one(page_of):
    rows = DENSE + scored(1.2) + scored(1.3, keep_ratio=0.5, kl_sum=None, tokens_agreed=None)
    chart = charts_of(page_of(perplexity=rows))["kl-1-1"]
    assert "1 cells" in chart.description
    found = (
        chart.points.frame.filter(pl.col("kl").is_not_null()).select("keep_ratio", "kl", "agreement").rows()
    )
    assert found == [(0.9, pytest.approx(0.05), pytest.approx(0.9))]
    older = DENSE + scored(1.2, kl_sum=None, tokens_agreed=None)
    assert not page_of(perplexity=older).charts["kl"]


def test_a_task_is_compared_document_by_document(tables_of):
    rng = np.random.default_rng(6)
    dense, own = (rng.random(30) < 0.8).astype(float), (rng.random(30) < 0.6).astype(float)
    rows = tasks_rows(list(dense), policy="dense") + tasks_rows(list(own))[::-1]
    row = one(tables_of(tasks=rows).harness, policy="knorm")
    assert (row["value"], row["dense_value"]) == pytest.approx((own.mean(), dense.mean()))
    assert (row["documents"], row["paired_documents"], row["budget"], row["note"]) == (30, 30, 0.25, None)
    wanted = stats.ttest_rel(own, dense).confidence_interval(0.95)
    found = (row["difference_low"], row["difference_high"])
    assert found == pytest.approx((wanted.low, wanted.high)) and found[0] < row["difference"] < found[1]


def test_a_figure_that_is_no_mean_over_documents_has_no_interval(tables_of):
    corpus = {"metric": "word_perplexity"}
    rows = tasks_rows([1.0, 0.0, 1.0], policy="dense", value=9.0, **corpus) + tasks_rows(
        [1.0, 0.0, 0.0], value=7.0, **corpus
    )
    rows = [
        row | {"value": [1.0, 0.0, 1.0][row["doc_index"]]} if row["doc_index"] is not None else row
        for row in rows
    ]
    row = one(tables_of(tasks=rows).harness, policy="knorm")
    assert (row["difference"], row["difference_low"]) == (-2.0, None)
    assert row["note"] == "no mean over paired documents: no interval; n < 30"


def test_a_task_without_a_twin_has_no_difference_and_says_so(tables_of):
    row = one(tables_of(tasks=tasks_rows([1.0, 0.0])).harness)
    assert (row["value"], row["difference"], row["difference_low"]) == (0.5, None, None)
    assert row["note"] == "no dense twin: no difference; n < 30"


def test_metrics_and_filters_of_a_task_are_kept_apart_and_seeds_are_averaged(tables_of):
    rows = [
        row
        for seed in (0, 1)
        for v in (1.0, 0.0)
        for row in tasks_rows([v, float(seed)], seed=seed, metric=f"m{v:g}")
    ]
    rows += tasks_rows([1.0, 1.0], metric="m1", filter="strict", keep_ratio=0.5)
    table = tables_of(tasks=rows).harness
    found = {
        (row["metric"], row["filter"]): (row["value"], row["stderr"] is None)
        for row in table.iter_rows(named=True)
    }
    assert found == {
        ("m1", "none"): (0.75, True),
        ("m0", "none"): (0.25, True),
        ("m1", "strict"): (1.0, False),
    }


def test_coverage_knows_tasks_and_no_choice_of_a_text_hides_one(tmp_path):
    rows = tasks_rows([1.0, 0.0], policy="dense") + tasks_rows([1.0, 0.0]) + tasks_rows([1.0], keep_ratio=0.5)
    directory = write_run(
        str(tmp_path / "run"), {"tasks": rows, "retrieval": asked()}, planned={"tasks": 3, "retrieval": 2}
    )
    table = coverage.coverage(load([directory]))
    assert one(table, task="tasks")["done"] == 2 and one(table, task="tasks")["missing"] == 1
    assert one(table, task="retrieval")["done"] == 2
    shown = contents(load([directory]), 0.01)
    assert [chart.about for chart in shown.charts["tasks"]] == [{"model": "toy"}]
    page = render(shown)
    assert (
        '<option value="quiz"' not in page
        and 'data-key="dataset"' not in page.partition('id="table-tasks"')[2].split("</thead>")[0]
    )


def test_a_task_has_a_chart_per_metric_with_its_dense_value(page_of):
    rows = [
        row
        for m in ("acc", "f1")
        for p in ("dense", "knorm")
        for row in tasks_rows([1.0, 0.0], policy=p, metric=m)
    ]
    shown = page_of(tasks=rows + tasks_rows([1.0], policy="dense", metric="alone"))
    assert [chart.spec["title"]["subtitle"] for chart in shown.charts["tasks"]] == [
        ["quiz: acc, 0-shot, higher is better"],
        ["quiz: f1, 0-shot, higher is better"],
    ]
    assert '"label": "dense 0.5"' in str(shown.charts["tasks"][0].spec).replace("'", '"')


def test_a_task_that_answers_with_one_token_says_nothing_of_pruning_however_often_it_was_pruned(tables_of):
    rows = tasks_rows([1.0, 0.0, 1.0], policy="dense")
    rows += tasks_rows([1.0, 0.0, 1.0], tokens_predicted_pruned=0) + tasks_rows(
        [1.0, 0.0, 0.0], keep_ratio=0.5
    )
    table = tables_of(tasks=rows).harness
    late, used = one(table, policy="knorm", keep_ratio=0.9), one(table, keep_ratio=0.5)
    assert (late["verdict"], late["share_pruned"], used["verdict"], used["share_pruned"]) == (
        "NEVER_PRUNED",
        0.0,
        "VALID",
        0.6,
    )
    assert "every token was predicted before its cache was pruned" in late[
        "note"
    ] and "before its cache" not in (used["note"] or "")
    assert one(table, policy="dense")["verdict"] == "DENSE"
