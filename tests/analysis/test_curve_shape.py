"""Minimum and phases of a curve: against literals, and against tests of scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis.perplexity.curve_shape import phases
from tests.support.rows import one, perplexity_row


@pytest.fixture
def shapes_of(tables_of):
    return lambda rows: tables_of(perplexity=rows).curves


def curve(nats, windows=6, **settings):
    """Rows of cells whose NLL is 200 + nats per keep_ratio, wobbling a little between windows, with their
    dense twin."""
    rows = [perplexity_row(i, policy="dense", **settings) for i in range(windows)]
    return rows + [
        perplexity_row(i, keep_ratio=ratio, nll_sum=200 + extra + 0.5 * ((i * k) % 3), **settings)
        for k, (ratio, extra) in enumerate(nats.items(), 1)
        for i in range(windows)
    ]


def test_a_u_shape_has_its_minimum_and_its_three_phases(shapes_of):
    found = one(shapes_of(curve({0.9: 40.0, 0.7: 20.0, 0.5: 10.0, 0.3: 30.0})))
    assert (found["minimum_at"], found["minimum_low"], found["minimum_high"]) == (0.5, 0.5, 0.5)
    words = found["phases"].split("; ")
    assert [part.split(" ")[3] for part in words] == ["rises", "falls", "rises"]
    assert words[0].startswith("1 → 0.9 rises ×1.49") and words[1].startswith("0.9 → 0.5 falls ×0.73")
    assert found["ratio"] == pytest.approx(np.exp(10 / 100))


def test_a_minimum_that_may_lie_elsewhere_says_where(shapes_of):
    rows = [perplexity_row(i, policy="dense") for i in range(8)]
    for ratio, nats in {0.9: [30] * 8, 0.7: [12, 8] * 4, 0.5: [9.5, 10] * 4}.items():
        rows += [perplexity_row(i, keep_ratio=ratio, nll_sum=200 + nats[i]) for i in range(8)]
    found = one(shapes_of(rows))
    assert found["minimum_at"] == 0.5 and (found["minimum_low"], found["minimum_high"]) == (0.5, 0.7)
    assert found["phases"].endswith("0.7 → 0.5 no change shown")


def test_the_minimum_may_be_at_any_cell_that_is_not_shown_to_be_worse_than_the_lowest(shapes_of):
    """The judge: paired one-sided t tests of scipy, at 5 % divided by how many are compared."""
    rng = np.random.default_rng(1)
    nats = {0.95: 7.0, 0.9: 5.0, 0.7: 3.0, 0.5: 3.2, 0.3: 5.5}
    extra = {ratio: mean + rng.normal(0, 2, 10) for ratio, mean in nats.items()}
    rows = [perplexity_row(i, policy="dense") for i in range(10)]
    rows += [
        perplexity_row(i, keep_ratio=ratio, nll_sum=200 + float(values[i]))
        for ratio, values in extra.items()
        for i in range(10)
    ]
    found = one(shapes_of(rows))
    lowest = min(extra, key=lambda ratio: extra[ratio].sum())
    possible = [lowest] + [
        ratio
        for ratio in extra
        if ratio != lowest
        and stats.ttest_rel(extra[ratio], extra[lowest], alternative="greater").pvalue >= 0.05 / 4
    ]
    assert 1 < len(possible) < 5
    assert (found["minimum_low"], found["minimum_high"]) == (min(possible), max(possible))


def test_curves_of_few_cells_or_of_different_windows_have_no_shape(shapes_of):
    assert shapes_of(curve({0.9: 40.0, 0.5: 10.0})).is_empty()


def test_windows_that_differ_between_the_cells_of_a_curve_give_no_shape(shapes_of):
    rows = curve({0.9: 40.0, 0.7: 20.0, 0.5: 10.0})
    assert shapes_of(rows).height == 1
    assert shapes_of(
        [row for row in rows if not (row["keep_ratio"] == 0.7 and row["window_index"] == 0)]
    ).is_empty()


def test_steps_of_one_kind_are_one_phase():
    logs = 100 * np.log([[1.5] * 8, [2.0] * 8, [2.02, 1.97] * 4, [1.2] * 8])
    words = phases(np.array([0.9, 0.8, 0.7, 0.6]), logs, np.full(8, 100.0))
    assert words == "1 → 0.8 rises ×2.000; 0.8 → 0.7 no change shown; 0.7 → 0.6 falls ×0.602"


def test_one_step_of_many_that_differs_by_chance_is_no_phase():
    """p = 0.02 in one of ten steps: each by itself would be called a rise, together they show none."""
    noise = np.array([1.0, 2, 3, 4, 5, -0.6, -0.8, 2.2])
    assert 0.01 < stats.ttest_1samp(noise, 0).pvalue < 0.05
    flat = np.zeros((9, 8))
    assert phases(np.linspace(0.9, 0.1, 9), flat + noise, np.full(8, 100.0)) == "1 → 0.1 no change shown"
    assert "rises" in phases(np.array([0.9]), noise[None], np.full(8, 100.0))
