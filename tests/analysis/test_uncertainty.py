"""How sure a ratio is, against scipy and figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.statistics.uncertainty import holm, sign_flip_p, widened
from tests.support.rows import one, perplexity_row, ratio_interval


@pytest.mark.parametrize("n", [2, 8, 40])
def test_the_interval_of_a_ratio_is_scipys_where_all_windows_are_as_long(summarise, n):
    nats = np.random.default_rng(n).normal(10, 3, n)
    rows = [perplexity_row(i, policy="dense") for i in range(n)] + [
        perplexity_row(i, nll_sum=200 + x) for i, x in enumerate(nats)
    ]
    row = one(summarise(rows), policy="knorm")
    wanted = stats.ttest_1samp(nats / 100, 0).confidence_interval(0.95)
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx(
        (math.exp(wanted.low), math.exp(wanted.high))
    )
    assert row["n_units"] == n and math.log(row["detectable"]) > wanted.high - np.mean(nats) / 100


def test_windows_that_are_not_as_long_count_by_their_tokens(summarise):
    rng = np.random.default_rng(3)
    nats, tokens = rng.normal(10, 3, 9), rng.integers(80, 120, 9)
    rows = [perplexity_row(i, policy="dense", tokens_scored=int(tokens[i])) for i in range(9)]
    rows += [perplexity_row(i, tokens_scored=int(tokens[i]), nll_sum=200 + nats[i]) for i in range(9)]
    row = one(summarise(rows), policy="knorm")
    assert (math.log(row["ratio_low"]), math.log(row["ratio_high"])) == pytest.approx(
        ratio_interval(nats, tokens)
    )


def test_the_ratio_where_pruned_is_not_diluted_by_tokens_that_saw_a_whole_cache(summarise):
    """A quarter of the tokens, and all of the loss."""
    rows = [perplexity_row(i, policy="dense") for i in range(4)]
    rows += [perplexity_row(i, nll_sum=201 + i, tokens_scored_pruned=25) for i in range(4)]
    row = one(summarise(rows), policy="knorm")
    assert (row["ratio"], row["pruned_ratio"]) == pytest.approx((math.exp(0.025), math.exp(0.1)))
    low, high = stats.ttest_1samp([0.04, 0.08, 0.12, 0.16], 0).confidence_interval(0.95)
    assert (row["pruned_low"], row["pruned_high"]) == pytest.approx((math.exp(low), math.exp(high)))


def test_intervals_that_hold_together_are_wider_and_bonferronis():
    cells = pl.DataFrame({"ratio": [1.2], "log_error": [0.05], "n_units": [8]})
    row = widened(cells, 10).row(0, named=True)
    half = stats.t.ppf(1 - 0.05 / 20, 7) * 0.05
    assert (row["wide_low"], row["wide_high"]) == pytest.approx((1.2 * math.exp(-half), 1.2 * math.exp(half)))


@pytest.mark.parametrize("n", [2, 7, 12, 16])
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


@pytest.mark.parametrize(("cells", "wanted"), [(3, [pytest.approx(3 * 2 / 2**7)] * 3), (4, [None] * 4)])
def test_no_p_is_printed_where_none_could_be_below_5_percent(summarise, cells, wanted):
    """Two of 2**7 patterns are as far off as seven equal differences: for four cells 0.0625 at best, for
    three 0.047."""

    rows = [perplexity_row(i, policy="dense") for i in range(7)]
    rows += [
        perplexity_row(i, nll_sum=250.0 + i, keep_ratio=0.9 - c / 10) for c in range(cells) for i in range(7)
    ]
    assert summarise(rows).filter(pl.col("policy") != "dense")["p_holm"].to_list() == wanted


def test_documents_are_the_units_where_there_are_several(summarise):
    """Windows of one document are neighbours: eight windows of two documents are two units, not eight."""
    rows = [perplexity_row(i, policy="dense", document=i // 4) for i in range(8)]
    rows += [perplexity_row(i, nll_sum=210.0 + 10 * (i // 4), document=i // 4) for i in range(8)]
    row = one(summarise(rows), policy="knorm")
    assert (row["unit_kind"], row["n_units"]) == ("documents", 2)
    low, high = stats.ttest_1samp([0.1, 0.2], 0).confidence_interval(0.95)
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx((math.exp(low), math.exp(high)))


def test_the_smallest_detectable_ratio_is_seen_8_times_in_10(summarise):
    """400 experiments with an effect of that size, by a t test of scipy."""
    rng = np.random.default_rng(3)
    nats = rng.normal(0.0, 5.0, 8)
    nats *= 5.0 / nats.std(ddof=1)
    rows = [perplexity_row(i, policy="dense") for i in range(8)] + [
        perplexity_row(i, nll_sum=200 + x) for i, x in enumerate(nats)
    ]
    effect = 100 * math.log(one(summarise(rows), policy="knorm")["detectable"])
    seen = stats.ttest_1samp(rng.normal(effect, 5.0, (4000, 8)), 0, axis=1).pvalue < 0.05
    assert seen.mean() == pytest.approx(0.8, abs=0.05)
