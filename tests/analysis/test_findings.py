"""What the head of a page says of perplexity and time, from rows that would make a careless rule say it
wrongly."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.analysis.test_analysis_report import page_of
from tests.support.rows import generation_row, perplexity_row


def test_findings_are_computed_from_the_rows(tmp_path):
    rows = [perplexity_row(i, policy="dense") for i in range(3)]
    rows += [perplexity_row(i, nll_sum=210.0) for i in range(3)] + [
        perplexity_row(i, nll_sum=250.0, keep_ratio=0.5) for i in range(3)
    ]
    page = page_of(tmp_path / "a", perplexity=rows)
    assert "lowest PPL ratio 1.105 [1.105, 1.105] at 50.0 % of the dense cache (knorm, keep_ratio 0.9" in page
    assert "highest 1.649 [1.649, 1.649]" in page
    assert "n &lt; 8" in page


def test_the_lowest_and_the_highest_of_many_cells_have_intervals_that_hold_for_all(tmp_path):
    """By itself the lowest of twenty cells is shown to be below dense; picked among twenty it is not."""
    rng = np.random.default_rng(7)
    rows = [perplexity_row(i, policy="dense") for i in range(8)]
    lowest = -3.0 + rng.normal(0, 3, 8)
    assert stats.ttest_1samp(lowest / 100, 0).confidence_interval(0.95).high < 0
    for cell in range(20):
        nats = lowest if cell == 0 else 4.0 + rng.normal(0, 3, 8)
        rows += [perplexity_row(i, keep_ratio=0.9 - cell / 50, nll_sum=200 + x) for i, x in enumerate(nats)]
    page = page_of(tmp_path / "run", perplexity=rows)
    low, high = np.exp(stats.ttest_1samp(lowest / 100, 0).confidence_interval(1 - 0.05 / 20))
    assert low < 1 < high
    words = (
        f"of 20 cells that pruned, lowest PPL ratio {np.exp(lowest.mean() / 100):.3f} [{low:.3f},"
        f" {high:.3f}] at"
    )
    assert words in page and "; both intervals hold for all cells together." in page


@pytest.mark.parametrize(
    ("prunes", "words"),
    [(0.003, "prune_after 32)"), (None, "no step pruned, so that this is of a smaller cache alone)")],
)
def test_a_change_of_speed_has_its_interval_and_says_whether_any_step_pruned(tmp_path, prunes, words):
    rows = [generation_row(i, policy="dense", control=again) for i in range(7) for again in (False, True)]
    steps = [0, 8] if prunes else []
    rows += [generation_row(i, tpot_seconds=0.001 + i * 1e-5, prune_steps=steps) for i in range(7)]
    page = page_of(tmp_path / "run", generation=rows)
    assert (
        "differs from dense in 1 of 1 cells, each at the 95 % level: 1.94x faster, ratio [0.500, 0.530]"
        " (knorm" in page
    )
    assert words in page


def test_of_a_cell_that_never_pruned_nothing_is_said_of_a_smaller_cache(tmp_path):
    rows = [generation_row(i, policy="dense", control=again) for i in range(7) for again in (False, True)]
    rows += [generation_row(i, tpot_seconds=0.001, prune_steps=[], prune_events=0) for i in range(7)]
    page = page_of(tmp_path / "run", generation=rows)
    assert "differs from dense in 1 of 1 cells" in page and "smaller cache" not in page.split("<script")[0]


@pytest.mark.parametrize(
    ("rounding", "words"),
    [
        (
            {"rounding_ppl": 0.0042, "rounding_nats": 0.031},
            "up to 0.4 % of PPL and 0.031 nats a token on average",
        ),
        ({"rounding_ppl": None, "rounding_nats": None}, "by how much was not recorded"),
    ],
)
def test_figures_in_16_bits_say_what_rounding_alone_does(tmp_path, rounding, words):
    rows = [
        perplexity_row(i, policy=p, dtype="bfloat16", **rounding)
        for p in ("dense", "knorm")
        for i in range(3)
    ]
    assert words in page_of(tmp_path / "run", perplexity=rows)
    exact = [row | {"dtype": "float32"} for row in rows]
    assert "Measured in 16 bits" not in page_of(tmp_path / "exact", perplexity=exact)


def test_a_lucky_round_is_no_change_of_speed(tmp_path):
    """The median is half of dense's, and six rounds of which one was slower show nothing."""
    rows = [generation_row(i, policy="dense", control=again) for i in range(6) for again in (False, True)]
    rows += [generation_row(i, tpot_seconds=0.001 if i else 0.0021) for i in range(6)]
    page = page_of(tmp_path / "run", generation=rows)
    assert "time per output token: no difference shown in any of 1 cells" in page


def test_a_reproduced_bug_is_no_finding(tmp_path):
    rows = [perplexity_row(0, policy="dense"), perplexity_row(0, nll_sum=210.0)]
    page = page_of(
        tmp_path / "run", perplexity=[*rows, perplexity_row(0, nll_sum=300.0, position_mode="cache_length")]
    )
    assert (
        "PPL ratio 1.105 – at 50.0 % of the dense cache (knorm, keep_ratio 0.9, no layer skipped); the only"
        " cell" in page
    )
    assert "a bug reproduced on purpose: 1 of 2 cells" in page


def test_the_page_says_which_figures_are_of_16_bits(tmp_path):
    rows = [
        perplexity_row(0, policy=policy, dtype=dtype)
        for policy in ("dense", "knorm")
        for dtype in ("float32", "bfloat16")
    ]
    words = "do not rely on smaller differences: 1 of 2 cells."
    assert words in page_of(tmp_path / "run", perplexity=rows)
    assert "16 bits" not in page_of(
        tmp_path / "exact", perplexity=[row for row in rows if row["dtype"] == "float32"]
    )
