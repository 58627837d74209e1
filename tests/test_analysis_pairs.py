"""The arithmetic of the report against literals worked out by hand, and against scipy."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.load import RunUnreadableError, load
from analysis.recommend import advice_in_words, front, recommended
from analysis.speed import NO_DIFFERENCE, generation, in_words, median_interval
from analysis.tables import by_ratio, retrieval, summary
from analysis.uncertainty import RESAMPLES, _figures, holm, resampled_ratios, sign_flip_p
from tests.rows import cell, generation_row, perplexity_row, retrieval_row, write_run


@pytest.fixture
def summarise(tmp_path):
    def write_and_summarise(rows):
        return summary(load([write_run(str(tmp_path / "run"), {"perplexity": rows})]).rows("perplexity"))

    return write_and_summarise


def one(frame, **wanted):
    found = frame.filter(*[pl.col(name) == value for name, value in wanted.items()])
    assert found.height == 1, found
    return found.row(0, named=True)


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
    rows = [perplexity_row(0, policy="dense", nll_sum=200.0), perplexity_row(0, nll_sum=210.0), perplexity_row(1, nll_sum=900.0)]
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
    row = one(summarise([perplexity_row(0, policy="dense"), perplexity_row(0, nll_sum=210.0)]), policy="knorm")
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
    rows = [perplexity_row(i, policy=p, model=m, **long) for m in ("toy", "other") for p in ("dense", "knorm") for i in (0, 1)]
    timed = [generation_row(i, policy="dense", prompt_tokens=n, new_tokens=24) for n in (1000, 1001) for i in range(2)]
    asked = [retrieval_row(policy="dense", context_tokens=n) for n in (1016, 1017)]
    run = load([write_run(str(tmp_path / "run"), {"perplexity": rows, "generation": timed, "retrieval": asked})])
    cells = summary(run.rows("perplexity"))
    marked, other = one(cells, policy="knorm", model="toy"), one(cells, policy="knorm", model="other")
    assert (marked["verdict"], other["verdict"]) == ("BEYOND_CONTEXT", "VALID")
    assert "longer than the model was trained on" in marked["note"]
    assert one(by_ratio(cells), model="toy")["valid"] == 0
    notes = [str(row["note"]) for row in generation(run.rows("generation")).sort("prompt_tokens").to_dicts()]
    assert ["longer" in note for note in notes] == [False, True]
    assert [row["note"] is None for row in retrieval(run.rows("retrieval")).sort("context_tokens").to_dicts()] == [True, False]


@pytest.mark.parametrize(
    ("pruned", "verdict"), [(0, "NEVER_PRUNED"), (4, "BARELY_PRUNED"), (5, "VALID"), (100, "VALID")], ids=str
)  # fmt: skip
def test_verdict_follows_the_share_of_tokens_that_saw_a_pruned_cache(summarise, pruned, verdict):
    table = summarise([perplexity_row(0, policy="dense"), perplexity_row(0, tokens_scored_pruned=pruned)])
    assert one(table, policy="knorm")["verdict"] == verdict
    assert one(table, policy="dense")["verdict"] == "DENSE"


@pytest.mark.parametrize("nll", [None, float("nan"), float("inf")])
def test_a_missing_or_broken_sum_does_not_count_as_zero_nats(summarise, nll):
    rows = [perplexity_row(i, policy="dense") for i in range(2)] + [perplexity_row(0), perplexity_row(1, nll_sum=nll)]
    row = one(summarise(rows), policy="knorm")
    assert (row["ppl"], row["ratio"], row["ratio_low"], row["verdict"]) == (None, None, None, "NOT_FINITE")


def test_reproduced_position_bug_is_named(summarise):
    row = one(summarise([perplexity_row(0, position_mode="cache_length")]), policy="knorm")
    assert "reproduces the position bug on purpose" in row["note"]


def test_seeds_of_random_are_pooled_each_against_its_own_twin(summarise):
    rows = [perplexity_row(i, policy="dense", seed=seed) for i in range(2) for seed in (1, 2)]
    rows += [perplexity_row(i, policy="random", seed=seed, nll_sum=200.0 + 10 * seed) for i in range(2) for seed in (1, 2)]
    row = one(summarise(rows), policy="random")
    assert row["ratio"] == pytest.approx(math.exp(15 / 100))
    assert (row["seeds"], row["n_paired"]) == (2, 2)
    assert row["ratio_low"] == pytest.approx(row["ratio_high"])  # both windows differ equally: windows are resampled, not rows


@pytest.mark.parametrize("column", ["model_revision", "dataset_fingerprint", "protocol_version"])
def test_other_weights_data_or_protocol_are_never_pooled(summarise, column):
    other = 2 if column == "protocol_version" else "other"
    rows = [perplexity_row(0, policy="dense"), perplexity_row(0)]
    rows += [perplexity_row(0, policy="dense", nll_sum=100.0, **{column: other}), perplexity_row(0, **{column: other})]
    table = summarise(rows).filter(pl.col("policy") == "knorm")
    assert sorted(table["ratio"]) == pytest.approx([1.0, math.e])


def test_bootstrap_gives_the_numbers_of_scipy():
    rng = np.random.default_rng(3)
    tokens = rng.integers(50, 150, 12).astype(float)
    difference = rng.normal(0.1, 0.05, 12) * tokens

    def ratio(d, n, axis=-1):
        return np.exp(d.sum(axis=axis) / n.sum(axis=axis))

    wanted = stats.bootstrap(
        (difference, tokens), ratio, paired=True, method="percentile", n_resamples=2000, rng=np.random.default_rng(7), batch=2000
    )
    found = resampled_ratios(difference[None], tokens[None], resamples=2000, seed=7)[0]
    assert np.quantile(found, [0.025, 0.975]) == pytest.approx(list(wanted.confidence_interval), rel=1e-12)


def test_blocks_of_resamples_do_not_change_the_draws():
    n = 2_000_000 // 100
    values = np.sin(np.arange(n))[None]
    few = resampled_ratios(values, np.ones_like(values), resamples=40)
    many = resampled_ratios(values, np.ones_like(values), resamples=120)
    assert few.shape == (1, 40)
    assert np.array_equal(few[0], many[0, :40])


def test_all_cells_share_the_resamples():
    difference = np.array([[1.0, 2.0, 4.0], [2.0, 3.0, 5.0]])
    ratios = resampled_ratios(difference, np.ones((2, 3)))
    assert ratios.shape == (2, RESAMPLES)
    assert np.log(ratios[1]) - np.log(ratios[0]) == pytest.approx(np.ones(RESAMPLES))


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
    table = summary(load([first, second, first]).rows("perplexity"))
    assert one(table, policy="knorm")["tokens"] == 100


def dense_timings(rounds=7, **columns):
    """The dense cell and its control in every round."""
    values = {key: value if callable(value) else (lambda i, v=value: v) for key, value in columns.items()}
    return [
        generation_row(i, policy="dense", control=again, **{key: value(i) for key, value in values.items()})
        for i in range(rounds)
        for again in (False, True)
    ]


def speeds(tmp_path, rows):
    return generation(load([write_run(str(tmp_path / "run"), {"generation": rows})]).rows("generation"))


def test_speed_ratio_is_paired_by_round(tmp_path):
    times = [0.001, 0.003, 0.002, 0.004, 0.006, 0.005, 0.00105]
    dense = dense_timings(tpot_seconds=lambda i: times[i])
    pruned = [generation_row(i, tpot_seconds=times[i] / 2) for i in range(7)]
    row = one(speeds(tmp_path, dense + pruned[::-1]), policy="knorm")
    assert row["tpot_ratio"] == pytest.approx(0.5)
    assert (row["tpot_low"], row["tpot_high"]) == pytest.approx((0.5, 0.5))
    assert row["tpot_words"] == "2.00x faster"
    assert row["ttft_words"] == NO_DIFFERENCE
    assert row["tpot_seconds"] == pytest.approx(0.0015)


@pytest.mark.parametrize(
    ("columns", "timing", "words"),
    [
        ({}, "STABLE", "2.00x faster"),
        ({"tpot_seconds": lambda i: 0.002 * (1 + 0.12 * (i == 6))}, "UNSTABLE_TIMING", "changed by +12 % from first to last"),
        ({"timing_protocol": "report_2025"}, "WRONG_ON_PURPOSE", "wrong on purpose"),
    ],
)
def test_no_speed_up_is_named_where_the_dense_cell_drifts_or_the_protocol_is_wrong(tmp_path, columns, timing, words):
    mine = {key: value for key, value in columns.items() if key == "timing_protocol"}
    table = speeds(tmp_path, dense_timings(**columns) + [generation_row(i, tpot_seconds=0.001, **mine) for i in range(7)])
    row = one(table, policy="knorm")
    assert row["timing"] == timing
    assert words in row["tpot_words"]
    assert ("faster" in row["tpot_words"]) == (timing == "STABLE")
    assert row["tpot_ratio"] == pytest.approx(0.5, rel=0.01)  # the figure stays, marked


def test_no_speed_up_is_named_where_a_against_a_differs_or_was_not_run(tmp_path):
    uneven = dense_timings()
    for row in uneven:
        row["tpot_seconds"] *= 1.2 if row["control"] else 1.0
    pruned = [generation_row(i, tpot_seconds=0.001) for i in range(7)]
    row = one(speeds(tmp_path / "uneven", uneven + pruned), policy="knorm")
    assert "the dense cell differs from itself, 1.200 to 1.200" in row["tpot_words"]
    alone = [row for row in uneven if not row["control"]]
    assert "not timed against itself" in one(speeds(tmp_path / "alone", alone + pruned), policy="knorm")["tpot_words"]


def test_steps_that_prune_are_told_apart_and_the_ceiling_stands_beside_the_figure(tmp_path):
    row = generation_row(0, token_seconds=[0.004, 0.001, 0.001, 0.006], prune_steps=[0, 3], tpot_seconds=0.003)
    found = one(speeds(tmp_path, [row]), policy="knorm")
    assert (found["prune_step_seconds"], found["plain_step_seconds"]) == pytest.approx((0.005, 0.001))
    assert found["prefill_seconds"] == pytest.approx(0.010 - 0.0005)
    assert found["bytes_per_second"] == pytest.approx((1_000_000 + 5000) / 0.003)
    assert found["memory_bandwidth"] == 1e10


def test_timings_of_another_run_are_no_twin(tmp_path):
    rows = [generation_row(i, policy="dense", run_id="run-0") for i in range(7)] + [generation_row(i) for i in range(7)]
    assert one(speeds(tmp_path, rows), policy="knorm")["tpot_ratio"] is None


@pytest.mark.filterwarnings("error")
def test_memory_without_a_counter_is_null_without_a_warning(tmp_path):
    row = one(speeds(tmp_path, [generation_row(0, policy="dense"), generation_row(0)]), policy="knorm")
    assert row["peak_memory_bytes"] is None
    assert row["tpot_low"] is None


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ((0.8, 0.7, 0.9, 7), "1.25x faster"), ((1.25, 1.1, 1.4, 7), "1.25x slower"), ((0.8, 0.7, 1.0, 7), NO_DIFFERENCE),
        ((0.8, 0.7, 0.9, 5), f"{NO_DIFFERENCE} (only 5 rounds)"), ((0.8, None, None, 1), f"{NO_DIFFERENCE} (only one round)"),
    ],
)  # fmt: skip
def test_a_difference_is_named_only_where_it_was_shown(figures, words):
    assert in_words(*figures, more_is_better=False) == words


def test_median_interval_agrees_with_scipy():
    values = np.random.default_rng(1).normal(1.0, 0.1, 9)
    wanted = stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=3000, rng=np.random.default_rng(5), batch=3000
    )
    assert median_interval(values, 3000, 5) == pytest.approx(tuple(wanted.confidence_interval), rel=1e-12)


def test_retrieval_accuracy_has_wilsons_interval(tmp_path):
    rows = [retrieval_row(i, correct=i < 8) for i in range(10)] + [retrieval_row(i, policy="dense") for i in range(10)]
    table = retrieval(load([write_run(str(tmp_path / "run"), {"retrieval": rows})]).rows("retrieval"))
    row = one(table, policy="knorm")
    wanted = stats.binomtest(8, 10).proportion_ci(method="wilson")
    assert (row["accuracy"], row["dense_accuracy"]) == (0.8, 1.0)
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((wanted.low, wanted.high))


def test_a_directory_that_is_no_run_says_what_to_do(tmp_path):
    with pytest.raises(RunUnreadableError, match=r"no such directory.*kvsweep run"):
        load([str(tmp_path / "absent")])
    with pytest.raises(RunUnreadableError, match=r"has no run\.json"):
        load([str(tmp_path)])
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunUnreadableError, match="is not JSON"):
        load([str(tmp_path)])


def test_made_up_cells_have_an_id_of_their_own():
    assert len({cell(keep_ratio=r, prune_after=a)["cell_id"] for r in (0.5, 0.9) for a in (32, 512)}) == 4


@pytest.mark.parametrize("n", [2, 7, 12])
def test_sign_flips_agree_with_scipys_exact_permutation_test(n):
    values = np.random.default_rng(n).normal(0.3, 1.0, (3, n))
    for row, p in zip(values, sign_flip_p(values), strict=True):
        wanted = stats.permutation_test((row,), np.sum, permutation_type="samples", n_resamples=np.inf)
        assert p == pytest.approx(wanted.pvalue)


def test_many_units_are_flipped_at_random_and_never_give_a_p_of_zero():
    values = np.random.default_rng(0).normal(1.0, 0.1, (1, 40))
    assert sign_flip_p(values, 999) == pytest.approx([1 / 1000])
    assert 0.2 < sign_flip_p(values - values.mean(), 999)[0] <= 1.0


def test_holm_against_figures_worked_out_by_hand():
    frame = pl.DataFrame({"family": ["a"] * 4 + ["b"], "p": [0.01, 0.04, 0.03, None, 0.04]})
    adjusted = frame.with_columns(adjusted=holm(pl.col("p"), ["family"]))["adjusted"].to_list()
    assert adjusted[:3] == pytest.approx([0.03, 0.06, 0.06])  # 3 * 0.01; 2 * 0.03; max(0.06, 1 * 0.04)
    assert adjusted[3:] == [None, 0.04]


def test_only_valid_cells_are_compared_as_one_grid(summarise):
    rows = [perplexity_row(i, policy="dense") for i in range(8)]
    rows += [perplexity_row(i, nll_sum=210.0 + i) for i in range(8)]
    rows += [perplexity_row(i, nll_sum=211.0 + i, prune_after=64, tokens_scored_pruned=0) for i in range(8)]
    table = summarise(rows)
    assert one(table, prune_after=32)["p_holm"] == pytest.approx(2 / 2**8)
    assert one(table, prune_after=64)["p_holm"] is None


def test_documents_are_resampled_where_there_are_several(summarise):
    """Windows of one document are neighbours: eight windows of two documents are two units, not eight."""
    rows = [perplexity_row(i, policy="dense", document=i // 4) for i in range(8)]
    rows += [perplexity_row(i, nll_sum=210.0 + 10 * (i // 4), document=i // 4) for i in range(8)]
    row = one(summarise(rows), policy="knorm")
    assert (row["resampled"], row["n_units"]) == ("documents", 2)
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx((math.exp(0.1), math.exp(0.2)))


def test_the_smallest_detectable_ratio_follows_from_the_spread():
    rng = np.random.default_rng(3)
    differences = rng.normal(0.0, 5.0, (1, 400))
    detectable = _figures(differences, np.full((1, 400), 100), RESAMPLES, 1)[0, 3]
    assert math.log(detectable) == pytest.approx((1.96 + 0.84) * 5.0 / 100 / math.sqrt(400), rel=0.1)


def measured(nll, budget, **settings):
    """Two windows of a cell, both the same, so that its interval is a point."""
    return [perplexity_row(i, nll_sum=nll, cache_tokens_mean=50.0 * budget, **settings) for i in range(2)]


def test_the_recommended_cell_holds_least_within_the_tolerance(summarise):
    rows = measured(200.0, 1.0, policy="dense") + measured(200.5, 0.8, keep_ratio=0.9) + measured(201.5, 0.5, keep_ratio=0.5)
    rows += measured(202.0, 0.6, keep_ratio=0.6) + measured(200.1, 0.3, keep_ratio=0.3, position_mode="cache_length")
    cells = summarise(rows)
    assert front(cells)["keep_ratio"].to_list() == [0.5, 0.9]  # 0.6 holds more and loses more than 0.5; the bug is no setting
    assert one(recommended(cells, 0.02), model="toy")["keep_ratio"] == 0.5
    assert one(recommended(cells, 0.01), model="toy")["keep_ratio"] == 0.9
    (sentence,) = advice_in_words(recommended(cells, 0.02))
    assert sentence.startswith(
        "toy on text: least cache for a PPL at most 2 % worse with 95 % confidence: 50.0 % of the dense one ("
    )
    row = one(recommended(cells, 0.001), model="toy")
    assert row["keep_ratio"] is None
    assert row["advice"] == "no recommendation: no cell is shown to stay within 0.1 %; the closest may be 0.5 % worse"


def test_no_setting_is_recommended_without_an_interval(summarise):
    row = one(recommended(summarise([perplexity_row(0, policy="dense"), perplexity_row(0)])), model="toy")
    assert row["advice"] == "no recommendation: no cell that pruned has an interval"
