"""Timings in the report: ratios paired by round, the checks that let one be named, and what stands beside a
figure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from analysis.generation.speed import NO_DIFFERENCE, change_in_words, median_interval
from analysis.load import load
from analysis.tables import Tables
from tests.support.rows import generation_row, one, write_run


def dense_timings(rounds=7, **columns):
    """The dense cell and its control in every round."""
    values = {key: value if callable(value) else (lambda i, v=value: v) for key, value in columns.items()}
    return [
        generation_row(i, policy="dense", control=again, **{key: value(i) for key, value in values.items()})
        for i in range(rounds)
        for again in (False, True)
    ]


def speeds(tmp_path, rows):
    return Tables.of(load([write_run(str(tmp_path / "run"), {"generation": rows})])).generation


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
        (
            {"tpot_seconds": lambda i: 0.002 * (1 + 0.12 * (i == 6))},
            "UNSTABLE_TIMING",
            "changed by +12 % from first to last",
        ),
        ({"timing_protocol": "report_2025"}, "WRONG_ON_PURPOSE", "wrong on purpose"),
    ],
)
def test_no_speed_up_is_named_where_the_dense_cell_drifts_or_the_protocol_is_wrong(
    tmp_path, columns, timing, words
):
    mine = {key: value for key, value in columns.items() if key == "timing_protocol"}
    table = speeds(
        tmp_path, dense_timings(**columns) + [generation_row(i, tpot_seconds=0.001, **mine) for i in range(7)]
    )
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
    assert (
        "not timed against itself"
        in one(speeds(tmp_path / "alone", alone + pruned), policy="knorm")["tpot_words"]
    )


def test_steps_that_prune_are_told_apart_and_the_ceiling_stands_beside_the_figure(tmp_path):
    row = generation_row(
        0, token_seconds=[0.004, 0.001, 0.001, 0.006], prune_steps=[0, 3], tpot_seconds=0.003
    )
    found = one(speeds(tmp_path, [row]), policy="knorm")
    assert (found["prune_step_seconds"], found["plain_step_seconds"]) == pytest.approx((0.005, 0.001))
    assert found["prefill_seconds"] == pytest.approx(0.010 - 0.0005)
    assert found["bytes_per_second"] == pytest.approx((1_000_000 + 5000) / 0.003)
    assert found["memory_bandwidth"] == 1e10


def test_timings_of_another_run_are_no_twin(tmp_path):
    rows = [generation_row(i, policy="dense", run_id="run-0") for i in range(7)] + [
        generation_row(i) for i in range(7)
    ]
    assert one(speeds(tmp_path, rows), policy="knorm")["tpot_ratio"] is None


@pytest.mark.filterwarnings("error")
def test_memory_without_a_counter_is_null_without_a_warning(tmp_path):
    row = one(speeds(tmp_path, [generation_row(0, policy="dense"), generation_row(0)]), policy="knorm")
    assert row["peak_memory_bytes"] is None
    assert row["tpot_low"] is None


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ((0.8, 0.7, 0.9, 7), "1.25x faster"),
        ((1.25, 1.1, 1.4, 7), "1.25x slower"),
        ((0.8, 0.7, 1.0, 7), NO_DIFFERENCE),
        ((0.8, 0.7, 0.9, 5), f"{NO_DIFFERENCE} (only 5 rounds)"),
        ((0.8, None, None, 1), f"{NO_DIFFERENCE} (only one round)"),
    ],
)
def test_a_difference_is_named_only_where_it_was_shown(figures, words):
    assert change_in_words(*figures, more_is_better=False) == words


@pytest.mark.parametrize(("rounds", "rank"), [(5, None), (6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (40, 14)])
def test_the_interval_of_a_median_lies_between_the_order_statistics_of_the_tables(rounds, rank):
    """The largest rank that still covers 95 %: as tabled for the sign test (Conover 1999, table A3)."""
    values = np.random.default_rng(1).normal(1.0, 0.1, rounds)
    ordered = sorted(values)
    assert median_interval(values) == ((None, None) if rank is None else (ordered[rank - 1], ordered[-rank]))
    if rank is not None:
        misses = [2 * sum(math.comb(rounds, i) for i in range(k)) / 2**rounds for k in (rank, rank + 1)]
        assert misses[0] <= 0.05 < misses[1]


@pytest.mark.filterwarnings("error")
def test_dense_rows_without_times_are_no_stable_timing(tmp_path):
    row = one(
        speeds(tmp_path, dense_timings(tpot_seconds=None) + [generation_row(i) for i in range(7)]),
        policy="dense",
    )
    assert (row["timing"], "has no time per token" in row["note"]) == ("UNSTABLE_TIMING", True)
