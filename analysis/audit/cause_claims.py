"""Two claims about what makes PPL rise: that sorting shuffles the
order, and that keeping more brings conflicting information.

Each is held against other causes that are varied alone, in paired contrasts. Where nothing is shown the
verdict is "not testable here".
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
    control_experiment,
    counted,
    factor_words,
    highest,
    lowest,
    missing,
    plain,
    ratio_words,
    share_of,
    sure,
)
from analysis.audit.contrast import above, below, contrast, saved_share
from analysis.statistics.margins import PPL_MARGIN, mostly, unchanged

PRUNED_LENGTH = "positions taken from the pruned length"
LOW_THRESHOLD = "the low threshold"

RAISED = pl.col("low") > 1 + PPL_MARGIN
"""Pairs in which the first cell is shown to be worse by more than the margin."""


def order(e: Evidence) -> Ruling:
    """The same kept set stored in order of norm, against knorm: confirmed where most pairs are shown to be
    worse by over 1 %.

    Where all are shown to be equal within 1 %, what else differed is varied alone, starting from absolute
    positions and the highest threshold; what raises PPL in most pairs is the cause.
    """
    stored, kept = (sure(e.cells.filter(pl.col("policy") == name)) for name in ("knorm_sorted", "knorm"))
    pairs = contrast(e.measured, stored, kept, ["policy"])
    causes = _other_causes(e)
    told = [f"{cause}: {_largest(varied)}" for cause, varied in causes.items() if varied.height]
    honest = "; ".join(told) or None
    if pairs.is_empty():
        lacking = "knorm_sorted cells beside the same of knorm"
        return missing(lacking, "policies: [knorm, knorm_sorted]", honest=honest)

    furthest = pairs.sort(pl.col("factor").log().abs()).row(-1, named=True)
    many = counted(pairs, "pair")
    reproduced = f"knorm_sorted / knorm {factor_words(furthest)}, the furthest from 1 of {many}"
    equal = unchanged("low", "high")
    absent = "".join(f"; no cells that vary {cause}" for cause, varied in causes.items() if varied.is_empty())
    changes_little = f"order changes PPL by less than {MARGIN} in {share_of(pairs, equal)} pairs"
    why = f"{changes_little}, raises it by more in {share_of(pairs, RAISED)}{absent}"

    if mostly(pairs, RAISED):
        return Ruling(CONFIRMED, why, reproduced, honest)
    if pairs.filter(equal).height < pairs.height:
        return Ruling(NOT_TESTABLE, why, reproduced, honest)
    guilty = _guilty(causes)
    return Ruling(artefact(" and ".join(guilty)) if guilty else REFUTED, why, reproduced, honest)


def _other_causes(e: Evidence) -> dict[str, pl.DataFrame]:
    """What else may have raised PPL, each varied alone in pairs of plain knorm cells."""
    knorm = sure(plain(e.cells))
    bug = sure(plain(e.cells, positions="cache_length"))
    below_highest = knorm.filter(pl.col("prune_after") < pl.col("prune_after").max())
    return {
        PRUNED_LENGTH: highest(contrast(e.measured, bug, knorm, ["position_mode"])),
        LOW_THRESHOLD: contrast(e.measured, lowest(below_highest), highest(knorm), ["prune_after"]),
    }


def _guilty(causes: dict[str, pl.DataFrame]) -> list[str]:
    """The causes that raise PPL in most pairs, the largest first."""
    sizes = {cause: pairs["factor"].sort()[-1] for cause, pairs in causes.items() if mostly(pairs, RAISED)}
    return sorted(sizes, key=lambda cause: -sizes[cause])


def _largest(pairs: pl.DataFrame) -> str:
    """The pair of the largest factor, and in how many the first cell is worse."""
    row = pairs.sort("factor").row(-1, named=True)
    place = f"{at_ratio(row)}, prune_after {row['prune_after']}"
    return f"up to {factor_words(row)} {place}; above 1 in {share_of(pairs, above())}"


def u_curve(e: Evidence) -> Ruling:
    """Plain knorm at the lowest threshold: refuted where the highest keep_ratio is shown not to be worse than
    the lowest by 1 %.

    An artefact where it is shown to be worse, and protecting the newest entries
    is shown to take away half of what it costs. What else may cause a rise,
    conflicting information included, no row can tell: then nothing is confirmed.
    """
    curve = lowest(sure(plain(e.cells))).sort("keep_ratio", descending=True)
    rise = contrast(e.measured, curve[:1], curve[1:][-1:], ["keep_ratio"])
    if rise.is_empty():
        lacking = "plain knorm cells of two keep_ratios, with intervals"
        return missing(lacking, f"several keep_ratios, {THAT_PRUNES}")

    top = rise.row(0, named=True)
    reproduced = _curve_in_words(curve, top)
    honest = _controls(e.cells, top)
    why = f"highest keep_ratio / lowest {factor_words(top)}"

    over_least = contrast(e.measured, curve[:-1], curve[-1:], ["keep_ratio"])
    if top["high"] <= 1 + PPL_MARGIN and over_least.filter(above()).is_empty():
        return Ruling(REFUTED, f"{why}: no rise of more than {MARGIN}", reproduced, honest)
    if rise.filter(above()).is_empty() or top["ratio_low"] <= 1:
        no_rise = f"{why}, PPL ratio to dense {ratio_words(top)}: no rise shown"
        return Ruling(NOT_TESTABLE, no_rise, reproduced, honest)
    verdict, cause = _newest_protected(e, curve[:1], top)
    return Ruling(verdict, f"{why}{cause}", reproduced, honest)


def _beside(top: labels.Row) -> pl.Expr:
    """The cells of one threshold and keep_ratio."""
    return (pl.col("prune_after") == top["prune_after"]) & (pl.col("keep_ratio") == top["keep_ratio"])


def _curve_in_words(curve: pl.DataFrame, top: labels.Row) -> str:
    """PPL at each keep_ratio, behind that of the dense cell."""
    dense = f"prune_after {top['prune_after']}: dense {labels.figure(top['dense_ppl'])}"
    points = [
        f"{labels.ratio_setting(ratio)}: {labels.figure(ppl)}"
        for ratio, ppl in curve.select("keep_ratio", "ppl").iter_rows()
    ]
    return "; ".join([dense, *points])


def _controls(cells: pl.DataFrame, top: labels.Row) -> str:
    """The control experiment at the highest keep_ratio."""
    controls = control_experiment(sure(cells)).filter(_beside(top)).to_dicts()
    told = [
        f"{row['policy']} {ratio_words(row)}, recent retained {labels.percent(row['recent_retained'])}"
        for row in controls
    ]
    return f"PPL ratio {at_ratio(top)}: {'; '.join(told)}"


def _newest_protected(e: Evidence, unprotected: pl.DataFrame, top: labels.Row) -> tuple[str, str]:
    """The verdict where a rise is shown, and what it rests on: whether protecting the newest entries takes
    away half of what the cell at the top costs."""
    kinds = [n for n in e.cells["protect_recent"].drop_nulls().unique() if n]
    guarded = [sure(plain(e.cells, recent=n)).filter(_beside(top)) for n in kinds]
    protected = pl.concat(guarded or [unprotected.clear()])
    most = protected.filter(pl.col("protect_recent") == pl.col("protect_recent").max())

    halved = saved_share(e.measured, most, unprotected, ["protect_recent"])
    if halved.is_empty():
        lacking = missing("knorm cells with the newest protected", "protect_recent: [0, 4, 8, 16]")
        return NOT_TESTABLE, f"; {lacking.why}"

    row = halved.row(0, named=True)
    helped = contrast(e.measured, most, unprotected, ["protect_recent"]).row(0, named=True)
    words = f"; last {row['protect_recent']} protected / none {factor_words(helped)}"
    if halved.filter(below()).height:
        return artefact("dropping the newest keys"), f"{words}, shown to take away over half of the loss"
    cause = "not shown to take away half of the loss, and what else causes it no row can tell"
    return NOT_TESTABLE, f"{words}: {cause}"
