"""The arithmetic of the report against literals worked out by hand, and against scipy."""

from __future__ import annotations

import math

import polars as pl
import pytest
from scipy import stats

from analysis import keys
from analysis.generation import measures, speed
from analysis.harness import charts as task_charts
from analysis.keys import VERSIONS
from analysis.load import load
from analysis.page import findings
from analysis.perplexity import curve_shape
from analysis.perplexity.tables import by_ratio
from analysis.retrieval import charts as retrieval_charts
from analysis.tables import Tables
from pipeline.store.store_errors import RunUnreadableError
from tests.support.rows import cell, generation_row, one, perplexity_row, retrieval_row, write_run


def test_ppl_is_pooled_over_tokens_not_averaged_over_windows(summarise):
    rows = [
        perplexity_row(0, policy="dense", tokens_scored=100, nll_sum=200.0),
        perplexity_row(1, policy="dense", tokens_scored=300, nll_sum=300.0),
        perplexity_row(0, tokens_scored=100, nll_sum=220.0),
        perplexity_row(1, tokens_scored=300, nll_sum=380.0),
    ]
    row = one(summarise(rows), policy="knorm")
    assert row["ppl"] == pytest.approx(math.exp(600 / 400))
    assert row["dense_ppl"] == pytest.approx(math.exp(500 / 400))
    assert row["ratio"] == pytest.approx(math.exp(100 / 400))
    assert row["budget"] == pytest.approx(0.5)
    assert row["tokens"] == 400


def test_ratio_uses_only_windows_that_the_twin_scored_too(summarise):
    rows = [
        perplexity_row(0, policy="dense", nll_sum=200.0),
        perplexity_row(0, nll_sum=210.0),
        perplexity_row(1, nll_sum=900.0),
    ]
    row = one(summarise(rows), policy="knorm")
    assert row["ratio"] == pytest.approx(math.exp(0.1))
    assert (row["n_windows"], row["n_paired"]) == (2, 1)
    assert "1 windows without a twin" in row["note"]


def test_windows_of_unequal_token_counts_are_not_a_pair(summarise):
    rows = [perplexity_row(0, policy="dense", tokens_scored=100), perplexity_row(0, tokens_scored=99)]
    assert one(summarise(rows), policy="knorm")["n_paired"] == 0


def test_cell_without_a_twin_stays_in_the_table_without_a_ratio(summarise):
    row = one(summarise([perplexity_row(0), perplexity_row(1)]), policy="knorm")
    assert row["ppl"] == pytest.approx(math.exp(2))
    assert row["ratio"] is None
    assert row["budget"] is None
    assert row["note"] == "no dense twin: no ratio"


def test_one_window_has_a_ratio_and_no_interval(summarise):
    row = one(
        summarise([perplexity_row(0, policy="dense"), perplexity_row(0, nll_sum=210.0)]), policy="knorm"
    )
    assert row["ratio"] == pytest.approx(math.exp(0.1))
    assert row["ratio_low"] is None
    assert row["note"] == "one window: no interval"


def test_accuracy_difference_is_of_the_same_tokens(summarise):
    rows = [perplexity_row(0, policy="dense", tokens_correct=40), perplexity_row(0, tokens_correct=31)]
    assert one(summarise(rows), policy="knorm")["accuracy_difference"] == pytest.approx(-0.09)


def test_retained_figures_are_means_over_events_and_null_without_events(summarise):
    rows = [
        perplexity_row(0, prune_events=30, recent_retained=0.2),
        perplexity_row(1, prune_events=10, recent_retained=1.0),
        perplexity_row(2, prune_events=0, recent_retained=None),
        perplexity_row(0, policy="dense"),
    ]
    table = summarise(rows)
    assert one(table, policy="knorm")["recent_retained"] == pytest.approx((30 * 0.2 + 10 * 1.0) / 40)
    assert one(table, policy="dense")["recent_retained"] is None


def test_figures_beyond_the_trained_context_are_marked_and_enter_no_aggregate(tmp_path):
    """The made-up model has a context of 1,024 tokens; a model that no run.json knows is not marked."""
    long = {"window": 1025, "stride": 1025}
    rows = [
        perplexity_row(i, policy=p, model=m, **long)
        for m in ("toy", "other")
        for p in ("dense", "knorm")
        for i in (0, 1)
    ]
    timed = [
        generation_row(i, policy="dense", prompt_tokens=n, new_tokens=24)
        for n in (1000, 1001)
        for i in range(2)
    ]
    asked = [retrieval_row(policy="dense", context_tokens=n) for n in (1016, 1017)]
    run = Tables.of(
        load(
            [write_run(str(tmp_path / "run"), {"perplexity": rows, "generation": timed, "retrieval": asked})]
        )
    )
    cells = run.perplexity
    marked, other = one(cells, policy="knorm", model="toy"), one(cells, policy="knorm", model="other")
    assert (marked["verdict"], other["verdict"]) == ("BEYOND_CONTEXT", "VALID")
    assert "longer than the model was trained on" in marked["note"]
    assert one(by_ratio(cells), model="toy")["valid"] == 0
    notes = [str(row["note"]) for row in run.generation.sort("prompt_tokens").to_dicts()]
    assert ["longer" in note for note in notes] == [False, True]
    assert [row["note"] is None for row in run.retrieval.sort("context_tokens").to_dicts()] == [True, False]


@pytest.mark.parametrize(
    ("pruned", "verdict"), [(0, "NEVER_PRUNED"), (4, "BARELY_PRUNED"), (5, "VALID"), (100, "VALID")], ids=str
)
def test_verdict_follows_the_share_of_tokens_that_saw_a_pruned_cache(summarise, pruned, verdict):
    table = summarise([perplexity_row(0, policy="dense"), perplexity_row(0, tokens_scored_pruned=pruned)])
    assert one(table, policy="knorm")["verdict"] == verdict
    assert one(table, policy="dense")["verdict"] == "DENSE"


@pytest.mark.parametrize("nll", [None, float("nan"), float("inf")])
def test_a_missing_or_broken_sum_does_not_count_as_zero_nats(summarise, nll):
    rows = [perplexity_row(i, policy="dense") for i in range(2)] + [
        perplexity_row(0),
        perplexity_row(1, nll_sum=nll),
    ]
    row = one(summarise(rows), policy="knorm")
    assert (row["ppl"], row["ratio"], row["ratio_low"], row["verdict"]) == (None, None, None, "NOT_FINITE")


def test_reproduced_position_bug_is_named(summarise):
    row = one(summarise([perplexity_row(0, position_mode="cache_length")]), policy="knorm")
    assert "reproduces the position bug on purpose" in row["note"]


def test_seeds_of_random_are_pooled_each_against_its_own_twin(summarise):
    rows = [perplexity_row(i, policy="dense", seed=seed) for i in range(2) for seed in (1, 2)]
    rows += [
        perplexity_row(i, policy="random", seed=seed, nll_sum=200.0 + 10 * seed)
        for i in range(2)
        for seed in (1, 2)
    ]
    row = one(summarise(rows), policy="random")
    assert row["ratio"] == pytest.approx(math.exp(15 / 100))
    assert (row["seeds"], row["n_paired"]) == (2, 2)
    assert row["ratio_low"] == pytest.approx(
        row["ratio_high"]
    )  # both windows differ equally: windows are resampled, not rows


@pytest.mark.parametrize(
    ("column", "other"),
    [
        ("model_revision", "other"),
        ("dataset_fingerprint", "other"),
        ("protocol_version", 2),
        ("special_tokens_in_text", "parse"),
        ("special_tokens_in_text", None),
        ("bos", True),
        ("bos", None),
    ],
)
def test_other_weights_data_or_ways_to_read_them_are_never_pooled(summarise, column, other):
    rows = [perplexity_row(0, policy="dense"), perplexity_row(0)]
    rows += [
        perplexity_row(0, policy="dense", nll_sum=100.0, **{column: other}),
        perplexity_row(0, **{column: other}),
    ]
    table = summarise(rows).filter(pl.col("policy") == "knorm")
    assert sorted(table["ratio"]) == pytest.approx([1.0, math.e])


GROUPS = {
    "one grid": keys.GROUP,
    "one grid of windows": keys.SCORED,
    "findings": findings.CURVES,
    "curves": curve_shape.KEYS,
    "timed and scored": measures.SAME,
    "timed": measures.ONE_PICTURE,
    "turns": speed.TURNS,
    "asked": retrieval_charts.PANEL,
    "tasks": task_charts.PANEL,
    "asked and scored": keys.SAME,
}


@pytest.mark.parametrize("group", GROUPS)
def test_whatever_is_compared_or_drawn_together_is_of_one_method_text_and_way_to_read_it(group):
    assert set(VERSIONS) <= set(GROUPS[group])


def test_by_ratio_counts_but_does_not_use_cells_that_never_pruned(summarise):
    rows = [perplexity_row(0, policy="dense")]
    rows += [perplexity_row(0, nll_sum=210.0), perplexity_row(0, nll_sum=230.0, skip_layers=[0])]
    rows += [perplexity_row(0, prune_after=4096, tokens_scored_pruned=0)]
    row = one(by_ratio(summarise(rows)), keep_ratio=0.9)
    assert (row["cells"], row["valid"]) == (3, 2)
    assert (row["ratio_min"], row["ratio_max"]) == pytest.approx((math.exp(0.1), math.exp(0.3)))


def test_rows_delivered_twice_or_by_two_runs_count_once(tmp_path):
    rows = [perplexity_row(0, policy="dense"), perplexity_row(0), perplexity_row(0)]
    first = write_run(str(tmp_path / "a"), {"perplexity": rows})
    second = write_run(str(tmp_path / "b"), {"perplexity": rows})
    table = Tables.of(load([first, second, first])).perplexity
    assert one(table, policy="knorm")["tokens"] == 100


def test_retrieval_accuracy_has_wilsons_interval(tmp_path):
    rows = [retrieval_row(i, correct=i < 8) for i in range(10)] + [
        retrieval_row(i, policy="dense") for i in range(10)
    ]
    table = Tables.of(load([write_run(str(tmp_path / "run"), {"retrieval": rows})])).retrieval
    row = one(table, policy="knorm")
    wanted = stats.binomtest(8, 10).proportion_ci(method="wilson")
    assert (row["accuracy"], row["dense_accuracy"]) == (0.8, 1.0)
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((wanted.low, wanted.high))


def test_a_directory_that_is_no_run_says_what_to_do(tmp_path):
    with pytest.raises(RunUnreadableError, match="there is no such directory"):
        load([str(tmp_path / "absent")])
    with pytest.raises(RunUnreadableError, match=r"holds no run\.json.*kvsweep run"):
        load([str(tmp_path)])
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunUnreadableError, match="is not JSON"):
        load([str(tmp_path)])


def test_made_up_cells_have_an_id_of_their_own():
    assert len({cell(keep_ratio=r, prune_after=a)["cell_id"] for r in (0.5, 0.9) for a in (32, 512)}) == 4
