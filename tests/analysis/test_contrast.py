"""Contrasts of two cells: against literals and scipy."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis.audit.contrast import above, below, contrast
from analysis.statistics.margins import mostly
from tests.audit.test_claims import DENSE, SKIP, gather, scored
from tests.support.rows import one, perplexity_row


def pairs_of(tmp_path, rows, differs="policy"):
    (evidence,) = gather(tmp_path, rows)
    cells = evidence.cells
    return contrast(evidence.measured, cells.filter(policy="random"), cells.filter(policy="knorm"), [differs])


def cell_of(nats, policy, **columns):
    values = {
        key: value if isinstance(value, list) else [value] * len(nats) for key, value in columns.items()
    }
    own = [{key: value[i] for key, value in values.items()} for i in range(len(nats))]
    return [perplexity_row(i, policy=policy, nll_sum=nats[i], **own[i]) for i in range(len(nats))]


def test_a_contrast_is_the_quotient_of_ppls_on_the_windows_that_both_scored(tmp_path):
    """(210 - 204 + 220 - 206) nats over 200 tokens; the third window has no partner."""
    row = one(
        pairs_of(
            tmp_path, DENSE + cell_of([210.0, 220.0, 900.0], "random") + cell_of([204.0, 206.0], "knorm")
        )
    )
    assert row["factor"] == pytest.approx(math.exp(20 / 200))
    low, high = stats.ttest_1samp([0.06, 0.14], 0).confidence_interval(0.95)
    assert (row["low"], row["high"]) == pytest.approx((math.exp(low), math.exp(high)))
    assert row["n"] == 2


def test_the_units_of_a_contrast_of_documents_are_documents(tmp_path):
    documents = {"document": [0, 0, 1, 1]}
    rows = cell_of([200.0] * 4, "dense", **documents) + cell_of(
        [210.0, 230.0, 202.0, 202.0], "random", **documents
    )
    row = one(pairs_of(tmp_path / "a", rows + cell_of([200.0] * 4, "knorm", **documents)))
    low, high = stats.ttest_1samp([0.2, 0.02], 0).confidence_interval(0.95)
    assert (row["n"], row["low"], row["high"]) == pytest.approx((2, math.exp(low), math.exp(high)))
    assert pairs_of(
        tmp_path / "b", rows + cell_of([200.0] * 4, "knorm")
    ).is_empty()  # whose documents nobody knows


def test_the_interval_of_a_contrast_is_scipys(tmp_path):
    rng = np.random.default_rng(2)
    first, second = rng.normal(230, 20, 8), rng.normal(220, 20, 8)
    low, high = stats.ttest_rel(first / 100, second / 100).confidence_interval(0.95)
    row = one(
        pairs_of(
            tmp_path, cell_of([200.0] * 8, "dense") + cell_of(first, "random") + cell_of(second, "knorm")
        )
    )
    assert (row["low"], row["high"]) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-12)


def test_a_cell_of_two_seeds_is_contrasted_by_its_mean(tmp_path):
    """Both seeds of random, and knorm, cost as much: their quotient is 1, not that of sums over two and
    one."""
    rows = (
        DENSE
        + scored(1.109)
        + [row for seed in (0, 1) for row in scored(1.109, policy="random", seed=seed, dense_cell_id="d")]
    )
    rows = [row | {"dense_cell_id": DENSE[0]["cell_id"]} for row in rows]
    row = one(pairs_of(tmp_path, rows))
    assert (row["factor"], row["low"], row["high"]) == pytest.approx((1.0, 1.0, 1.0))


def test_rounding_in_16_bits_widens_a_contrast(tmp_path):
    half = {"dtype": "bfloat16", "rounding_ppl": 0.02}
    rows = scored(policy="dense", **half) + scored(1.03, **half) + scored(1.0, policy="random", **half)
    row = one(pairs_of(tmp_path, rows))
    assert (row["factor"], row["low"], row["high"]) == pytest.approx(
        (1 / 1.03, 1 / 1.03 / 1.02**2, 1.02**2 / 1.03)
    )


def test_only_cells_that_differ_in_nothing_else_are_contrasted_and_one_window_is_no_pair(tmp_path):
    rows = (
        DENSE
        + scored(1.2)
        + scored(1.3, policy="random", keep_ratio=0.5)
        + scored(1.3, policy="random", **SKIP)
    )
    assert pairs_of(tmp_path / "a", rows).is_empty()
    assert pairs_of(tmp_path / "b", rows, "keep_ratio").is_empty()
    assert pairs_of(tmp_path / "c", DENSE + scored(1.2) + scored(1.3, windows=1, policy="random")).is_empty()


def test_a_difference_is_shown_by_most_pairs_and_is_no_rounding():
    pairs = pl.DataFrame(
        {"factor": [1.2, 1.2, 1.0005, 0.9], "low": [1.1, 0.9, 1.0001, 0.8], "high": [1.3, 1.3, 1.001, 0.95]}
    )
    assert pairs.select(a=above(), b=below()).rows() == [
        (True, False),
        (False, False),
        (False, False),
        (False, True),
    ]
    assert not mostly(pairs[:2], above())
    assert mostly(pairs[:1], above())
