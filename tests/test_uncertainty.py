"""How sure a ratio is, and what may be recommended, against scipy and figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.recommend import advice_in_words, front, recommended
from analysis.uncertainty import RESAMPLES, _figures, holm, resampled_ratios, sign_flip_p
from tests.rows import one, perplexity_row


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
