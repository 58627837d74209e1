"""Minimum and phases of a curve: against literals, and against a plain bootstrap in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.curve_shape import RESAMPLES, phases, shapes
from analysis.load import load
from analysis.pairs import with_dense
from analysis.tables import summary
from analysis.uncertainty import SEED
from tests.rows import one, perplexity_row, write_run


@pytest.fixture
def shapes_of(tmp_path_factory):
    def table(rows):
        measured = with_dense(load([write_run(str(tmp_path_factory.mktemp("run")), {"perplexity": rows})]).rows("perplexity"))
        return shapes(measured, summary(measured))

    return table


def curve(nats, windows=6, **settings):
    """Rows of cells whose NLL is 200 + nats per keep_ratio, wobbling a little between windows, with their dense twin."""
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


def test_the_interval_of_the_minimum_is_that_of_a_plain_bootstrap(shapes_of):
    rng = np.random.default_rng(1)
    nats = {0.9: 5.0, 0.7: 3.0, 0.5: 3.2}
    extra = {ratio: mean + rng.normal(0, 2, 10) for ratio, mean in nats.items()}
    rows = [perplexity_row(i, policy="dense") for i in range(10)]
    rows += [
        perplexity_row(i, keep_ratio=ratio, nll_sum=200 + float(values[i])) for ratio, values in extra.items() for i in range(10)
    ]
    found = one(shapes_of(rows))
    drawn = np.random.default_rng(SEED).integers(0, 10, (RESAMPLES, 10))
    lowest = np.array(list(extra))[np.argmin([values[drawn].sum(1) for values in extra.values()], axis=0)]
    low, high = np.quantile(lowest, [0.025, 0.975], method="nearest")
    assert (found["minimum_low"], found["minimum_high"]) == (low, high)


def test_curves_of_few_cells_or_of_different_windows_have_no_shape(shapes_of):
    assert shapes_of(curve({0.9: 40.0, 0.5: 10.0})).is_empty()


def test_windows_that_differ_between_the_cells_of_a_curve_give_no_shape(shapes_of):
    rows = curve({0.9: 40.0, 0.7: 20.0, 0.5: 10.0})
    assert shapes_of(rows).height == 1
    assert shapes_of([row for row in rows if not (row["keep_ratio"] == 0.7 and row["window_index"] == 0)]).is_empty()


def test_steps_of_one_kind_are_one_phase():
    ratios = np.array([[1.5] * 100, [2.0] * 100, [2.0, 1.99] * 50, [1.2] * 100])
    words = phases(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1.5, 2.0, 1.995, 1.2]), ratios)
    assert words == "1 → 0.8 rises ×2.000; 0.8 → 0.7 no change shown; 0.7 → 0.6 falls ×0.602"
