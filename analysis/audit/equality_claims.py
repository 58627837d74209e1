"""Two claims that PPL is what the dense cell's is: at every keep_ratio, and with a threshold of 512.

Confirmed where every interval lies within 1 % of 1, not held to where some interval lies wholly outside, of
intervals that hold together. Where neither is shown the verdict is "not testable here".
"""

from __future__ import annotations

import polars as pl

from analysis import labels
from analysis.audit.claim_evidence import (
    CONFIRMED,
    MARGIN,
    NOT_TESTABLE,
    REFUTED,
    THAT_PRUNES,
    Evidence,
    Ruling,
    artefact,
    at_ratio,
    counted,
    first_and_last,
    lowest,
    missing,
    plain,
    share_of,
    sure,
    with_interval,
)
from analysis.statistics.margins import changed, unchanged
from analysis.statistics.uncertainty import widened

SAME_RATIO = 1e-6
"""Ratios of PPL this near to each other are the same."""

LONG_THRESHOLD = 512
EQUAL_WHERE_PRUNED = unchanged("pruned_low", "pruned_high")


def equal_at_every_ratio(e: Evidence) -> Ruling:
    """Plain knorm at the lowest threshold: confirmed where every interval lies within 1 % of 1.

    An artefact where some cell is shown to lie further off: a dense pass, which is how the reports evaluated,
    gives the same figure at every ratio.
    """
    cells = lowest(sure(plain(e.cells)))
    if cells.is_empty():
        return missing("plain knorm cells that pruned, with an interval", THAT_PRUNES)
    if cells["keep_ratio"].n_unique() < 2:
        lacking = "plain knorm cells of two keep_ratios that pruned, with intervals"
        return missing(lacking, f"several keep_ratios, {THAT_PRUNES}")

    dense = labels.figure(cells["dense_ppl"][0])
    reproduced = f"PPL {dense} at each of {counted(cells, 'ratio')}: a dense pass knows no keep_ratio"
    verdict = _equality(cells, artefact("evaluating without the cache"))
    return Ruling(verdict, _how_many(cells), reproduced, _ends(cells))


def unchanged_at_512(e: Evidence) -> Ruling:
    """Cells that really pruned at 512 or above: confirmed where every interval lies within 1 % of 1.

    Where some cell is shown to lie further off, an artefact if the cells below their threshold all equal
    dense, else refuted. Cells that barely pruned stand in where none never did.
    """
    vacuous = _vacuous(plain(e.cells))
    reproduced = _dense_figures(vacuous) if vacuous.height else None
    cells = sure(plain(e.cells)).filter(pl.col("prune_after") >= LONG_THRESHOLD)
    if cells.is_empty():
        kind = f"plain knorm cells that pruned at {LONG_THRESHOLD} entries or more, with an interval"
        return missing(kind, f"a window well above {LONG_THRESHOLD}", reproduced)

    equals_dense = vacuous.filter((pl.col("ratio") - 1).abs() <= SAME_RATIO)
    never_differs = vacuous.height and equals_dense.height == vacuous.height
    otherwise = artefact("a threshold that is never reached") if never_differs else REFUTED
    return Ruling(_equality(cells, otherwise), _how_many(cells), reproduced, _ends(cells))


def _vacuous(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells that never reached their threshold, or that hardly did where there are none."""
    never = cells.filter(pl.col("verdict") == "NEVER_PRUNED")
    return never if never.height else cells.filter(pl.col("verdict") == "BARELY_PRUNED")


def _dense_figures(vacuous: pl.DataFrame) -> str:
    """What those cells report, and that it is not of pruning."""
    ppl = vacuous["ppl"].sort()
    share = vacuous.select(pl.col("share_pruned").max()).item()
    pruned = f"at most {labels.percent(share)} of the tokens scored pruned"
    span = f"PPL {labels.figure(ppl[0])} to {labels.figure(ppl[-1])}"
    return f"{span} in {counted(vacuous, 'cell')}, {pruned}"


def _equality(cells: pl.DataFrame, otherwise: str) -> str:
    """The verdict on "equal to dense": ``otherwise`` where some cell is shown to differ."""
    if where_pruned(cells).filter(changed()).height:
        return otherwise
    return CONFIRMED if cells.filter(EQUAL_WHERE_PRUNED).height == cells.height else NOT_TESTABLE


def _how_many(cells: pl.DataFrame) -> str:
    """How many intervals lie outside and inside the margin, where, and on how many units."""
    thresholds = labels.text(sorted(set(cells["prune_after"])))
    units = f"{cells['n_units'].min()} {cells['unit_kind'][0]}"
    differ = share_of(where_pruned(cells), changed())
    equal = share_of(cells, EQUAL_WHERE_PRUNED)
    words = f"{differ} cells differ from dense by more than {MARGIN} where pruned, {equal} by less"
    return f"at prune_after {thresholds} {words} ({units})"


def _ends(cells: pl.DataFrame) -> str:
    """The cells of lowest and highest PPL ratio, with intervals that hold for all of the cells together."""
    rows = where_pruned(cells).sort("pruned_ratio").to_dicts()
    ends = [
        f"{with_interval(row['pruned_ratio'], row['wide_low'], row['wide_high'])} {at_ratio(row)}"
        for row in first_and_last(rows)
    ]
    return "PPL ratio where pruned " + " to ".join(ends)


def where_pruned(cells: pl.DataFrame) -> pl.DataFrame:
    """The cells with intervals, of the ratios where pruned, that hold for all of them together.

    The other tokens have dense's NLL and would dilute it.
    """
    return widened(cells, cells.height, "pruned_ratio", "pruned_error", "pruned_units")
