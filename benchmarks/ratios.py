"""Ratios of rounds in words: their median, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.generation.speed import median_interval


def median_in_words(ratios: Sequence[float] | np.ndarray, decimals: int) -> str:
    """The median and its 95 % interval between two order statistics, which fewer than six rounds do not
    have."""
    low, high = median_interval(np.asarray(ratios))
    sure = "too few rounds" if low is None or high is None else f"{low:.{decimals}f}, {high:.{decimals}f}"
    return f"{np.median(ratios):{decimals + 3}.{decimals}f} [{sure}]"
