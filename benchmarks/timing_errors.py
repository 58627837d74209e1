"""How often timings of the same thing are said to differ; see ``coverage.py``."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.generation.speed import median_interval
from analysis.statistics.uncertainty import ALPHA
from benchmarks.tally import Measured

ROUNDS = [(6, 12), (7, 15), (6, 8)]
"""Rounds at least and at most of the embedded sweeps' timings."""
WIDTH = 0.05


def of_times(trials: int, rng: np.random.Generator) -> Iterator[Measured]:
    """A against A: rounds run until the interval is narrow; lognormal times, and ones with outliers."""
    for least, most in ROUNDS:
        wrong = {"": 0, ", with outliers": 0}
        for _ in range(trials):
            for words in wrong:
                times = np.exp(rng.normal(0, 0.03, (2, most)))
                if words:
                    times *= 1 + (rng.random(times.shape) < 0.1) * rng.exponential(0.3, times.shape)
                wrong[words] += not _holds_one(times[1] / times[0], least)
        for words, count in wrong.items():
            yield (
                f"A against A, {least} to {most} rounds{words}",
                ALPHA,
                count / trials,
                count / trials,
                trials,
            )


def _holds_one(ratios: np.ndarray, least: int) -> bool:
    low = high = None
    for rounds in range(least, len(ratios) + 1):
        low, high = median_interval(ratios[:rounds])
        assert low is not None and high is not None
        if high - low <= WIDTH:
            break
    return low is not None and high is not None and low <= 1 <= high
