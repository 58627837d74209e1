"""How much goes into a unit: counts that keep it near half a minute on a nominal device, and the most units
of a sweep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from pipeline.cells.cell import Cell
from pipeline.sweepfile.sweep_error import SweepError

UNIT_SECONDS = 30.0
"""What a unit takes on a nominal device."""
SHARED_PARTS = 3
"""A unit may take so many times what its cells share."""
MAX_UNITS = 2_000_000


def longest_seconds(shared: float) -> float:
    """What a unit may take whose cells share so many seconds of work."""
    return max(UNIT_SECONDS, SHARED_PARTS * shared)


def most(limit: int, seconds: Callable[[int], float], longest: float = UNIT_SECONDS) -> int:
    """The largest count, up to a limit, that takes no longer than a unit may; 1 at least."""
    count = 1
    while count < limit and seconds(count + 1) <= longest:
        count += 1
    return count


def evenly(count: int, most_each: int) -> list[range]:
    """0 ... count in parts of ``most_each`` at most, which differ by one at most."""
    parts = math.ceil(count / most_each)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [range(start, end) for start, end in itertools.pairwise(bounds)]


def in_batches(cells: Sequence[Cell], size: int) -> list[tuple[Cell, ...]]:
    """The cells in their order, ``size`` to a batch and the rest in the last."""
    return [tuple(cells[start : start + size]) for start in range(0, len(cells), size)]


def check_units(count: int, texts: str, fewer: str) -> None:
    """Raises SweepError where a sweep has too many units.

    ``texts``: how many of what are among them, in words;
    ``fewer``: the key of the sweep file that makes them less.
    """
    if count > MAX_UNITS:
        raise SweepError(
            [
                f"the sweep makes {count:,} units of work ({texts} among them), "
                f"and {MAX_UNITS:,} is the most; lower {fewer}, leave values of axes out, "
                "or make several sweeps of it"
            ]
        )
